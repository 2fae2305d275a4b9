#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// Positions of a prompt by name or number.
struct PositionSet {
  bool subject = false;  // the pair's subject
  /// First and last of each range; negative numbers count from the end.
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;

  /// "subject", "last", "first", "5", "-2", "3-6", "1,4,-1" … UsageError naming `what` otherwise.
  static PositionSet parse(std::string_view text, std::string_view what);
  /// Ascending positions in this pair's clean prompt. UsageError for positions it does not have and
  /// a pair without subject.
  std::vector<std::int64_t> of(const Pair& pair) const;
};

struct KnockoutOptions {
  PositionSet from;  // positions that are no longer seen …
  PositionSet to;    // … from these
  /// Layers in which they are not, around each layer in turn (see layer_window()).
  std::int64_t window = 1;
  std::uint64_t memory = std::uint64_t{1} << 30;  // as PatchOptions::memory
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct KnockoutResult {
  std::vector<double> clean;    // metric, [pair]
  std::vector<double> knocked;  // metric, [layer, pair]
  std::int64_t runs = 0, skipped = 0;
};

/// Attention knock-out: the clean prompts run with the scores of all heads from the positions `to`
/// to the positions `from` set to −∞, for a window of layers around every layer of `layers`.
/// Source: Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language
/// Models". Throws UsageError if a position would be left with nothing to attend to.
KnockoutResult knock_out(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                         std::span<const std::int32_t> layers, const KnockoutOptions& options);

}  // namespace lamina
