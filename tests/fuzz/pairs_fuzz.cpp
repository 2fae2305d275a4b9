#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "lamina/core/error.h"
#include "lamina/patching/pair_tasks.h"
#include "pairs/words.h"

namespace {

constexpr std::int64_t kVocab = 12;

// Whole words, as in the models that ship with lamina.
const lamina::Tokenizer& tokenizer() {
  static const lamina::Tokenizer made = lamina::Tokenizer::from_json(
      R"({"version": "1.0", "truncation": null, "padding": null,
          "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false,
                            "rstrip": false, "normalized": false, "special": true}],
          "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
          "decoder": null,
          "model": {"type": "WordLevel", "unk_token": "<unk>",
                    "vocab": {"<unk>": 0, "a": 1, "b": 2, "c": 3, "Mary": 4, "John": 5, "to": 6,
                              ",": 7, "\"": 8, "is": 9, "are": 10, "1": 11}}})",
      "fuzz");
  return made;
}

void check(const lamina::Pair& pair) {
  const auto inside = [](std::int64_t i, std::size_t size) {
    return i >= 0 && i < static_cast<std::int64_t>(size);
  };
  bool sound = !pair.clean.empty() && !pair.corrupted.empty() && !pair.correct.empty();
  for (const auto* ids : {&pair.clean, &pair.corrupted, &pair.correct, &pair.wrong}) {
    for (std::int32_t id : *ids) sound = sound && inside(id, kVocab);
  }
  sound = sound && (pair.token_map.empty() ? pair.clean.size() == pair.corrupted.size()
                                           : pair.token_map.size() == pair.clean.size());
  for (std::int32_t to : pair.token_map) sound = sound && inside(to, pair.corrupted.size());
  if (pair.subject) {
    sound = sound && inside(pair.subject->first, pair.clean.size()) &&
            pair.subject->second > pair.subject->first && pair.subject->second <= pair.tokens();
  }
  if (!sound || pair.first_difference() > pair.tokens()) std::abort();
}

}  // namespace

/// Reads the input as a line of a pair file, with and without a tokenizer, and as a task's
/// templates and words, from which it then makes pairs.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const lamina::Tokenizer* t :
       {&tokenizer(), static_cast<const lamina::Tokenizer*>(nullptr)}) {
    try {
      check(lamina::parse_pair(text, 1, "fuzz, line 1", t, kVocab, {}));
    } catch (const lamina::Error& error) {
      // A refusal, of one line; any other exception ends the program.
      if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
    }
  }
  try {
    lamina::PairMaker maker(lamina::parse_task_lists(text, "fuzz"), tokenizer(), kVocab,
                            {.shots = 1});
    for (int i = 0; i < 3; ++i) {
      const auto made = maker.next();
      if (!made) break;
      check(made->pair);
    }
  } catch (const lamina::Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
