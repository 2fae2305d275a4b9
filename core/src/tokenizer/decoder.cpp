#include "tokenizer/decoder.h"

#include <array>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace lamina::tokenizer {
namespace {

using Names = std::vector<std::string>;

std::size_t total_size(const Names& names) {
  std::size_t size = 0;
  for (const std::string& name : names) size += name.size();
  return size;
}

std::string joined(const Names& names) {
  std::string out;
  out.reserve(total_size(names));
  for (const std::string& name : names) out += name;
  return out;
}

struct Apply {
  Names& names;

  void operator()(const ByteLevelDecode&) const {
    std::string bytes;
    for (const std::string& name : names) bytes += from_alphabet(name).value_or(name);
    names = {lossy_utf8(bytes)};
  }

  void operator()(const ByteFallbackDecode&) const {
    Names out;
    std::string bytes;
    const auto flush = [&] {
      if (first_invalid_utf8(bytes) == bytes.size()) {
        if (!bytes.empty()) out.push_back(bytes);
      } else {
        for (std::size_t i = 0; i < bytes.size(); ++i) out.push_back("\uFFFD");
      }
      bytes.clear();
    };
    for (const std::string& name : names) {
      if (const auto byte = byte_fallback_value(name)) {
        bytes += static_cast<char>(*byte);
      } else {
        flush();
        out.push_back(name);
      }
    }
    flush();
    names = std::move(out);
  }

  void operator()(const Fuse&) const { names = {joined(names)}; }

  void operator()(const StripCharacter& step) const {
    for (std::string& name : names) {
      std::string_view rest = name;
      for (std::size_t i = 0; i < step.start && rest.starts_with(step.character); ++i) {
        rest.remove_prefix(step.character.size());
      }
      for (std::size_t i = 0; i < step.stop && rest.ends_with(step.character); ++i) {
        rest.remove_suffix(step.character.size());
      }
      name = std::string(rest);
    }
  }

  void operator()(const MetaspaceDecode& step) const {
    for (std::size_t i = 0; i < names.size(); ++i) {
      names[i] = replace_all(names[i], step.replacement, i == 0 && step.drop_first ? "" : " ");
    }
  }

  void operator()(const WordPieceDecode& step) const {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kCleanup = {
        {{" .", "."},
         {" ?", "?"},
         {" !", "!"},
         {" ,", ","},
         {" ' ", "'"},
         {" n't", "n't"},
         {" 'm", "'m"},
         {" do not", " don't"},
         {" 's", "'s"},
         {" 've", "'ve"},
         {" 're", "'re"}}};
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (i > 0 && !step.prefix.empty() && names[i].starts_with(step.prefix)) {
        names[i].erase(0, step.prefix.size());
      } else if (i > 0) {
        names[i].insert(names[i].begin(), ' ');
      }
      if (!step.cleanup) continue;
      for (const auto& [from, to] : kCleanup) names[i] = replace_all(names[i], from, to);
    }
  }

  void operator()(const Replace& step) const {
    for (std::string& name : names) name = replace_matches(name, step);
  }
};

}  // namespace

std::string decode_names(std::vector<std::string> names, const std::vector<DecoderStep>& steps) {
  if (steps.empty()) {
    for (std::size_t i = 1; i < names.size(); ++i) names[i].insert(names[i].begin(), ' ');
    return joined(names);
  }
  const std::size_t before = total_size(names);
  for (const DecoderStep& step : steps) {
    std::visit(Apply{names}, step);
    check_growth(before, total_size(names), "decoder");
  }
  return joined(names);
}

}  // namespace lamina::tokenizer
