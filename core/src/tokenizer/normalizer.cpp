#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "lamina/core/error.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

/// Text below U+0300 without compatibility characters is its own NFC.
bool below_marks(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<std::uint8_t>(c) < 0xCC; });
}
bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<std::uint8_t>(c) < 0x80; });
}

utf8proc_propval_t combining_class(utf8proc_int32_t c) {
  return utf8proc_get_property(c)->combining_class;
}

std::string lowercase(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    // U+0130 is the one character whose full lower case differs from the simple one.
    if (c.value == 0x130) {
      out += "i\u0307";
    } else {
      append_utf8(out,
                  static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))));
    }
    at += c.size;
  }
  return out;
}

std::string strip(std::string_view text, const StripSpace& step) {
  std::size_t begin = 0, end = 0;
  bool any = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    if (!is_white_space(c.value)) {
      if (!any) begin = at;
      any = true;
      end = at + c.size;
    }
    at += c.size;
  }
  if (!any) return step.left || step.right ? std::string() : std::string(text);
  if (!step.left) begin = 0;
  if (!step.right) end = text.size();
  return std::string(text.substr(begin, end - begin));
}

/// Categories as utf8proc's Unicode version has them.
bool is_removed(char32_t c) {
  if (c == 0 || c == 0xFFFD) return true;
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_CO;
}

/// The blocks that the reference takes for Chinese; the sixth begins at 2B920, not 2B820, there.
bool is_chinese(char32_t c) {
  constexpr std::array<std::pair<char32_t, char32_t>, 8> kBlocks = {{{0x3400, 0x4DBF},
                                                                     {0x4E00, 0x9FFF},
                                                                     {0xF900, 0xFAFF},
                                                                     {0x20000, 0x2A6DF},
                                                                     {0x2A700, 0x2B73F},
                                                                     {0x2B740, 0x2B81F},
                                                                     {0x2B920, 0x2CEAF},
                                                                     {0x2F800, 0x2FA1F}}};
  return std::ranges::any_of(kBlocks, [&](const auto& b) { return b.first <= c && c <= b.second; });
}

std::string bert(std::string_view text, const BertNormalize& step) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    const std::string_view same = text.substr(at, c.size);
    at += c.size;
    if (step.clean && is_removed(c.value)) continue;
    if (step.clean && is_white_space(c.value)) {
      out += ' ';
    } else if (step.chinese && is_chinese(c.value)) {
      out.append(1, ' ').append(same).append(1, ' ');
    } else {
      out += same;
    }
  }
  if (step.strip_accents) {
    const std::string apart = to_form(out, UnicodeForm::nfd);
    out.clear();
    for (std::size_t at = 0; at < apart.size();) {
      const CodePoint c = code_point_at(apart, at);
      if (utf8proc_category(static_cast<utf8proc_int32_t>(c.value)) != UTF8PROC_CATEGORY_MN) {
        out.append(apart, at, c.size);
      }
      at += c.size;
    }
  }
  return step.lowercase ? lowercase(out) : out;
}

struct Apply {
  std::string_view text;

  std::string operator()(const ToForm& step) const { return to_form(text, step.form); }
  std::string operator()(const Lowercase&) const { return lowercase(text); }
  std::string operator()(const Prepend& step) const {
    return text.empty() ? std::string() : std::string(step.prefix).append(text);
  }
  std::string operator()(const Replace& step) const { return replace_matches(text, step); }
  std::string operator()(const StripSpace& step) const { return strip(text, step); }
  std::string operator()(const BertNormalize& step) const { return bert(text, step); }
};

}  // namespace

std::string to_form(std::string_view text, UnicodeForm form) {
  if (is_ascii(text) || (form == UnicodeForm::nfc && below_marks(text))) return std::string(text);
  const bool compose = form == UnicodeForm::nfc || form == UnicodeForm::nfkc;
  const bool compatible = form == UnicodeForm::nfkc || form == UnicodeForm::nfkd;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                      (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size() + 1);
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c.value), parts.data(), parts.size(), options, &boundary);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(parts.size())) {
      fail("U+{:04X} cannot be decomposed: {}", static_cast<std::uint32_t>(c.value),
           count < 0 ? utf8proc_errmsg(count) : "too long");
    }
    points.insert(points.end(), parts.begin(), parts.begin() + count);
    at += c.size;
  }
  // Canonical order by sorting each run of marks: utf8proc's own reordering takes quadratic time on
  // a long run.
  for (auto run = points.begin(); run != points.end();) {
    if (combining_class(*run) == 0) {
      ++run;
      continue;
    }
    const auto end =
        std::find_if(run, points.end(), [](auto c) { return combining_class(c) == 0; });
    std::stable_sort(run, end,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    run = end;
  }
  auto size = static_cast<utf8proc_ssize_t>(points.size());
  if (compose) {
    size = utf8proc_normalize_utf32(
        points.data(), size, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < size; ++i) {
    append_utf8(out, static_cast<char32_t>(points[static_cast<std::size_t>(i)]));
  }
  return out;
}

std::string replace_matches(std::string_view text, const Replace& step) {
  if (!step.pattern) return replace_all(text, step.from, step.to);
  std::vector<std::pair<std::size_t, std::size_t>> hits;
  step.pattern->find_all(text, hits);
  std::string out;
  std::size_t at = 0;
  for (const auto& [begin, end] : hits) {
    out += text.substr(at, begin - at);
    out += step.to;
    at = end;
  }
  out += text.substr(at);
  return out;
}

void check_growth(std::size_t before, std::size_t after, std::string_view what) {
  constexpr std::size_t kFactor = 64, kAtLeast = std::size_t{1} << 16;
  if (after > kAtLeast && after / kFactor > before) {
    fail("the {} makes {} bytes of {}, at most {} times as many are accepted", what, after, before,
         kFactor);
  }
}

std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps) {
  std::string out(text);
  for (const NormalizerStep& step : steps) {
    out = std::visit(Apply{out}, step);
    check_growth(text.size(), out.size(), "normaliser");
  }
  return out;
}

}  // namespace lamina::tokenizer
