#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "lamina/patching/exact.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/node.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// Where integrated gradients walk from the base value to the other one.
enum class IgPath : std::uint8_t {
  node,    // at the node's site itself, α = k/steps, k = 0 … steps − 1 (Marks et al.)
  inputs,  // at the input embedding, α = k/steps, k = 0 … steps − 1 (EAP-IG-inputs)
};

struct AttributionOptions {
  Direction direction = Direction::denoise;
  /// At which run the gradient is taken: the one that is patched (RelP's notebook, TransformerLens)
  /// or the other (EAP's habit). Unused by integrated gradients.
  bool gradient_at_other = false;
  BackwardRules rules;        // {} = attribution patching, BackwardRules::relp() = RelP
  std::int64_t ig_steps = 0;  // 0: one gradient; otherwise integrated gradients
  IgPath ig_path = IgPath::node;
  std::int64_t batch_tokens = 512;
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // pairs
};

/// Estimates patched − base of every node: Σ (other − base) · gradient over the node's values.
/// Returns [node, pair]; NaN where a node does not exist for a pair.
std::vector<double> attribute(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                              std::span<const Node> nodes, const AttributionOptions& options = {});

/// How well an estimate agrees with exact patching on the same nodes, with percentile bootstrap
/// intervals (95 %) over nodes.
struct Agreement {
  struct Value {
    double value, low, high;
  };
  std::int64_t nodes = 0;
  Value pearson, spearman, sign, top_k;  // sign: share of equal signs; top_k: overlap of the k
                                         // largest magnitudes, as a share of k
  std::int64_t k = 0;
};
Agreement agreement(std::span<const double> estimate, std::span<const double> exact, std::int64_t k,
                    std::int64_t resamples, std::uint64_t seed);

}  // namespace lamina
