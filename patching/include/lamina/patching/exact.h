#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/node.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// What replaces a node's value.
enum class Replacement : std::uint8_t {
  other,     // the value in the pair's other prompt
  zero,      // 0
  mean,      // mean over the reference prompts, per position or pooled
  resample,  // the value in the same prompt of another pair (seeded choice, equal length)
  noise,     // the value plus Gaussian noise of `noise_sigma` (seeded)
};

/// denoise: run the corrupted prompt, put clean values in. noise: run the clean prompt, put
/// corrupted values in. Ablations (zero, mean, resample, noise) run the prompt that is named.
enum class Direction : std::uint8_t { denoise, noise };

struct PatchOptions {
  Direction direction = Direction::denoise;
  Replacement replacement = Replacement::other;
  bool mean_per_position = false;  // mean: per position (equal lengths needed) or pooled
  double noise_sigma = 0.0;
  std::uint64_t seed = 0;
  std::uint64_t memory = std::uint64_t{1} << 30;  // bytes the sweep may use beyond the weights
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // patches
};

/// The two unpatched runs and every patched one.
struct PatchResult {
  std::vector<double> clean, corrupted;  // metric of each pair, [pair]
  /// Metric of each patched run, [node, pair]. NaN where the node does not exist for a pair
  /// (position beyond its prompt).
  std::vector<double> patched;
  std::int64_t runs = 0;     // patched runs that were computed
  std::int64_t skipped = 0;  // patches that would have written what was there: the base run's value
  std::int64_t pairs() const { return static_cast<std::int64_t>(clean.size()); }
};

/// Patches every node in every pair, one at a time, exactly: only rows and layers that can change
/// are computed, many patches in one batch. The result is that of full runs, bit for bit.
/// Throws UsageError for nodes the model lacks.
PatchResult patch_exactly(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                          std::span<const Node> nodes, const PatchOptions& options = {});

/// (patched − base) / (other − base), base = the run that is patched; means over the pairs are
/// taken first, as in the field's normalised logit difference. [node]
std::vector<double> normalised_scores(const PatchResult& result, Direction direction,
                                      std::int64_t nodes);

}  // namespace lamina
