#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/backward.h"

// Rules of the backward pass as they are typed.
namespace lamina::cli {

/// The rules that `words` name, of norm, activation, gate, pattern and mlp ("none" alone: no rule);
/// `own` where nothing was typed. UsageError for other words.
BackwardRules parse_rules(const std::vector<std::string>& words, const BackwardRules& own);
/// "norm, activation, gate (stabiliser 1e-06)".
std::string rules_text(const BackwardRules& rules);

}  // namespace lamina::cli
