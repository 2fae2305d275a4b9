#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/prompts.h"
#include "lamina/core/tokenizer.h"

namespace lamina {

/// A clean and a corrupted prompt, and the answers that tell them apart.
struct Pair {
  std::string id;  // unique within the file; the line number if the file gives none
  std::vector<std::int32_t> clean, corrupted;  // [token]; equally long unless there is a map
  std::vector<std::int32_t> correct, wrong;    // answer tokens, no repeats; wrong may be empty
  /// Which corrupted position stands for each clean one, [clean token], no position twice; empty:
  /// the same index. With a map the corrupted prompt may have another length.
  std::vector<std::int32_t> token_map;
  /// First and one past the last token of the subject in the clean prompt (causal tracing).
  std::optional<std::pair<std::int32_t, std::int32_t>> subject;

  /// Tokens of the clean prompt.
  std::int64_t tokens() const { return static_cast<std::int64_t>(clean.size()); }
  /// The corrupted position that stands for a clean one.
  std::int64_t corrupted_position(std::int64_t position) const {
    return token_map.empty() ? position : token_map[static_cast<std::size_t>(position)];
  }
  /// First clean position whose counterpart is another token or stands elsewhere; tokens() if there
  /// is none. Everything in front of it is the same in both runs.
  std::int64_t first_difference() const;
};

/// Reads pairs, one JSON object a line (docs/pairs.md):
///   {"clean": "…" | [ids], "corrupted": …, "correct": ["…" | id, …], "wrong": […],
///    "id": "…", "map": [positions], "subject": "…" | [first, end]}
/// Answers are single tokens as they continue the clean prompt: see find_answer.
/// `tokenizer` may be nullptr if everything is ids.
/// Errors name file, line, key and thing: prompts of unequal lengths without a map (both lengths
/// and the tokens), an answer of several or unknown tokens (with the tokens), an answer that is
/// given twice or both correct and wrong, words unknown to the tokenizer, empty files and lists,
/// ids outside the vocabulary, equal pair ids, a map of another length than the clean prompt, out
/// of range or with a position twice, a subject that is not in the clean prompt.
std::vector<Pair> read_pairs(const std::filesystem::path& path, const Tokenizer* tokenizer,
                             std::int64_t d_vocab, const PromptOptions& options = {});

/// The one token that `answer` is behind the token `last`; nullopt if it is several or unknown.
/// An answer that begins with a blank is taken as written. Otherwise it is the word that follows:
/// with a leading blank if there is such a token, then as written. The other way round behind a
/// blank, an opening quote or bracket, or if a digit follows a digit.
std::optional<std::int32_t> find_answer(const Tokenizer& tokenizer, std::int32_t last,
                                        std::string_view answer);

/// First and one past the last of the tokens that spell `text` (blanks aside), its first occurrence
/// at token boundaries; nullopt if there is none. Special tokens spell nothing.
std::optional<std::pair<std::int32_t, std::int32_t>> find_span(const Tokenizer& tokenizer,
                                                               std::span<const std::int32_t> ids,
                                                               std::string_view text);

/// All clean (or corrupted) prompts as one batch, in order.
Batch clean_batch(std::span<const Pair> pairs);
Batch corrupted_batch(std::span<const Pair> pairs);

}  // namespace lamina
