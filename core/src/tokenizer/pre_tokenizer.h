#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/regex.h"

namespace lamina::tokenizer {

/// What becomes of the matches of a split pattern.
enum class SplitBehavior : std::uint8_t {
  removed,
  isolated,
  merged_with_previous,
  merged_with_next,
  contiguous,  ///< neighbouring matches form one piece
};

/// Splits at the matches of a pattern, or of a literal string if there is no pattern.
struct Split {
  std::optional<Regex> pattern;
  std::string literal;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  ///< the text between the matches counts as the matches
};
/// Puts a space in front of a piece that does not start with one.
struct PrefixSpace {};
/// SentencePiece's visible spaces.
struct Metaspace {
  enum class Prefix : std::uint8_t { never, first, always };
  std::string replacement = "\u2581";
  Prefix prefix = Prefix::always;
  bool split = true;
};
using PreTokenizerStep = std::variant<Split, PrefixSpace, Metaspace>;

/// GPT-2's split pattern, which the ByteLevel pre-tokenizer stands for.
extern const std::string_view kGpt2Pattern;

/// The pieces of one section of a text. Views are of the section or of `owned`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;
};

/// Splits `section` by the steps in order. `at_start`: whether the section starts the text (only
/// its first piece gets the prefix of Metaspace::Prefix::first).
void pre_tokenize(std::string_view section, bool at_start,
                  const std::vector<PreTokenizerStep>& steps, Pieces& out);

}  // namespace lamina::tokenizer
