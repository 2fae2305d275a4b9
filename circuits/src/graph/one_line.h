#pragma once

#include <string>
#include <string_view>

namespace lamina {

/// Text from a file as a message may show it: its first 120 bytes, control characters as spaces.
inline std::string one_line(std::string_view text) {
  std::string out(text.substr(0, 120));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return out;
}

}  // namespace lamina
