#include "tokenizer/byte_alphabet.h"

#include <array>

#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

constexpr char32_t kEnd = 0x144;  // one past the last character of the alphabet

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<std::int16_t, kEnd> bytes;

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t character = prints ? byte : next++;
      append_utf8(characters[byte], character);
      bytes[character] = static_cast<std::int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

}  // namespace

const std::string& byte_character(std::uint8_t byte) {
  return alphabet().characters[byte];
}

std::string to_alphabet(std::string_view bytes) {
  std::string out;
  for (char c : bytes) out += byte_character(static_cast<std::uint8_t>(c));
  return out;
}

std::optional<std::string> from_alphabet(std::string_view name) {
  std::string out;
  for (std::size_t at = 0; at < name.size();) {
    const CodePoint c = code_point_at(name, at);
    if (c.value >= kEnd || alphabet().bytes[c.value] < 0) return std::nullopt;
    out += static_cast<char>(alphabet().bytes[c.value]);
    at += c.size;
  }
  return out;
}

}  // namespace lamina::tokenizer
