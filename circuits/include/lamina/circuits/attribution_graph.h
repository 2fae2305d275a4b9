#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/replacement.h"

// Attribution graphs: what every source of a replacement model adds to every later feature and to
// the largest logits. Source: safety-research/circuit-tracer (nodes, ranking, order).

namespace lamina {

enum class CircuitNodeKind : std::uint8_t { feature, error, token, logit };
std::string_view circuit_node_kind_name(CircuitNodeKind kind);

struct CircuitNode {
  CircuitNodeKind kind = CircuitNodeKind::feature;
  std::int32_t layer = -1;  // −1 for tokens, the number of layers for logits
  std::int32_t position = 0;
  std::int64_t index = 0;       // feature, token id, id of the logit; −1 for errors
  double activation = 0.0;      // of a feature
  double pre_activation = 0.0;  // of a feature; a logit's distance from the mean logit, no cap
  double bias = 0.0;            // what is left of it with every source at zero
  double probability = 0.0;     // of a logit
  double influence = kUnknown;  // share of the influence that nodes up to this one have together
  std::string id;               // unique in a graph
  std::string label;

  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
};

/// The edges into one node, sources ascending. No edge has weight 0.
struct IncomingEdges {
  std::vector<std::int32_t> source;  // index into AttributionGraph::nodes
  std::vector<float> weight;         // what the source adds to the node's pre-activation
};

/// A group of nodes with a name.
struct Supernode {
  std::string name;
  std::vector<std::string> members;  // node ids
};

struct AttributionGraph {
  std::string slug, scan, prompt, model;
  std::vector<std::string> tokens;  // of the prompt, as text
  std::int64_t n_layers = 0;
  double node_share = CircuitNode::kUnknown, edge_share = CircuitNode::kUnknown;  // pruned to
  std::vector<CircuitNode> nodes;       // features, errors, tokens, logits
  std::vector<IncomingEdges> incoming;  // [node]
  std::vector<Supernode> supernodes;

  std::int64_t edges() const;
  std::int64_t count(CircuitNodeKind kind) const;
  /// −1 if there is none.
  std::int64_t find(std::string_view id) const;
};

struct AttributeOptions {
  double logit_share = 0.95;      // logits until their probabilities reach this …
  std::int64_t max_logits = 10;   // … at most so many
  std::int64_t max_features = 0;  // the most influential ones; 0 = all
  std::int64_t batch_tokens = 8192;  // of the prompt's copies in one backward pass
  std::int64_t rank_every = 1024;  // features attributed between two rankings (with max_features)
  std::uint64_t memory = std::uint64_t{1} << 30;                        // of the tape
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // targets
};

/// One logit as a linear read-out: value = direction · normalised residual + constant = the logit
/// before a soft-cap minus the mean logit.
struct LogitReadout {
  std::int32_t token = 0;
  double probability = 0.0;
  std::vector<float> direction;  // [D], norm weights applied
  double constant = 0.0;
  double value(const ReplacementRun& run) const;
};

/// The most likely next tokens, until their probabilities add up to `share`, at most `most`.
std::vector<LogitReadout> salient_logits(const Replacement& replacement, double share,
                                         std::int64_t most);

/// The graph of a replacement model, by one backward pass per batch of targets. Nodes: features
/// (sorted by layer, position, feature), errors (layer by layer), tokens, logits. The weights into
/// a node and its bias add up to its pre-activation, as long as no feature is left out.
AttributionGraph attribute(Replacement& replacement, const AttributeOptions& options = {});

}  // namespace lamina
