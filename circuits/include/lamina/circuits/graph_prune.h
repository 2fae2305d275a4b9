#pragma once

#include <cstdint>
#include <vector>

#include "lamina/circuits/attribution_graph.h"

// How much every node of an attribution graph matters to its logits, and what is left of a graph
// when little things go. Source: safety-research/circuit-tracer (graph.py): influence
// w (A + A² + …) with rows |A| / Σ|A| and w the probabilities of the logits.

namespace lamina {

/// Nodes so that every node stands behind all that act on it (sources first). Error naming a node
/// on a cycle.
std::vector<std::int32_t> source_order(const AttributionGraph& graph);

/// Influence of every node; a logit's own probability does not count. Exact, in one sweep from the
/// logits down. Error for graphs with a cycle or without a logit of positive probability.
std::vector<double> node_influence(const AttributionGraph& graph);

/// Two numbers between 0 and 1 of a whole graph; NaN where nothing flows.
struct GraphScores {
  /// Influence of the tokens over that of tokens and errors.
  double replacement = 0.0;
  /// Σ (1 − share of errors in a node's inputs) · (influence + w) / Σ (influence + w).
  double completeness = 0.0;
};
GraphScores graph_scores(const AttributionGraph& graph);

struct PruneOptions {
  double node_share = 0.8;   // of the influence that the nodes that stay have together
  double edge_share = 0.98;  // the same of the edges between them
};

/// The pruned graph: the nodes of the largest influence, all tokens and logits; then the edges of
/// the largest |share| · (influence + w); then features and errors that act on nothing and features
/// without inputs go, again and again. Sets CircuitNode::influence to the cumulative share. Errors
/// of shares outside 0 … 1: UsageError. Supernodes lose the nodes that went.
AttributionGraph prune(const AttributionGraph& graph, const PruneOptions& options = {});

/// The graph of some nodes, in their order, and the edges between them. `keep` [node].
AttributionGraph subgraph(const AttributionGraph& graph, const std::vector<std::uint8_t>& keep);

}  // namespace lamina
