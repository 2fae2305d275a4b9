#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

// Feature circuits: dictionaries are spliced into the model, x = reconstruction + error, and every
// feature and every error is a node whose effect on a metric is estimated, measured and tested.
// Letters: P pairs, N nodes, F features of a dictionary, D width of the site it rebuilds.
// Source: Marks et al. 2024, "Sparse Feature Circuits" (code saprmarks/feature-circuits).

namespace lamina {

/// A node's `position` when it stands for all positions together.
inline constexpr std::int32_t kAllPositions = std::numeric_limits<std::int32_t>::min();
/// A node's `feature` when it is what the dictionary gets wrong (one node for the whole vector).
inline constexpr std::int32_t kErrorNode = -1;

/// A feature or the error of one dictionary, at one position or at all together.
struct FeatureNode {
  std::int32_t dictionary = 0;  // index into FeatureStudy::dictionaries
  /// kAllPositions; from the end of the clean prompt (−1 is its last token) or, where positions are
  /// counted from the start, ≥ 0.
  std::int32_t position = kAllPositions;
  std::int32_t feature = kErrorNode;
  auto operator<=>(const FeatureNode&) const = default;
};
/// "blocks.3.hook_resid_post/17", "blocks.3.hook_resid_post/error", with "@-1" behind it for a
/// position.
std::string feature_node_name(const FeatureNode& node, std::span<const Transcoder> dictionaries);

/// A model with its dictionaries, and the pairs whose metric is explained. All must outlive it.
struct FeatureStudy {
  Forward& forward;
  std::span<const Transcoder> dictionaries;
  std::span<const Pair> pairs;
  const Metric& metric;
};
/// UsageError, naming the dictionary, for no dictionaries, two that rebuild one site, a site that
/// belongs to no layer or has no rows of tokens, places behind a norm's weights, skip transcoders
/// (their reconstruction is not that of the features) and inputs that are read after the site that
/// is rebuilt; for no pairs and a metric of other pairs.
void check_feature_study(const FeatureStudy& study);

/// What stands in for a node's value.
enum class FeatureBaseline : std::uint8_t {
  pair,  ///< its value in the pair's corrupted prompt, at the same position
  zero,  ///< 0: features off, no error
  mean,  ///< its mean over the pairs' corrupted prompts at this position
};
std::string_view feature_baseline_name(FeatureBaseline baseline);
/// UsageError that lists the names.
FeatureBaseline parse_feature_baseline(std::string_view name);

/// How effects are estimated. With f the node's value in the clean run, f′ its baseline and w its
/// decoder row (for errors: the vectors themselves), (f − f′) · w · g, where g at the site is
enum class FeatureMethod : std::uint8_t {
  atp,   ///< the gradient of the metric in the clean run
  ig,    ///< its mean while the site moves from clean to baseline, all positions together,
         ///< α = k/steps, k = 0 … steps − 1 (Marks et al.)
  relp,  ///< the backward pass under relevance rules in the clean run
};
std::string_view feature_method_name(FeatureMethod method);
/// UsageError that lists the names.
FeatureMethod parse_feature_method(std::string_view name);

/// Where a prompt's positions are counted from: pairs of different lengths meet there.
enum class CountFrom : std::uint8_t { end, start };

struct FeatureEffectOptions {
  std::vector<FeatureMethod> methods = {FeatureMethod::atp, FeatureMethod::ig, FeatureMethod::relp};
  BackwardRules relp_rules = BackwardRules::relp();
  std::int64_t ig_steps = 10;
  FeatureBaseline baseline = FeatureBaseline::pair;
  bool by_position = false;  // a node per position, or one for all
  CountFrom count_from = CountFrom::end;
  std::int64_t batch_tokens = 256;  // at least one pair; changes no bit of the result
  /// Pairs done, of which how many passes over a pair there are in all.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct FeatureEffects {
  FeatureEffectOptions options;
  std::vector<FeatureNode> nodes;  // ascending; those whose value differs from its baseline in at
                                   // least one pair: the others' effect is exactly 0
  std::vector<double> effects;     // [method, node], mean over the pairs that have the position
  std::vector<double> clean, corrupted;  // metric of the plain runs, [pair]

