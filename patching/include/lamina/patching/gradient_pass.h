#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "lamina/patching/exact.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

// Forward and backward passes over the two prompts of pairs: what all estimates of patching share.

namespace lamina::patching {

/// Some pairs that run together, their prompts in both versions.
struct Chunk {
  std::size_t first = 0;  // index of the first pair
  std::span<const Pair> pairs;
  Batch base, other;
  /// Clean position p of pair i has the index t = offsets[i] + p here and stands in the token rows
  /// base_rows[t] and other_rows[t] of the two batches.
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int64_t> base_rows, other_rows;
};

/// Splits the pairs into chunks of at most `batch_tokens` tokens, at least one pair each.
std::vector<Chunk> make_chunks(std::span<const Pair> pairs, Direction direction,
                               std::int64_t batch_tokens);

/// What a site held in one run, in the run's own order. Attention sites: one block a prompt.
struct Values {
  std::vector<std::vector<float>> blocks;  // one, or [prompt]
};
using Recorded = std::map<Site, Values>;

/// Adds hooks that copy the sites' values into `out`.
void record(Hooks& hooks, std::span<const Site> sites, std::int64_t prompts, Recorded& out);

/// Backward passes from a metric.
class GradientPass {
 public:
  /// `backward`: used if given, and must be of the same model.
  GradientPass(Forward& forward, const Metric& metric, Backward* backward);

  /// Runs forward and returns the metric, [pair]. `keep` as in RunOptions.
  std::vector<double> metric_of(const Chunk& chunk, const Batch& batch, const Hooks& hooks,
                                RunState* keep = nullptr);

  /// Runs forward over one version of the chunk's prompts and backward from the metric at each
  /// prompt's last position. `start` and `steps` as in RunOptions. Returns the metric, [pair].
  std::vector<double> run(const Chunk& chunk, const Batch& batch, const Hooks& forward_hooks,
                          const BackwardRules& rules, const Hooks& gradient_hooks,
                          std::span<const Step> steps = {}, std::span<const float> start = {});

 private:
  // Logits of each prompt's last row into logits_; returns these rows.
  std::vector<std::int64_t> last_logits(const Batch& batch);
  std::span<const float> logits_of(std::size_t prompt) const;

  Forward& forward_;
  const Metric& metric_;
  std::optional<Backward> own_;
  Backward& backward_;
  Tape tape_;
  std::vector<float> logits_, gradient_;
};

}  // namespace lamina::patching
