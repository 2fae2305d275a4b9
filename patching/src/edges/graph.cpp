#include "lamina/patching/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <queue>
#include <utility>

#include "lamina/core/checked.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::int64_t kMostEdges = std::int64_t{1} << 24;
constexpr std::int64_t kMostOfOneKind = 4096;  // layers, heads

// Reads a decimal number without sign or leading zeros off the front of `text`.
std::optional<std::int32_t> take_number(std::string_view& text) {
  std::int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || text.front() == '-' || (text.front() == '0' && end - text.data() > 1))
    return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

double rank_value(double score, bool absolute) {
  return absolute ? std::abs(score) : score;
}

}  // namespace

GraphShape GraphShape::of(const ModelConfig& config) {
  return {.n_layers = config.n_layers,
          .n_heads = config.n_heads,
          .d_model = config.d_model,
          .parallel = config.parallel,
          .mlps = config.d_mlp > 0};
}

std::int64_t EdgeGraph::count_edges(const GraphShape& shape) {
  const std::int64_t heads = shape.n_heads;
  const std::int64_t per_layer = heads + (shape.mlps ? 1 : 0);
  std::int64_t count = 0;
  for (std::int64_t l = 0; l < shape.n_layers; ++l) {
    const std::int64_t before = 1 + l * per_layer;
    count += 3 * heads * before;
    if (shape.mlps) count += before + (shape.parallel ? 0 : heads);
  }
  return count + 1 + shape.n_layers * per_layer;
}

EdgeGraph::EdgeGraph(const GraphShape& shape) : shape_(shape) {
  if (shape.n_layers < 1 || shape.n_layers > kMostOfOneKind || shape.n_heads < 1 ||
      shape.n_heads > kMostOfOneKind) {
    fail("graph: {} layers of {} heads; both must be 1 to {}", shape.n_layers, shape.n_heads,
         kMostOfOneKind);
  }
  // Cannot overflow: the sum has fewer than 2^12 terms below 2^40.
  const std::int64_t edges = count_edges(shape);
  if (edges > kMostEdges) {
    fail("graph: {} layers of {} heads have {} edges, the most allowed is {}", shape.n_layers,
         shape.n_heads, edges, kMostEdges);
  }
  const std::int64_t per_layer = shape.n_heads + (shape.mlps ? 1 : 0);
  sources_ = 1 + shape.n_layers * per_layer;

  graph_ = BoostGraph(static_cast<std::size_t>(sources_) + 1);
  for (std::int32_t l = 0; l < shape.n_layers; ++l) {
    for (std::int32_t h = 0; h < shape.n_heads; ++h) {
      graph_[head_source(l, h)] = {GraphNode::Kind::head, l, h};
    }
    if (shape.mlps) graph_[mlp_source(l)] = {GraphNode::Kind::mlp, l, -1};
  }
  graph_[sources_] = {GraphNode::Kind::logits, -1, -1, true};

  const std::int64_t reads = shape.n_layers * (3 * shape.n_heads + (shape.mlps ? 1 : 0)) + 1;
  first_edge_.push_back(0);
  by_id_.reserve(static_cast<std::size_t>(edges));
  read_of_edge_.reserve(static_cast<std::size_t>(edges));
  for (std::int64_t read = 0; read < reads; ++read) {
    const ReadPoint point = read_point(read);
    std::int64_t before = sources_;
    if (point.kind != ReadPoint::Kind::logits) {
      before = 1 + point.layer * per_layer;
      if (point.kind == ReadPoint::Kind::mlp && !shape.parallel) before += shape.n_heads;
    }
    const std::int64_t target = node_of_read(read);
    for (std::int64_t source = 0; source < before; ++source) {
      const auto id = static_cast<std::int64_t>(by_id_.size());
      by_id_.push_back(
          boost::add_edge(source, target, GraphEdge{.id = id, .input = point.kind}, graph_).first);
      read_of_edge_.push_back(static_cast<std::int32_t>(read));
    }
    first_edge_.push_back(static_cast<std::int64_t>(by_id_.size()));
  }
}