  std::span<const double> of(std::size_t method) const {
    return std::span(effects).subspan(method * nodes.size(), nodes.size());
  }
};

/// Estimates metric(clean) − metric(clean run with the node at its baseline) of every node:
/// positive for nodes that help the metric. The splice changes nothing in the clean run and passes
/// gradients through as they are. Forward and backward passes per batch: atp 1, relp 1, ig
/// `ig_steps` for every dictionary (of its layer and those behind it). Independent of batches and
/// threads, bit for bit.
FeatureEffects feature_effects(const FeatureStudy& study, const FeatureEffectOptions& options = {});

struct FeatureRunOptions {
  FeatureBaseline baseline = FeatureBaseline::mean;
  CountFrom count_from = CountFrom::end;
  std::int64_t batch_tokens = 512;  // at least one pair or patched run; changes no bit
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // runs of pairs
};

/// The same effects measured: a run for every node and pair, with the node at its baseline. [node],
/// mean over the pairs that have the position; NaN if none has.
std::vector<double> exact_feature_effects(const FeatureStudy& study,
                                          std::span<const FeatureNode> nodes,
                                          const FeatureRunOptions& options = {});

/// How much of a node's effect passes directly to another node, without passing a third: with s the
/// downstream node's value times the metric's gradient there (as `method` has it), summed over
/// positions, the edge is (f − f′) · w · ∂s/∂site of the upstream node, in the clean run, nothing
/// flowing back through sites of dictionaries in between. Downstream features pass gradients where
/// they are active, through their encoder row; the metric is a node too.
/// Source: Marks et al. 2024.
struct FeatureEdges {
  std::vector<FeatureNode> nodes;
  std::vector<double> weights;  // [to, from], to = nodes.size(): the metric; 0 without an edge
  double at(std::size_t to, std::size_t from) const { return weights[to * nodes.size() + from]; }
};
/// The edges between some nodes, mean over the pairs that have both positions. One backward pass
/// over the pairs for every node. RelP's rules hold between nodes too. UsageError for transcoders:
/// what they read is not what they rebuild.
FeatureEdges feature_edges(const FeatureStudy& study, const FeatureEffectOptions& options,
                           FeatureMethod method, std::span<const FeatureNode> nodes);

/// What becomes of the error nodes when a circuit runs.
enum class ErrorNodes : std::uint8_t {
  ranked,  ///< as every other node
  keep,    ///< they are all kept
  remove,  ///< they are all at their baseline
};
std::string_view error_nodes_name(ErrorNodes errors);
/// UsageError that lists the names.
ErrorNodes parse_error_nodes(std::string_view name);

/// Some nodes, or all but some.
struct FeatureCircuit {
  std::vector<FeatureNode> nodes;
  bool complement = false;
  ErrorNodes errors = ErrorNodes::ranked;
  auto operator<=>(const FeatureCircuit&) const = default;
};

/// Runs the clean prompts with every node outside the circuit at its baseline, site after site:
/// features are encoded from what the changed run gives. Returns the metric, [circuit, pair].
/// Everything kept is the plain run bit for bit; with FeatureBaseline::pair and a dictionary of the
/// last layer's residual stream, nothing kept is the corrupted one.
/// UsageError for nodes of one dictionary of which some have a position and some have none.
std::vector<double> run_feature_circuits(const FeatureStudy& study,
                                         std::span<const FeatureCircuit> circuits,
                                         const FeatureRunOptions& options = {});

/// The nodes with |effect| > threshold, ascending.
std::vector<FeatureNode> nodes_above(const FeatureEffects& effects, std::size_t method,
                                     double threshold);
/// The `count` nodes of the largest |effect|, ascending; ties: the earlier node.
std::vector<FeatureNode> largest_nodes(const FeatureEffects& effects, std::size_t method,
                                       std::int64_t count);

/// One circuit C of a sweep. With ∅ the run with every node at its baseline and M the model,
/// faithfulness = (m(C) − m(∅)) / (m(M) − m(∅)), completeness the same of everything but C: the
/// lower, the more of the behaviour is in C.
struct FeatureCircuitPoint {
  std::int64_t nodes = 0, errors = 0;  // errors: how many of the nodes are errors
  double metric = 0, faithfulness = 0;
  double complement_metric = 0, completeness = 0;
};

struct FeatureSweep {
  std::vector<double> thresholds;
  std::vector<std::int64_t> counts;
  double full = 0, empty = 0;  // m(M), m(∅)
  /// [method, threshold] and [method, count].
  std::vector<FeatureCircuitPoint> by_threshold, by_count;
};

/// Circuits of the nodes above every threshold and of every number of the largest nodes, by every
/// method of `effects`. Each distinct circuit runs once. `study` may have other pairs than those
/// that `effects` are of.
FeatureSweep sweep_feature_circuits(const FeatureStudy& study, const FeatureEffects& effects,
                                    std::span<const double> thresholds,
                                    std::span<const std::int64_t> counts, ErrorNodes errors,
                                    const FeatureRunOptions& options = {});

}  // namespace lamina
