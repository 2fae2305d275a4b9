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
  resample,  // the value in the prompt of the same side of another pair: one for each pair, drawn
             // by the seed and the pair's id from those of equal length
  noise,     // the value plus Gaussian noise of `noise_sigma`: a function of the seed, the pair's
             // id, the node and the index of the value
};

/// denoise: run the corrupted prompt, put clean values in. noise: run the clean prompt, put
/// corrupted values in. Ablations run the same prompt: denoise the corrupted, noise the clean one.
enum class Direction : std::uint8_t { denoise, noise };

struct PatchOptions {
  Direction direction = Direction::denoise;
  Replacement replacement = Replacement::other;
  bool mean_per_position = false;  // mean: per position (equal lengths needed) or pooled
  /// mean: the prompts it is taken over; empty: the pairs' prompts that are not run.
  std::span<const std::vector<std::int32_t>> reference;
  double noise_sigma = 0.0;
  std::uint64_t seed = 0;
  /// Bytes the sweep may use beyond the weights and the results: half for what is kept of the
  /// unpatched runs, half for the patched ones (see docs/patching.md). One prompt at a time is the
  /// least it can do, whatever this says. Changes no bit of the result.
  std::uint64_t memory = std::uint64_t{1} << 30;
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // patches
};

/// The two unpatched runs and every patched one.
struct PatchResult {
  std::vector<double> clean, corrupted;  // metric of each pair, [pair]
  /// Metric of each patched run, [node, pair]. NaN where the node does not exist for a pair
  /// (position beyond its prompt).
  std::vector<double> patched;
  std::int64_t runs = 0;  // patched runs that were computed
  /// Patches that cannot change the base run's value: what they write is there already, bit for
  /// bit, or nothing reads it any more (before the last position, after the last attention).
  std::int64_t skipped = 0;
  std::int64_t pairs() const { return static_cast<std::int64_t>(clean.size()); }
};

/// Patches every node in every pair, one at a time, exactly: only rows and layers that can change
/// are computed, many patches in one batch. The result is that of full runs, bit for bit.
/// Positions are those of the clean prompt; with a token map, row map[p] of the corrupted prompt
/// belongs to p. Throws UsageError for nodes the model lacks and positions beyond every prompt.
PatchResult patch_exactly(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                          std::span<const Node> nodes, const PatchOptions& options = {});

/// (patched − base) / (other − base), base = the run that is patched; means over the pairs are
/// taken first, as in the field's normalised logit difference. [node]
std::vector<double> normalised_scores(const PatchResult& result, Direction direction,
                                      std::int64_t nodes);

}  // namespace lamina
