#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "lamina/patching/circuit_run.h"
#include "lamina/patching/graph.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// How the score of an edge is estimated from gradients. With ℓ = −metric and a_u as CircuitRunner
/// defines it,
///   S[u, v] = mean over pairs of Σ_positions (a_u^ablated − a_u^clean) · g_v:
/// positive where ablating the edge lowers the metric. g_v is the gradient of ℓ at what v reads,
///   eap                  at the clean prompt (or the corrupted one);
///   eap_ig               mean over inputs x_corr + k/m · (x_clean − x_corr), k = 0 … m − 1;
///   eap_ig_activations   mean over runs of the clean prompt in which one layer's attention output,
///                        one MLP's output or the input is at a_corr + k/m · (a_clean − a_corr),
///                        k = 1 … m, and cut off from what it was computed from.
/// Source: hannamw/EAP-IG. Its scores are these divided by the batch size once more.
enum class EdgeGradient : std::uint8_t { eap, eap_ig, eap_ig_activations };

struct EdgeScoreOptions {
  EdgeGradient gradient = EdgeGradient::eap;
  BackwardRules rules;                     // {} = the gradient; BackwardRules::relp() = relevance
  bool at_corrupted = false;               // eap only: where the gradient is taken
  std::int64_t steps = 5;                  // m
  Ablation ablation = Ablation::patching;  // eap_ig and eap_ig_activations: patching only
  std::int64_t batch_tokens = 512;
  std::uint64_t memory = std::uint64_t{1} << 30;
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // pairs
};

/// Scores of all edges, [edge]. Grouped key and value heads count as one per query head. Throws
/// UsageError for options that exclude each other and models without edges (check_edge_model).
std::vector<double> score_edges(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                                const EdgeScoreOptions& options = {});

/// Exact scores: ℓ(G∖e) − ℓ(G) for every edge e of the whole graph G, mean over the pairs. [edge]
std::vector<double> exact_edge_scores(
    CircuitRunner& runner,
    const std::function<void(std::int64_t done, std::int64_t total)>& progress = {});

struct AcdcOptions {
  double threshold = 0.01;    // τ, in units of the metric
  std::int64_t at_once = 16;  // removals tried in one batch; the result does not depend on it
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // edges
};

/// The circuit that is left, and per edge what its removal did to ℓ when it was tried.
struct AcdcResult {
  EdgeMask circuit;
  std::vector<double> change;  // [edge]; 0 for edges that fell with their node, untried
  std::int64_t tried = 0;
};

/// Automatic circuit discovery: from the logits to the input, one edge at a time is ablated and
/// left out if ℓ rises by less than τ compared with the circuit so far. Edges into nodes that
/// nothing reads any more are left out untried.
/// Source: ArthurConmy/Automatic-Circuit-Discovery, with the metric of the call in the place of
/// its divergence from the plain model.
AcdcResult acdc(CircuitRunner& runner, const AcdcOptions& options = {});

/// One circuit's size and what it does.
struct CircuitPoint {
  double share = 0.0;
  std::int64_t asked = 0, edges = 0, nodes = 0;  // before and after pruning
  double metric = 0.0, faithfulness = 0.0, completeness = 0.0;
};
struct FaithfulnessResult {
  double full = 0.0, empty = 0.0;       // mean metric of the whole and the empty graph
  std::vector<CircuitPoint> by_signed;  // circuits of the highest scores, one per share
  std::vector<CircuitPoint> by_absolute;
  double cpr = 0.0, cpr_log = 0.0, cmd = 0.0, cmd_log = 0.0;
};
/// Runs the circuits of the ten shares (kCircuitShares) of a scored graph. `greedy`: chosen from
/// the logits upwards instead of by rank. `completeness`: also runs what is left without each.
FaithfulnessResult measure_faithfulness(
    CircuitRunner& runner, EdgeGraph graph, bool greedy = false, bool completeness = true,
    const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace lamina
