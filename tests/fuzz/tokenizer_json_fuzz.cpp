#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lamina/core/error.h"
#include "lamina/core/tokenizer.h"

/// Reads the input as a tokenizer.json, then uses what was accepted.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using lamina::Bos;
  using lamina::Tokenizer;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  constexpr std::string_view kTexts[] = {
      "", "ab  the <s>\n\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
      "na\u00EFve o\u0302\u0323 \u4F60\u597D \U0001F600 \u2581x 123"};
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(text, "fuzz");
    for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      const auto found = tokenizer.find_piece(tokenizer.piece(id));
      if (found && tokenizer.piece(*found) != tokenizer.piece(id)) std::abort();
    }
    for (std::string_view sample : kTexts) {
      for (bool special : {true, false}) {
        try {
          const auto ids = tokenizer.encode(sample, Bos::model, special);
          for (std::int32_t id : ids) {
            if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
          }
          (void)tokenizer.decode(ids);
          (void)tokenizer.decode(ids, true);
        } catch (const lamina::Error&) {
          // No token for a character, or a pattern at its step limit.
        }
      }
    }
  } catch (const lamina::Error&) {
    // A refusal; any other exception ends the program.
  }
  return 0;
}
