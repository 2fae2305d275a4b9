#include <array>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/regex.h"

// Tokenizer files carry Oniguruma patterns. Nearly all of the syntax is PCRE2's; this file rewrites
// the classes whose members differ and refuses the constructs that would silently mean another
// thing.
namespace lamina::tokenizer {
namespace {

// White_Space; PCRE2's \s also holds U+180E.
constexpr std::string_view kSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
// Unicode's word characters; PCRE2 10.42 leaves out marks, letter numbers and connectors.
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kHex = "0-9A-Fa-f";

std::string_view class_members(char c) {
  switch (c) {
    case 's':
    case 'S':
      return kSpace;
    case 'w':
    case 'W':
      return kWord;
    case 'h':
    case 'H':
      return kHex;
    default:
      return {};
  }
}

bool is_upper(char c) {
  return c >= 'A' && c <= 'Z';
}

/// \p{Name}: in PCRE2 a bare script name means Script_Extensions, in Oniguruma Script.
std::string property(std::string_view name) {
  constexpr std::array<std::string_view, 18> kNotScripts = {"Any",
                                                            "ASCII",
                                                            "Alphabetic",
                                                            "White_Space",
                                                            "Alpha",
                                                            "Lowercase",
                                                            "Uppercase",
                                                            "L&",
                                                            "Lower",
                                                            "Upper",
                                                            "Emoji",
                                                            "Ideographic",
                                                            "ID_Start",
                                                            "ID_Continue",
                                                            "Extended_Pictographic",
                                                            "Emoji_Presentation",
                                                            "Dash",
                                                            "Math"};
  std::string caret;
  if (name.starts_with('^')) caret = "^", name.remove_prefix(1);
  bool script = name.size() > 2;
  for (std::string_view other : kNotScripts) script = script && name != other;
  return fmt::format("{{{}{}{}}}", caret, script ? "sc:" : "", name);
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else {
        plain_character(c);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail("{}: pattern {} uses {}, which is not supported", where_, files::quote(in_), what);
  }

  void escape() {
    if (at_ + 1 >= in_.size()) refuse("a backslash at its end");
    const char c = in_[at_ + 1];
    if (const std::string_view members = class_members(c); !members.empty()) {
      if (in_class_ && is_upper(c)) refuse(fmt::format("\\{} inside a character class", c));
      out_ += in_class_ ? "" : is_upper(c) ? "[^" : "[";
      out_ += members;
      out_ += in_class_ ? "" : "]";
      at_ += 2;
    } else if ((c == 'p' || c == 'P') && at_ + 2 < in_.size() && in_[at_ + 2] == '{') {
      const std::size_t close = in_.find('}', at_);
      if (close == in_.npos) refuse("\\p without a closing brace");
      out_ += {'\\', c};
      out_ += property(in_.substr(at_ + 3, close - at_ - 3));
      at_ = close + 1;
    } else if (c == 'K' || c == 'G' || c == 'b' || c == 'B' || c == 'y' || c == 'Y' || c == 'X' ||
               c == 'Q' || c == 'E' || c == 'u' || c == 'M' || c == 'c' || c == 'C' || c == 'O') {
      // \b rests on the word characters, which differ; the others do not exist on both sides.
      if (c != 'b' || !in_class_) refuse(fmt::format("\\{}", c));
      copy(2);
    } else {
      copy(2);
    }
  }

  void class_character(char c) {
    if (c == '[' && in_.substr(at_, 2) != "[:") refuse("a nested character class");
    if (c == '[') refuse("a POSIX class such as [:alpha:]");
    if (in_.substr(at_, 2) == "&&") refuse("the class intersection &&");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void plain_character(char c) {
    if (c == '[') {
      in_class_ = true;
      copy(in_.substr(at_, 2) == "[^" ? 2 : 1);
      if (in_.substr(at_, 1) == "]") refuse("an empty character class");
      return;
    }
    if (c == '{' && in_.substr(at_, 2) == "{,") refuse("the repetition {,n}");
    if (c == '(' && in_.substr(at_, 2) == "(*") refuse("a verb (*…)");
    if (c == '(' && in_.substr(at_, 2) == "(?") {
      // Only i reads the same in both; Ruby's m is dot-all and its x, s differ or do not exist.
      const std::string_view rest = in_.substr(at_ + 2);
      const std::size_t stop = rest.find_first_of(":)=!<>P#|'(~");
      const std::string_view flags = rest.substr(0, stop);
      if (flags.find_first_not_of("i-") != flags.npos) refuse(fmt::format("(?{}", flags));
      if (stop != rest.npos &&
          std::string_view("P#|'(~").find(rest[stop]) != std::string_view::npos)
        refuse(fmt::format("(?{}", rest[stop]));
    }
    copy(1);
  }

  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  std::string_view in_, where_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

std::string translate_pattern(std::string_view pattern, std::string_view where) {
  return Translator(pattern, where).run();
}

}  // namespace lamina::tokenizer
