#pragma once

#include <boost/graph/adjacency_list.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/config.h"

namespace lamina {

/// What decides which nodes and edges a graph has.
struct GraphShape {
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;  // query heads
  std::int64_t d_model = 0;  // carried along for EAP-IG's files
  bool parallel = false;     // attention and MLP of a layer read the same residual stream
  bool mlps = true;          // false: attention only

  static GraphShape of(const ModelConfig& config);
  bool operator==(const GraphShape&) const = default;
};

/// A component that reads the residual stream, writes to it, or both.
struct GraphNode {
  enum class Kind : std::uint8_t { input, head, mlp, logits };
  Kind kind = Kind::input;
  std::int32_t layer = -1;  // −1 for input and logits
  std::int32_t head = -1;
  bool in_graph = false;
};

/// What one node writes, as one input of another reads it.
struct GraphEdge {
  std::int64_t id = -1;  // see EdgeGraph
  ReadPoint::Kind input = ReadPoint::Kind::logits;
  double score = 0.0;
  bool in_graph = false;
};

using BoostGraph =
    boost::adjacency_list<boost::vecS, boost::vecS, boost::bidirectionalS, GraphNode, GraphEdge>;

/// Which edges belong to a circuit: one byte per edge id.
using EdgeMask = std::vector<std::uint8_t>;

/// The graph of all direct effects of a model: nodes `input`, `a{l}.h{h}`, `m{l}`, `logits`; an
/// edge from every node to each input (q, k, v of a head, MLP, logits) of every node behind it.
///
/// Sources (nodes that write) are numbered as they run: input, then per layer the heads and the
/// MLP. Reads are numbered per layer q of all heads, k, v, MLP, at last the logits. The edges into
/// read r come from the sources 0 … sources_of(r) − 1 and have consecutive ids.
/// Source of names and numbering: EAP-IG (hannamw/EAP-IG).
class EdgeGraph {
 public:
  /// Throws Error for sizes that are not positive or a graph of more than 16 million edges.
  explicit EdgeGraph(const GraphShape& shape);
  EdgeGraph(const EdgeGraph& other);
  EdgeGraph& operator=(const EdgeGraph& other);
  ~EdgeGraph() = default;

  const GraphShape& shape() const { return shape_; }
  /// 3·H·(1 + l·(H + 1)) + 1 + l·(H + 1) + H edges for layer l, 1 + L·(H + 1) into the logits; in
  /// parallel blocks without the lone H; without MLPs 3·H·(1 + l·H) and 1 + L·H.
  static std::int64_t count_edges(const GraphShape& shape);

  std::int64_t sources() const { return sources_; }
  std::int64_t reads() const { return static_cast<std::int64_t>(first_edge_.size()) - 1; }
  std::int64_t edges() const { return first_edge_.back(); }

  std::int64_t head_source(std::int32_t layer, std::int64_t head) const;
  std::int64_t mlp_source(std::int32_t layer) const;
  std::int64_t read_index(const ReadPoint& point) const;
  ReadPoint read_point(std::int64_t read) const;
  /// How many sources stand before a read.
  std::int64_t sources_of(std::int64_t read) const {
    return first_edge_[read + 1] - first_edge_[read];
  }
  std::int64_t first_edge(std::int64_t read) const { return first_edge_[read]; }
  std::int64_t edge_id(std::int64_t source, std::int64_t read) const {
    return first_edge_[read] + source;
  }
  std::int64_t source_of_edge(std::int64_t id) const { return id - first_edge_[read_of_edge(id)]; }
  std::int64_t read_of_edge(std::int64_t id) const { return read_of_edge_[id]; }

  /// "a3.h2", "m0" …: vertex `source` of the graph; sources() is the logits.
  std::string node_name(std::int64_t vertex) const;
  /// "a0.h1->a3.h2<k>", "m0->m1", "input->logits" …
  std::string edge_name(std::int64_t id) const;
  /// nullopt for a name that this graph does not have.
  std::optional<std::int64_t> find_node(std::string_view name) const;
  std::optional<std::int64_t> find_edge(std::string_view name) const;

  /// The Boost graph: vertices are the sources and, last, the logits.
  const BoostGraph& graph() const { return graph_; }
  const GraphEdge& edge(std::int64_t id) const { return graph_[by_id_[id]]; }
  const GraphNode& node(std::int64_t vertex) const { return graph_[vertex]; }

  std::vector<double> scores() const;
  void set_scores(std::span<const double> scores);  // [edges]
  EdgeMask mask() const;
  /// Sets the circuit; nodes with an edge in it on each side they have count as in the graph.
  void set_mask(const EdgeMask& mask);

  std::int64_t edges_in_graph() const;
  std::int64_t nodes_in_graph() const;  // without the logits, as EAP-IG counts

  /// Circuits from the scores. All replace the circuit there was and prune it; ties go to the
  /// smaller id. `absolute`: by magnitude. UsageError for more edges than there are.
  void keep_top(std::int64_t edges, bool absolute);
  /// Edges from the logits upwards: always the best edge into a node that is already reached.
  void keep_greedy(std::int64_t edges, bool absolute);
  void keep_threshold(double threshold, bool absolute);  // score ≥ threshold

  /// Removes nodes without an edge on one of their sides, with their other edges, until none is
  /// left. Returns how many edges went.
  std::int64_t prune();

 private:
  void keep(std::span<const std::int64_t> ids);
  void mark_nodes();
  void collect_edges();
  std::int64_t node_of_read(std::int64_t read) const;

  GraphShape shape_;
  std::int64_t sources_ = 0;
  std::vector<std::int64_t> first_edge_;    // [read + 1]
  std::vector<std::int32_t> read_of_edge_;  // [edge]
  BoostGraph graph_;
  std::vector<BoostGraph::edge_descriptor> by_id_;  // into graph_: a copy has its own
};

/// EAP-IG's graph file. Reading accepts what its Graph.to_json writes (node scores are read over);
/// errors name the file and the thing: unknown nodes and edges, scores that are no finite numbers,
/// neuron-level circuits, sizes beyond the caps, files larger than 2 GiB.
EdgeGraph read_graph(const std::filesystem::path& path);
std::string graph_json(const EdgeGraph& graph);

}  // namespace lamina
