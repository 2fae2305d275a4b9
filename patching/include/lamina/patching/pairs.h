#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/prompts.h"
#include "lamina/core/tokenizer.h"

namespace lamina {

/// A clean and a corrupted prompt of the same number of tokens, and the answers that tell them
/// apart.
struct Pair {
  std::string id;  // unique within the file; the line number if the file gives none
  std::vector<std::int32_t> clean, corrupted;  // [token]
  std::vector<std::int32_t> correct, wrong;    // answer tokens; wrong may be empty
  /// Which corrupted position stands for each clean one, [token]; empty: the same index.
  std::vector<std::int32_t> token_map;
  /// First and one past the last token of the subject (causal tracing).
  std::optional<std::pair<std::int32_t, std::int32_t>> subject;

  std::int64_t tokens() const { return static_cast<std::int64_t>(clean.size()); }
  /// First position at which the prompts differ; tokens() if nowhere.
  std::int64_t first_difference() const;
};

/// Reads pairs, one JSON object a line:
///   {"clean": "…" | [ids], "corrupted": …, "correct": ["…" | id, …], "wrong": […],
///    "id": "…", "map": [positions], "subject": "…" | [first, end]}
/// Answers are single tokens as they continue the prompt: tried with the leading space the
/// tokenizer would give a following word, then as written. `tokenizer` may be nullptr if everything
/// is ids.
/// Errors name file, line and thing: unequal lengths (both), an answer of several or unknown tokens
/// (with the tokens), an answer that is both correct and wrong, empty files, ids outside the
/// vocabulary, a map that is no permutation-free index list of the right length, a subject that is
/// not in the clean prompt.
std::vector<Pair> read_pairs(const std::filesystem::path& path, const Tokenizer* tokenizer,
                             std::int64_t d_vocab, const PromptOptions& options = {});

/// All clean (or corrupted) prompts as one batch, in order.
Batch clean_batch(std::span<const Pair> pairs);
Batch corrupted_batch(std::span<const Pair> pairs);

}  // namespace lamina