EdgeGraph::EdgeGraph(const EdgeGraph& other)
    : shape_(other.shape_),
      sources_(other.sources_),
      first_edge_(other.first_edge_),
      read_of_edge_(other.read_of_edge_),
      graph_(other.graph_) {
  collect_edges();
}

EdgeGraph& EdgeGraph::operator=(const EdgeGraph& other) {
  if (this == &other) return *this;
  shape_ = other.shape_;
  sources_ = other.sources_;
  first_edge_ = other.first_edge_;
  read_of_edge_ = other.read_of_edge_;
  graph_ = other.graph_;
  collect_edges();
  return *this;
}

void EdgeGraph::collect_edges() {
  by_id_.resize(boost::num_edges(graph_));
  const auto [first, last] = boost::edges(graph_);
  std::for_each(first, last, [this](const auto& edge) {
    by_id_[static_cast<std::size_t>(graph_[edge].id)] = edge;
  });
}

std::int64_t EdgeGraph::head_source(std::int32_t layer, std::int64_t head) const {
  return 1 + layer * (shape_.n_heads + (shape_.mlps ? 1 : 0)) + head;
}

std::int64_t EdgeGraph::mlp_source(std::int32_t layer) const {
  return 1 + layer * (shape_.n_heads + 1) + shape_.n_heads;
}

std::int64_t EdgeGraph::read_index(const ReadPoint& point) const {
  const std::int64_t per_layer = 3 * shape_.n_heads + (shape_.mlps ? 1 : 0);
  switch (point.kind) {
    case ReadPoint::Kind::logits:
      return shape_.n_layers * per_layer;
    case ReadPoint::Kind::mlp:
      return point.layer * per_layer + 3 * shape_.n_heads;
    default:
      return point.layer * per_layer + static_cast<std::int64_t>(point.kind) * shape_.n_heads +
             point.head;
  }
}

ReadPoint EdgeGraph::read_point(std::int64_t read) const {
  const std::int64_t per_layer = 3 * shape_.n_heads + (shape_.mlps ? 1 : 0);
  if (read == shape_.n_layers * per_layer) return {ReadPoint::Kind::logits, -1, -1};
  const auto layer = static_cast<std::int32_t>(read / per_layer);
  const std::int64_t within = read % per_layer;
  if (within == 3 * shape_.n_heads) return {ReadPoint::Kind::mlp, layer, -1};
  return {static_cast<ReadPoint::Kind>(within / shape_.n_heads), layer, within % shape_.n_heads};
}

std::int64_t EdgeGraph::node_of_read(std::int64_t read) const {
  const ReadPoint point = read_point(read);
  if (point.kind == ReadPoint::Kind::logits) return sources_;
  if (point.kind == ReadPoint::Kind::mlp) return mlp_source(point.layer);
  return head_source(point.layer, point.head);
}

std::string EdgeGraph::node_name(std::int64_t vertex) const {
  const GraphNode& node = graph_[vertex];
  switch (node.kind) {
    case GraphNode::Kind::input:
      return "input";
    case GraphNode::Kind::logits:
      return "logits";
    case GraphNode::Kind::mlp:
      return fmt::format("m{}", node.layer);
    default:
      return fmt::format("a{}.h{}", node.layer, node.head);
  }
}

std::string EdgeGraph::edge_name(std::int64_t id) const {
  const std::int64_t read = read_of_edge(id);
  std::string name = node_name(source_of_edge(id)) + "->" + node_name(node_of_read(read));
  const ReadPoint::Kind kind = read_point(read).kind;
  if (kind <= ReadPoint::Kind::v) name += fmt::format("<{}>", "qkv"[static_cast<int>(kind)]);
  return name;
}

