#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::tokenizer {

/// `pattern` as tokenizer files write it (Oniguruma, Ruby syntax) rewritten for PCRE2 with the same
/// meaning. Throws Error, naming the construct, for what the two read differently and cannot be
/// rewritten. `where` names the file in messages.
std::string translate_pattern(std::string_view pattern, std::string_view where);

/// A compiled split pattern. Immutable; safe to share between threads.
class Regex {
 public:
  /// `pattern` in the syntax of tokenizer files. Throws Error naming `where` and the place.
  Regex(std::string_view pattern, std::string_view where);

  /// Half-open byte ranges of the successive matches in well-formed UTF-8 `text`, empty matches
  /// included. Throws Error if the pattern exceeds its step limit.
  void find_all(std::string_view text, std::vector<std::pair<std::size_t, std::size_t>>& out) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace lamina::tokenizer
