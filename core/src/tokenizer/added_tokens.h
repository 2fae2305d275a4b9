#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/pair_map.h"
#include "tokenizer/regex.h"

namespace lamina::tokenizer {

/// A token that is recognised in the text before any model sees it.
struct AddedToken {
  std::int32_t id = -1;
  std::string content;
  bool special = false;      ///< recognised only if the caller parses special tokens
  bool normalized = false;   ///< recognised in the normalised text instead of the raw text
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false, rstrip = false;  ///< takes the white space on its left / right with it
};

/// A part of a text: an added token, or plain text between two of them (id −1).
struct Section {
  std::string_view text;
  std::int32_t id = -1;
};

/// Splits text at added tokens: the leftmost, and of those the longest.
class AddedTokenSplitter {
 public:
  AddedTokenSplitter() = default;
  explicit AddedTokenSplitter(std::vector<AddedToken> tokens);

  /// Sections of `text` in order; plain sections are never empty.
  std::vector<Section> split(std::string_view text, bool parse_special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  /// Index of the longest token that starts at `at`, -1 if there is none.
  std::int32_t longest_at(std::string_view text, std::size_t at) const;
  bool touches_word(std::string_view text, std::size_t begin, std::size_t end) const;

  std::vector<AddedToken> tokens_;
  PairMap<std::uint32_t> children_;     // (node, byte) → node; node 0 is the root
  std::vector<std::int32_t> token_at_;  // node → index in tokens_, -1 if none ends there
  std::vector<bool> starts_ = std::vector<bool>(256, false);
  std::vector<Regex> word_;  // one pattern; empty if no token asks for single_word
};

}  // namespace lamina::tokenizer
