#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lamina/core/prompts.h"
#include "lamina/core/tokenizer.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// The first word of `text` that the tokenizer turned into its unknown token, or all of `text` if
/// no word alone does; nullopt if every token of `ids` (its encoding) stands for something.
std::optional<std::string> unknown_word(const Tokenizer& tokenizer, std::string_view text,
                                        std::span<const std::int32_t> ids);

/// One line of a pair file; messages begin with `where`.
Pair parse_pair(const std::string& line, std::int64_t number, const std::string& where,
                const Tokenizer* tokenizer, std::int64_t d_vocab, const PromptOptions& options);

}  // namespace lamina
