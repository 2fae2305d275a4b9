#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// GPT-2's byte alphabet: every byte has a printable character of one code point. Bytes that print
// in Latin-1 stand for themselves, the other 68 are U+0100, U+0101, … in the order of the bytes.
namespace lamina::tokenizer {

/// The alphabet's character for `byte`, in UTF-8.
const std::string& byte_character(std::uint8_t byte);
/// `bytes` spelled in the alphabet.
std::string to_alphabet(std::string_view bytes);
/// The bytes that well-formed UTF-8 `name` spells; nullopt if a character is not in the alphabet.
std::optional<std::string> from_alphabet(std::string_view name);

}  // namespace lamina::tokenizer