std::optional<std::int64_t> EdgeGraph::find_node(std::string_view name) const {
  if (name == "input") return 0;
  if (name == "logits") return sources_;
  if (name.size() < 2 || (name.front() != 'a' && name.front() != 'm')) return std::nullopt;
  const bool head = name.front() == 'a';
  name.remove_prefix(1);
  const std::optional<std::int32_t> layer = take_number(name);
  if (!layer || *layer >= shape_.n_layers) return std::nullopt;
  if (!head) {
    if (!name.empty() || !shape_.mlps) return std::nullopt;
    return mlp_source(*layer);
  }
  if (!name.starts_with(".h") || name.size() < 3) return std::nullopt;
  name.remove_prefix(2);
  const std::optional<std::int32_t> index = take_number(name);
  if (!index || *index >= shape_.n_heads || !name.empty()) return std::nullopt;
  return head_source(*layer, *index);
}

std::optional<std::int64_t> EdgeGraph::find_edge(std::string_view name) const {
  const std::size_t arrow = name.find("->");
  if (arrow == std::string_view::npos) return std::nullopt;
  const std::optional<std::int64_t> source = find_node(name.substr(0, arrow));
  std::string_view rest = name.substr(arrow + 2);
  auto kind = ReadPoint::Kind::logits;
  bool letter = false;
  if (rest.size() > 3 && rest.back() == '>' && rest[rest.size() - 3] == '<') {
    const std::size_t which = std::string_view("qkv").find(rest[rest.size() - 2]);
    if (which == std::string_view::npos) return std::nullopt;
    kind = static_cast<ReadPoint::Kind>(which);
    letter = true;
    rest.remove_suffix(3);
  }
  const std::optional<std::int64_t> target = find_node(rest);
  if (!source || !target || *source == sources_) return std::nullopt;
  const GraphNode& node = graph_[*target];
  if (node.kind == GraphNode::Kind::input || letter != (node.kind == GraphNode::Kind::head))
    return std::nullopt;
  if (node.kind == GraphNode::Kind::mlp) kind = ReadPoint::Kind::mlp;
  const std::int64_t read = read_index({kind, node.layer, node.head});
  if (*source >= sources_of(read)) return std::nullopt;
  return edge_id(*source, read);
}

std::vector<double> EdgeGraph::scores() const {
  std::vector<double> scores;
  scores.reserve(by_id_.size());
  for (const auto& edge : by_id_) scores.push_back(graph_[edge].score);
  return scores;
}

void EdgeGraph::set_scores(std::span<const double> scores) {
  if (scores.size() != by_id_.size()) {
    fail_usage("graph: {} scores were given for {} edges", scores.size(), by_id_.size());
  }
  for (std::size_t i = 0; i < scores.size(); ++i) graph_[by_id_[i]].score = scores[i];
}

EdgeMask EdgeGraph::mask() const {
  EdgeMask mask;
  mask.reserve(by_id_.size());
  for (const auto& edge : by_id_) mask.push_back(graph_[edge].in_graph ? 1 : 0);
  return mask;
}

void EdgeGraph::set_mask(const EdgeMask& mask) {
  if (mask.size() != by_id_.size()) {
    fail_usage("graph: a circuit of {} edges was given for {}", mask.size(), by_id_.size());
  }
  for (std::size_t i = 0; i < mask.size(); ++i) graph_[by_id_[i]].in_graph = mask[i] != 0;
  mark_nodes();
}

void EdgeGraph::mark_nodes() {
  const auto used = [this](auto range) {
    return std::any_of(range.first, range.second,
                       [this](const auto& e) { return graph_[e].in_graph; });
  };
  for (std::int64_t vertex = 0; vertex < sources_; ++vertex) {
    // The input has no edges in front of it and needs none.
    graph_[vertex].in_graph = used(boost::out_edges(vertex, graph_)) &&
                              (vertex == 0 || used(boost::in_edges(vertex, graph_)));
  }
}

std::int64_t EdgeGraph::edges_in_graph() const {
  return std::count_if(by_id_.begin(), by_id_.end(),
                       [this](const auto& edge) { return graph_[edge].in_graph; });
}

std::int64_t EdgeGraph::nodes_in_graph() const {
  std::int64_t count = 0;
  for (std::int64_t vertex = 0; vertex < sources_; ++vertex) count += graph_[vertex].in_graph;
  return count;
}

