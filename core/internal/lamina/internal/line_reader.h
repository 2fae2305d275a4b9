#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/prompts.h"
#include "lamina/core/tokenizer.h"

namespace lamina {

/// What the readers of line-by-line files (prompts, pairs) share: checked values of one line. Every
/// message begins with `where`, "file, line N".
class LineReader {
 public:
  /// `tokenizer` may be nullptr: then texts are refused.
  LineReader(const Tokenizer* tokenizer, std::int64_t d_vocab, const PromptOptions& options,
             std::string where)
      : tokenizer_(tokenizer), d_vocab_(d_vocab), options_(options), where_(std::move(where)) {}

 protected:
  using Json = nlohmann::json;

  [[noreturn]] void bad(std::string_view key, std::string_view expected, const Json& found) const;
  /// The line's object; Error for anything else and for keys that are not in `keys`.
  Json object(const std::string& line, std::span<const std::string_view> keys) const;

  /// A string without zero bytes; may be empty.
  std::string text(const Json& value, std::string_view key) const;
  /// An id that was given: a string, or an integer as its digits.
  std::string name(const Json& value, std::string_view key) const;
  std::int32_t token_id(const Json& value, std::string_view key) const;
  /// At least one token id.
  std::vector<std::int32_t> token_ids(const Json& value, std::string_view key) const;

  /// Tokens of a prompt's text. `label` stands in front of what went wrong ("key text: ").
  std::vector<std::int32_t> encode_prompt(const std::string& text, std::string_view label) const;
  const Tokenizer& tokenizer(std::string_view what) const;
  void check_id(std::int64_t id, std::string_view key) const;

  const Tokenizer* tokenizer_;
  std::int64_t d_vocab_;
  const PromptOptions& options_;
  std::string where_;
};

/// Calls `use` with every line of a text file, its number from 1 and "file, line N". A byte-order
/// mark and carriage returns are taken off. Error for files that cannot be read, zero bytes, lines
/// of more than 64 MiB and invalid UTF-8.
void for_each_line(const std::filesystem::path& path,
                   const std::function<void(const std::string& line, std::int64_t number,
                                            const std::string& where)>& use);

/// Whether a line holds blanks at most.
bool is_blank(std::string_view line);

}  // namespace lamina
