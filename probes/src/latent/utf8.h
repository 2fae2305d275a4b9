#pragma once

#include <cstddef>
#include <string_view>

namespace lamina::utf8 {

/// Bytes of the character that starts at text[at]; 1 where the text is no UTF-8.
inline std::size_t length(std::string_view text, std::size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  std::size_t n = lead < 0xC2 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
  if (at + n > text.size()) return 1;
  for (std::size_t i = 1; i < n; ++i) {
    if ((static_cast<unsigned char>(text[at + i]) & 0xC0) != 0x80) return 1;
  }
  return n;
}

}  // namespace lamina::utf8