std::int64_t EdgeGraph::prune() {
  // Vertices are in topological order: one sweep forwards settles who is reached from the front
  // and one backwards who reaches the logits, but each may undo the other; repeat until nothing
  // changes.
  const auto count = [this](auto range) {
    return std::count_if(range.first, range.second,
                         [this](const auto& e) { return graph_[e].in_graph; });
  };
  std::vector<std::int64_t> in(static_cast<std::size_t>(sources_)), out = in;
  std::vector<std::int64_t> dead;
  const auto check = [&](std::int64_t v) {
    if ((v != 0 && in[v] == 0 && out[v] > 0) || (out[v] == 0 && in[v] > 0)) dead.push_back(v);
  };
  for (std::int64_t v = 0; v < sources_; ++v) {
    in[v] = count(boost::in_edges(v, graph_));
    out[v] = count(boost::out_edges(v, graph_));
  }
  for (std::int64_t v = 0; v < sources_; ++v) check(v);
  std::int64_t removed = 0;
  while (!dead.empty()) {
    const std::int64_t v = dead.back();
    dead.pop_back();
    const auto drop = [&](const BoostGraph::edge_descriptor& e) {
      if (!graph_[e].in_graph) return;
      graph_[e].in_graph = false;
      ++removed;
      const auto from = static_cast<std::int64_t>(boost::source(e, graph_));
      const auto to = static_cast<std::int64_t>(boost::target(e, graph_));
      --out[from];
      if (from != v) check(from);
      if (to == sources_) return;
      --in[to];
      if (to != v) check(to);
    };
    const auto [in_first, in_last] = boost::in_edges(v, graph_);
    std::for_each(in_first, in_last, drop);
    const auto [out_first, out_last] = boost::out_edges(v, graph_);
    std::for_each(out_first, out_last, drop);
  }
  mark_nodes();
  return removed;
}

void EdgeGraph::keep(std::span<const std::int64_t> ids) {
  for (const auto& edge : by_id_) graph_[edge].in_graph = false;
  for (const std::int64_t id : ids) graph_[by_id_[id]].in_graph = true;
  prune();
}

void EdgeGraph::keep_top(std::int64_t edges, bool absolute) {
  if (edges < 0 || edges > this->edges()) {
    fail_usage("a circuit of {} edges was asked for, the graph has {}", edges, this->edges());
  }
  std::vector<std::int64_t> ids(by_id_.size());
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<double> score = scores();
  std::partial_sort(ids.begin(), ids.begin() + edges, ids.end(), [&](auto a, auto b) {
    const double x = rank_value(score[a], absolute), y = rank_value(score[b], absolute);
    return x != y ? x > y : a < b;
  });
  keep(std::span(ids).first(static_cast<std::size_t>(edges)));
}

void EdgeGraph::keep_greedy(std::int64_t edges, bool absolute) {
  if (edges < 0 || edges > this->edges()) {
    fail_usage("a circuit of {} edges was asked for, the graph has {}", edges, this->edges());
  }
  using Entry = std::pair<double, std::int64_t>;  // largest score first, then the smallest id
  std::priority_queue<Entry> open;
  const auto reach = [&](std::int64_t vertex) {
    const auto [first, last] = boost::in_edges(vertex, graph_);
    std::for_each(first, last, [&](const auto& e) {
      open.emplace(rank_value(graph_[e].score, absolute), -graph_[e].id);
    });
  };
  std::vector<bool> reached(static_cast<std::size_t>(sources_));
  std::vector<std::int64_t> ids;
  reach(sources_);
  while (static_cast<std::int64_t>(ids.size()) < edges && !open.empty()) {
    const std::int64_t id = -open.top().second;
    open.pop();
    ids.push_back(id);
    const std::int64_t source = source_of_edge(id);
    if (reached[source]) continue;
    reached[source] = true;
    reach(source);
  }
  keep(ids);
}

void EdgeGraph::keep_threshold(double threshold, bool absolute) {
  std::vector<std::int64_t> ids;
  for (const auto& edge : by_id_) {
    const GraphEdge& e = graph_[edge];
    if (rank_value(e.score, absolute) >= threshold) ids.push_back(e.id);
  }
  keep(ids);
}

}  // namespace lamina
