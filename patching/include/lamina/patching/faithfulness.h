#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "lamina/patching/graph.h"

namespace lamina {

/// Shares of the graph's edges at which circuits are measured.
/// Source: MIB's circuit track (hannamw/MIB-circuit-track).
inline constexpr std::array<double, 10> kCircuitShares = {.001, .002, .005, .01, .02,
                                                          .05,  .1,   .2,   .5,  1.0};

/// (circuit − empty) / (full − empty): 1 if the circuit does what the model does, 0 if it does what
/// is left when everything is ablated. With the metric of the complement of the circuit instead it
/// is the completeness (the lower, the more of the behaviour the circuit holds). NaN if full =
/// empty.
double faithfulness(double circuit, double empty, double full);

/// Area under a piecewise linear curve; `log_axis`: over ln x. UsageError for sizes that differ.
double curve_area(std::span<const double> x, std::span<const double> y, bool log_axis);

/// CPR: area under the faithfulness of circuits of the highest scores. CMD: area between the
/// faithfulness and 1 for circuits of the largest magnitudes.
double cpr(std::span<const double> shares, std::span<const double> faithfulness, bool log_axis);
double cmd(std::span<const double> shares, std::span<const double> faithfulness, bool log_axis);

/// Area under the ROC curve of |score| as a detector of `known` (0 or 1): every distinct value is a
/// threshold, the curve starts at (0, 0) and ends at (1, 1), equal scores share their part.
/// NaN if nothing or everything is known.
double auroc(std::span<const double> scores, std::span<const std::uint8_t> known);

/// The edge AUROC as MIB's circuit track computes it: greedy circuits at the ten shares, their
/// rates joined by straight lines, false-positive rates divided by the last, no origin.
double auroc_mib(EdgeGraph graph, const EdgeMask& known);

/// Score of a node where only edges have scores: the largest magnitude among the edges that leave
/// it. [source], input first.
std::vector<double> node_scores(const EdgeGraph& graph);

/// The circuit that a model is known to have.
struct KnownCircuit {
  EdgeMask edges;                     // [edge]
  EdgeMask counterfactual;            // [edge] those that differ between the prompts of a pair
  std::vector<std::uint8_t> nodes;    // [source]
  bool marks_counterfactual = false;  // the file says which edges those are
};

/// How well scores find a known circuit: honest AUROCs, see auroc(). Parts of the circuit that are
/// the same in both prompts of a pair can be found by no comparison of the two: `edges` and `nodes`
/// leave them out (a node differs if an edge that leaves it does), `all_edges` and `all_nodes`
/// count them.
struct KnownAuroc {
  double edges = 0.0, all_edges = 0.0, nodes = 0.0, all_nodes = 0.0;
};
KnownAuroc edge_auroc(const EdgeGraph& graph, const KnownCircuit& known);
/// The same for scores of nodes, [source − 1]: every source but the input, which is a part of every
/// circuit. Edges are NaN.
KnownAuroc node_auroc(std::span<const double> scores, const EdgeGraph& graph,
                      const KnownCircuit& known);

/// Reads circuit.json of the planted models, or a graph as EAP-IG writes it. `graph` gives the
/// names. Errors name the file and the thing.
KnownCircuit read_known_circuit(const std::filesystem::path& path, const EdgeGraph& graph);

}  // namespace lamina
