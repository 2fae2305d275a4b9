#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/regex.h"

namespace lamina::tokenizer {

enum class UnicodeForm : std::uint8_t { nfc, nfd, nfkc, nfkd };

/// `text` (well-formed UTF-8) in a Unicode normalisation form. O(n log n) whatever the text.
std::string to_form(std::string_view text, UnicodeForm form);

struct ToForm {
  UnicodeForm form = UnicodeForm::nfc;
};
struct Lowercase {};
struct Prepend {
  std::string prefix;  // not put in front of empty text
};
/// Replaces a string, or the matches of a pattern if there is one.
struct Replace {
  std::string from, to;
  std::optional<Regex> pattern;
};
struct StripSpace {
  bool left = false, right = false;
};
/// BERT's: control characters away and white space to spaces, spaces around Chinese characters,
/// NFD without combining marks, lower case; each if asked for, in this order.
struct BertNormalize {
  bool clean = true, chinese = true, strip_accents = true, lowercase = true;
};
using NormalizerStep = std::variant<ToForm, Lowercase, Prepend, Replace, StripSpace, BertNormalize>;

/// Error if a chain of steps of `what` has made a text grow beyond all reason.
void check_growth(std::size_t before, std::size_t after, std::string_view what);

/// The steps in order.
std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps);
std::string replace_matches(std::string_view text, const Replace& step);

}  // namespace lamina::tokenizer
