#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

std::size_t previous_begin(std::string_view text, std::size_t at) {
  do --at;
  while (at > 0 && (static_cast<std::uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

}  // namespace

AddedTokenSplitter::AddedTokenSplitter(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_at_(1, -1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].content.empty()) continue;
    std::uint32_t node = 0;
    for (char c : tokens_[i].content) {
      const auto byte = static_cast<std::uint8_t>(c);
      if (const std::uint32_t* child = children_.find(node, byte)) {
        node = *child;
      } else {
        const auto fresh = static_cast<std::uint32_t>(token_at_.size());
        children_.set(node, byte, fresh);
        token_at_.push_back(-1);
        node = fresh;
      }
    }
    if (token_at_[node] < 0) token_at_[node] = static_cast<std::int32_t>(i);
    starts_[static_cast<std::uint8_t>(tokens_[i].content[0])] = true;
    if (tokens_[i].single_word && word_.empty()) {
      word_.emplace_back(R"([\w\x{200C}\x{200D}])", "added tokens");
    }
  }
}

std::int32_t AddedTokenSplitter::longest_at(std::string_view text, std::size_t at) const {
  std::int32_t found = -1;
  std::uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const std::uint32_t* child = children_.find(node, static_cast<std::uint8_t>(text[at]));
    if (!child) break;
    node = *child;
    if (token_at_[node] >= 0) found = token_at_[node];
  }
  return found;
}

bool AddedTokenSplitter::touches_word(std::string_view text, std::size_t begin,
                                      std::size_t end) const {
  std::vector<std::pair<std::size_t, std::size_t>> hits;
  const auto is_word = [&](std::string_view character) {
    word_.front().find_all(character, hits);
    return !hits.empty();
  };
  if (begin > 0) {
    const std::size_t before = previous_begin(text, begin);
    if (is_word(text.substr(before, begin - before))) return true;
  }
  return end < text.size() && is_word(text.substr(end, code_point_at(text, end).size));
}

std::vector<Section> AddedTokenSplitter::split(std::string_view text, bool parse_special) const {
  std::vector<Section> out;
  std::size_t plain = 0;  // start of the plain text not yet put out
  for (std::size_t at = 0; at < text.size();) {
    const std::int32_t index =
        starts_[static_cast<std::uint8_t>(text[at])] ? longest_at(text, at) : -1;
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<std::size_t>(index)];
    std::size_t begin = at, end = at + token.content.size();
    at = end;  // as in the reference, a match that is passed over still consumes its text
    if (token.special && !parse_special) continue;
    if (token.single_word && touches_word(text, begin, end)) continue;
    while (token.lstrip && begin > plain) {
      const std::size_t before = previous_begin(text, begin);
      if (!is_white_space(code_point_at(text, before).value)) break;
      begin = before;
    }
    while (token.rstrip && end < text.size()) {
      const CodePoint next = code_point_at(text, end);
      if (!is_white_space(next.value)) break;
      end += next.size;
    }
    if (plain < begin) out.push_back({text.substr(plain, begin - plain), -1});
    out.push_back({text.substr(begin, end - begin), token.id});
    plain = std::max(plain, end);
  }
  if (plain < text.size()) out.push_back({text.substr(plain), -1});
  return out;
}

}  // namespace lamina::tokenizer
