// Words of a pair file as tokens: answers, subjects, and words without a token.

#include <algorithm>
#include <array>

#include "lamina/core/error.h"
#include "lamina/patching/pairs.h"
#include "pairs/words.h"

namespace lamina {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// Whether a word behind `piece` begins without a blank.
bool opens(std::string_view piece, std::string_view answer) {
  if (piece.empty()) return false;
  if (is_blank(piece.back())) return true;
  if (is_digit(piece.back()) && !answer.empty() && is_digit(answer.front())) return true;
  for (std::string_view mark : {"\"", "(", "[", "{", "“", "‘", "«", "‹", "„", "「", "『"}) {
    if (piece.ends_with(mark)) return true;
  }
  return false;
}

std::optional<std::int32_t> as_written(const Tokenizer& tokenizer, std::string_view answer) {
  if (const auto id = tokenizer.find_piece(answer)) return id;
  // A tokenizer that normalises or splits at blanks spells the word otherwise; a word it does not
  // know becomes a special token.
  std::vector<std::int32_t> ids;
  try {
    ids = tokenizer.encode(answer, Bos::never, false);
  } catch (const Error&) {
    return std::nullopt;  // a character without a token
  }
  if (ids.size() != 1 || tokenizer.is_special(ids[0])) return std::nullopt;
  const std::string_view piece = tokenizer.piece(ids[0]);
  // Some put a blank in front of every text.
  if (!piece.empty() && is_blank(piece.front()) && !is_blank(answer.front())) return std::nullopt;
  return ids[0];
}

std::string without_blanks(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (!is_blank(c)) out += c;
  }
  return out;
}

// A special token that is not written out in the text.
bool is_unknown(const Tokenizer& t, std::int32_t id, std::string_view text) {
  return t.is_special(id) && id != t.bos_id() && id != t.eos_id() &&
         text.find(t.piece(id)) == text.npos;
}

}  // namespace

std::optional<std::string> unknown_word(const Tokenizer& tokenizer, std::string_view text,
                                        std::span<const std::int32_t> ids) {
  const bool all_known = std::none_of(
      ids.begin(), ids.end(), [&](std::int32_t id) { return is_unknown(tokenizer, id, text); });
  if (all_known) return std::nullopt;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = std::min(rest.find_first_of(" \t\r\n"), rest.size());
    const std::string_view word = rest.substr(0, end);
    if (!word.empty()) {
      for (std::int32_t id : tokenizer.encode(word, Bos::never, false)) {
        if (is_unknown(tokenizer, id, word)) return std::string(word);
      }
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return std::string(text);
}

std::optional<std::int32_t> find_answer(const Tokenizer& tokenizer, std::int32_t last,
                                        std::string_view answer) {
  if (answer.empty()) return std::nullopt;
  if (is_blank(answer.front())) return as_written(tokenizer, answer);
  const std::string spaced = " " + std::string(answer);
  std::array<std::string_view, 2> tries = {spaced, answer};
  const bool known = last >= 0 && last < tokenizer.vocab_size();
  if (known && opens(tokenizer.piece(last), answer)) std::swap(tries[0], tries[1]);
  for (std::string_view attempt : tries) {
    if (const auto id = as_written(tokenizer, attempt)) return id;
  }
  return std::nullopt;
}

std::optional<std::pair<std::int32_t, std::int32_t>> find_span(const Tokenizer& tokenizer,
                                                               std::span<const std::int32_t> ids,
                                                               std::string_view text) {
  const std::string wanted = without_blanks(text);
  if (wanted.empty()) return std::nullopt;
  for (std::size_t first = 0; first < ids.size(); ++first) {
    std::string spelled;
    for (std::size_t end = first; end < ids.size(); ++end) {
      if (tokenizer.is_special(ids[end])) break;
      const std::string piece = without_blanks(tokenizer.piece(ids[end]));
      if (end == first && piece.empty()) break;  // a subject does not begin with a blank
      spelled += piece;
      if (spelled == wanted) {
        return std::pair(static_cast<std::int32_t>(first), static_cast<std::int32_t>(end + 1));
      }
      if (!wanted.starts_with(spelled)) break;
    }
  }
  return std::nullopt;
}

}  // namespace lamina
