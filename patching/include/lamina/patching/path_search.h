#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/path_judge.h"
#include "lamina/patching/path_tree.h"

namespace lamina {

struct PathSearchOptions {
  /// tree.seed is that of the run; every prompt draws from its own stream.
  TreeOptions tree;
  /// Quality of a path: the metric at the prompt's last token (pair i is prompt i; nll and kl with
  /// their sign turned). nullptr: the log-probability of the answers or, for a prompt without any,
  /// of the whole model's most likely token.
  const Metric* metric = nullptr;
  bool sublayers = false;  // edits skip and repeat sublayers instead of layers
  std::uint64_t memory = std::uint64_t{1} << 30;                        // bytes beyond the weights
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // paths of all prompts
};

/// The paths that were tried for one prompt.
struct PromptPaths {
  TreeResult tree;                    // tried[0] is the whole model
  std::vector<std::uint8_t> right;    // [tried] the most likely next token is an answer
  std::vector<std::int32_t> answers;  // given, or the whole model's own
  std::int64_t steps_asked = 0, steps_run = 0;

  /// The path with the best quality among those of at most this many layers; −1: none.
  std::int64_t best_within(double layers) const;
  /// The right path with the fewest layers (ties: better quality); −1: none is right.
  std::int64_t shortest_right() const;
};

/// Searches for each prompt alone. UsageError for sublayer edits in a model with parallel blocks,
/// where a layer is not its sublayers one after the other.
std::vector<PromptPaths> search_paths(Forward& forward, const PathPrompts& prompts,
                                      const PathSearchOptions& options);

/// What the prompts come to if each may use at most so many layers: its best path within them.
/// Choosing it takes the answer, so these are bounds of what a rule without it could reach.
struct BudgetRow {
  double layers = 0;         // at most
  double used = 0;           // mean
  double quality = 0;        // mean
  double right = 0;          // share of prompts for which that path is right
  double any_right = 0;      // share for which some path within the budget is
  std::int64_t prompts = 0;  // that have a path within the budget; the means are over these
};
/// One row per budget at which anything changes, falling from the largest.
std::vector<BudgetRow> budget_table(std::span<const PromptPaths> found);

}  // namespace lamina
