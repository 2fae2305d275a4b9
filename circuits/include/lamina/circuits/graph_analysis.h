#pragma once

#include <boost/graph/adjacency_list.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/attribution_graph.h"

// Operations on attribution graphs, on Boost.Graph. A share is an edge's part of what acts on its
// target: |weight| / Σ |weight| of the edges into it, of the graph at hand.

namespace lamina {

struct CircuitArc {
  double weight = 0.0;
  double share = 0.0;
  double distance = 0.0;  // −log share + 1e-12 (above 0): the strongest path is the shortest
};
/// Vertices are node indices.
using CircuitBoostGraph = boost::adjacency_list<boost::vecS, boost::vecS, boost::bidirectionalS,
                                                boost::no_property, CircuitArc>;
CircuitBoostGraph boost_graph(const AttributionGraph& graph);

/// A way through the graph, from a source to a target.
struct CircuitPath {
  std::vector<std::int32_t> nodes;
  double strength = 0.0;  // product of the shares
  double effect = 0.0;    // product of the shares with the signs of the weights
};
/// The `count` strongest ways from any of `sources` to any of `targets`, strongest first. Error for
/// graphs with a cycle.
std::vector<CircuitPath> strongest_paths(const AttributionGraph& graph,
                                         std::span<const std::int32_t> sources,
                                         std::span<const std::int32_t> targets, std::int64_t count);

/// What must go so that no way is left from `sources` to `targets`: nodes (as few as possible,
/// sources and targets stay; an edge from a source to a target must go itself) or edges (the least
/// sum of |weight|).
struct CircuitCut {
  std::vector<std::int32_t> nodes;                           // node cut
  std::vector<std::pair<std::int32_t, std::int32_t>> edges;  // source, target
  double value = 0.0;                                        // number or sum
};
CircuitCut node_cut(const AttributionGraph& graph, std::span<const std::int32_t> sources,
                    std::span<const std::int32_t> targets);
CircuitCut edge_cut(const AttributionGraph& graph, std::span<const std::int32_t> sources,
                    std::span<const std::int32_t> targets);

struct Centrality {
  std::vector<double> in_strength, out_strength;  // Σ |weight|
  std::vector<double> betweenness;  // share of strongest paths through a node, summed over pairs
};
Centrality centrality(const AttributionGraph& graph);

/// Communities by Louvain's method on |weight|, directions aside, nodes in order: numbered 0 … by
/// their first node. Deterministic. Source: Blondel et al. 2008.
struct Communities {
  std::vector<std::int32_t> of;  // [node]
  std::int64_t count = 0;
  double modularity = 0.0;
};
Communities communities(const AttributionGraph& graph, double resolution = 1.0);

/// Nodes by id, with the weights of all graphs averaged (a graph without an edge has 0 there).
/// Numbers of nodes are those of the first graph that has them. Error for graphs whose ids mean
/// different nodes.
AttributionGraph merge_graphs(std::span<const AttributionGraph> graphs);

struct GraphComparison {
  std::int64_t nodes_both = 0, nodes_first = 0, nodes_second = 0;  // in both, only in one
  std::int64_t edges_both = 0, edges_first = 0, edges_second = 0;
  double node_jaccard = 0.0, edge_jaccard = 0.0;
  double weight_correlation = 0.0;  // Pearson, over edges in both; NaN for less than two
  struct Edge {
    std::string source, target;
    double first = 0.0, second = 0.0;  // weights, 0 = absent
  };
  std::vector<Edge> largest_changes;  // by |second − first|
};
GraphComparison compare_graphs(const AttributionGraph& first, const AttributionGraph& second,
                               std::int64_t show = 10);

/// The graph with every supernode as one node (id "supernode-NAME"); weights into and out of its
/// members are added up, those inside it dropped.
AttributionGraph collapse_supernodes(const AttributionGraph& graph);

}  // namespace lamina
