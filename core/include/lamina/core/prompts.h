#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/tokenizer.h"

namespace lamina {

/// One input of a run.
struct Prompt {
  std::string id;    // unique within the run; the line number if the file gives none
  std::string text;  // empty if the prompt was given as token ids
  std::vector<std::int32_t> ids;
  std::int64_t given = 0;              // tokens that were given; the rest were generated
  std::optional<std::int32_t> target;  // token expected after the last given one
  std::map<std::string, std::string> labels;
};

struct PromptOptions {
  Bos bos = Bos::model;
  bool parse_special = true;
};

/// Reads prompts: one text a line (*.txt), or JSONL (*.jsonl, *.json lines) with objects
///   {"text": "…" | "ids": [..], "id": "…", "target": "…" | id, "labels": {"name": "value"}}.
/// A target text is one token, or its first token if `target` needs several: then the label
/// "target_text" keeps the whole. A label may also be a number, a truth value, or an array of plain
/// values (one per token), which is kept as its JSON text. `tokenizer` may be nullptr if every
/// prompt has ids. Errors name the file, the line, the key, what was expected and found: empty
/// prompts, ids outside the vocabulary (`d_vocab`), duplicate ids, duplicate keys, invalid UTF-8,
/// mixed label sets are fine.
std::vector<Prompt> read_prompts(const std::filesystem::path& path, const Tokenizer* tokenizer,
                                 std::int64_t d_vocab, const PromptOptions& options = {});

/// Prompts from texts given on the command line; ids "0", "1" …
std::vector<Prompt> text_prompts(std::span<const std::string> texts, const Tokenizer& tokenizer,
                                 const PromptOptions& options = {});

/// Cuts prompts of more than `most` tokens into pieces ID#1, ID#2 … of at most that many, the last
/// one shorter. If a prompt begins with `bos`, so does each of its pieces. Labels are those of the
/// prompt, its target is the last piece's, texts are dropped.
std::vector<Prompt> cut_prompts(std::vector<Prompt> prompts, std::int64_t most,
                                std::optional<std::int32_t> bos);

}  // namespace lamina
