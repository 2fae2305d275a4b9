#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

// How few features of a transcoder, and how few neurons of its MLP, do a task: the units of the
// largest variance keep their values, all others are held at their means over the prompts.
// Source: Dunefsky, Chlenski, Nanda 2024 (the greater-than study).

namespace lamina {

/// Features or neurons, most varying first.
struct RankedUnits {
  std::vector<std::int32_t> unit;  // ties: the smaller one
  /// Over prompts, of what the unit adds: variance of its activation (over N) times the squared
  /// norm of the vector it is multiplied by.
  std::vector<double> variance;
  std::vector<double> metric;  // mean over prompts with the first kept[i] units kept
};

struct KeepCurve {
  std::vector<std::int64_t> features_kept, neurons_kept;  // at most as many as there are
  RankedUnits features, neurons;
  double original = 0.0;  // the model as it is
  double spliced = 0.0;   // the MLP is its transcoder
};

/// Runs the clean prompts of `pairs` with the MLP that `transcoder` rebuilds changed at each
/// prompt's last token; everything else is computed from there. `counts`: how many units are kept;
/// larger ones than there are become all. All neurons kept is the model itself, all features kept
/// the transcoder.
/// UsageError for a dictionary that does not rebuild mlp_out or is not of the same layer, counts
/// below 0, fewer than two pairs; Error for an MLP of experts.
KeepCurve keep_by_variance(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                           const Transcoder& transcoder, std::span<const std::int64_t> counts,
                           std::int64_t batch_tokens = 1024);

}  // namespace lamina
