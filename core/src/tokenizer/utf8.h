#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// UTF-8 and the few Unicode facts the tokenizers need.
namespace lamina::tokenizer {

/// One decoded code point and the bytes it took.
struct CodePoint {
  char32_t value = 0;
  std::size_t size = 0;
};

/// The code point at `offset` of well-formed UTF-8 (see first_invalid_utf8); offset < text.size().
CodePoint code_point_at(std::string_view text, std::size_t offset);

/// Byte offset of the first byte that is not part of a well-formed UTF-8 sequence (no overlong
/// forms, surrogates or values above U+10FFFF); text.size() if there is none.
std::size_t first_invalid_utf8(std::string_view text);

void append_utf8(std::string& out, char32_t value);

/// `bytes` with every maximal ill-formed part replaced by U+FFFD (Unicode 3.9, table 3-8).
std::string lossy_utf8(std::string_view bytes);

/// The Unicode property White_Space.
bool is_white_space(char32_t value);

/// `text` with every `from` replaced by `to`; unchanged if `from` is empty.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace lamina::tokenizer
