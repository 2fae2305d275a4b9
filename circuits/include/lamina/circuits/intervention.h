#pragma once

#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/attribution_graph.h"

// Steering and ablating features, groups of them, errors and tokens: what the graph predicts
// against what the model does.

namespace lamina {

/// The source of the replacement model that a node of its graph is. UsageError for logits and nodes
/// that it does not have.
SourceChange source_change(const Replacement& replacement, const CircuitNode& node, double factor);

/// "NAME=FACTOR": nodes whose id is NAME (* as in read_supernodes), or the members of the supernode
/// of that name, made FACTOR times what they are; "NAME" alone ablates. Indices into graph.nodes.
/// UsageError for names that match nothing, logits among them, factors that are no finite number.
struct NodeChange {
  std::int32_t node = 0;
  double factor = 0.0;
};
std::vector<NodeChange> parse_node_changes(std::span<const std::string> texts,
                                           const AttributionGraph& graph);

/// How much every node's pre-activation moves, [node] (tokens and errors: 0), if the graph is
/// right. `through`: features that are moved pass it on (constrained runs; right as long as no
/// feature turns on or off); otherwise only what the changed sources do directly.
std::vector<double> predict_changes(const AttributionGraph& graph,
                                    std::span<const NodeChange> changes, bool through);

/// Predicted and measured effects of one change.
struct ChangeCheck {
  Freedom freedom = Freedom::direct;
  std::vector<double> predicted, measured;  // [node]; 0 for errors and tokens
  std::vector<double> probability;          // [logit node] after the change
  double correlation = 0.0;  // over features and logits that are not changed; NaN if nothing moves
  double worst = 0.0;        // largest |measured − predicted| over the largest |predicted|
  std::int64_t turned_off = 0;  // features of the graph that were active and are not any more
  std::vector<float> logits;    // [d_out] after the change
};
/// The predictions of `direct` runs are direct ones, all others go through the features.
ChangeCheck check_changes(const Replacement& replacement, const AttributionGraph& graph,
                          std::span<const NodeChange> changes, Freedom freedom);

}  // namespace lamina
