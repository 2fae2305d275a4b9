#pragma once

#include <string>
#include <variant>
#include <vector>

#include "tokenizer/normalizer.h"

namespace lamina::tokenizer {

/// Bytes from names spelled in the byte alphabet; ill-formed UTF-8 becomes U+FFFD.
struct ByteLevelDecode {};
/// Runs of <0xNN> become the bytes, or one U+FFFD per byte if those are not UTF-8.
struct ByteFallbackDecode {};
struct Fuse {};
/// Removes up to `start` leading and `stop` trailing copies of one character from each token.
struct StripCharacter {
  std::string character;
  std::size_t start = 0, stop = 0;
};
/// Visible spaces back to spaces; with `drop_first` those of the first token vanish.
struct MetaspaceDecode {
  std::string replacement;
  bool drop_first = true;
};
/// Continuations (`prefix` in front) join the token before, all others get a space between; with
/// `cleanup` the space in front of punctuation and of the endings of English contractions goes.
struct WordPieceDecode {
  std::string prefix;
  bool cleanup = true;
};
using DecoderStep = std::variant<ByteLevelDecode, ByteFallbackDecode, Fuse, StripCharacter,
                                 MetaspaceDecode, WordPieceDecode, Replace>;

/// The text that `names` stand for. Without any step the names are joined by spaces.
std::string decode_names(std::vector<std::string> names, const std::vector<DecoderStep>& steps);

}  // namespace lamina::tokenizer
