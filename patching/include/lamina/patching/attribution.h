#pragma once

#include <cstdint>
#include <functional>
#include <optional>
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
  /// Tokens of one batch (at least one pair): bounds the memory.
  std::int64_t batch_tokens = 512;
  /// Reused between calls if given: it keeps the weights in the order that backward passes need.
  Backward* backward = nullptr;
  bool conservation = false;  // fill Attributed::conservation; not with integrated gradients
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // pairs
};

/// How much of the metric the relevance accounts for: Σ x · ρ over all positions, where x is the
/// value and ρ the gradient under the rules, in the run where the gradient is taken. Rules that
/// conserve relevance keep the sum equal at all layers, up to what biases and the attention
/// pattern take.
struct Conservation {
  std::vector<double> metric;     // [pair], of the run where the gradient is taken
  std::vector<double> embed;      // [pair], the position embedding included
  std::vector<double> resid_pre;  // [layer, pair]
};

struct Attributed {
  std::vector<double> scores;       // [node, pair]
  std::vector<double> base, other;  // metric of the two runs, [pair]
  Conservation conservation;        // empty unless asked for
};

/// Estimates patched − base of every node: Σ (other − base) · gradient over the node's values.
/// Returns [node, pair]; NaN where a node does not exist for a pair (position beyond its prompt).
///
/// Positions count in the clean prompt; a pair's token map says where they stand in the corrupted
/// one. Two forward passes and one backward pass per batch for all nodes; integrated gradients:
/// `ig_steps` of each along the inputs, and `ig_steps` per site (of its layer and those after it)
/// at the node. A value's estimate does not depend on the other pairs, nodes or threads.
/// Throws UsageError for nodes the model lacks, a metric of other pairs, and options out of range.
Attributed attribute_with_runs(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                               std::span<const Node> nodes, const AttributionOptions& options = {});
/// The scores alone.
std::vector<double> attribute(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                              std::span<const Node> nodes, const AttributionOptions& options = {});

/// How well an estimate agrees with exact patching on the same nodes, each with a 95 % percentile
/// bootstrap interval over nodes.
struct Agreement {
  struct Value {
    double value, low, high;  // NaN where undefined (a constant list has no correlation)
  };
  std::int64_t nodes = 0;  // those where neither list is NaN
  Value pearson;
  Value spearman;      // tied values share their mean rank
  Value sign;          // share of equal signs among the nodes where either is not 0
  Value top_k;         // overlap of the k largest magnitudes, as a share of k
  std::int64_t k = 0;  // min(k, nodes)
};
/// `resamples` draws of the nodes with replacement, from `seed`: the same on every machine, with
/// any number of threads. Throws UsageError for lists of different lengths and k < 1.
Agreement agreement(std::span<const double> estimate, std::span<const double> exact, std::int64_t k,
                    std::int64_t resamples, std::uint64_t seed);

/// `count` of `nodes` indices drawn without repeats, ascending; all if there are no more.
std::vector<std::size_t> sample_nodes(std::size_t nodes, std::size_t count, std::uint64_t seed);

/// Agreement on the nodes of one kind of site.
struct SiteAgreement {
  std::optional<SiteKind> kind;  // nothing: all nodes
  Agreement by_node;  // of the nodes' means over the pairs, as published correlations are
  Agreement by_pair;  // of every node in every pair
};
/// estimate, exact [node, pair]; the means skip pairs where either is NaN. First all nodes, then,
/// if there are several kinds, each in the order of its first node. `k`: at most; see Agreement.
std::vector<SiteAgreement> agreement_by_site(std::span<const Node> nodes,
                                             std::span<const double> estimate,
                                             std::span<const double> exact, std::int64_t k,
                                             std::int64_t resamples, std::uint64_t seed);

}  // namespace lamina
