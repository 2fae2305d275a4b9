#include <algorithm>
#include <boost/graph/push_relabel_max_flow.hpp>
#include <cmath>

#include "lamina/circuits/graph_analysis.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using Traits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
using FlowGraph = boost::adjacency_list<
    boost::vecS, boost::vecS, boost::directedS, boost::no_property,
    boost::property<
        boost::edge_capacity_t, std::int64_t,
        boost::property<boost::edge_residual_capacity_t, std::int64_t,
                        boost::property<boost::edge_reverse_t, Traits::edge_descriptor>>>>;

void add_arc(FlowGraph& g, std::size_t from, std::size_t to, std::int64_t capacity) {
  const auto there = boost::add_edge(from, to, g).first, back = boost::add_edge(to, from, g).first;
  boost::put(boost::edge_capacity, g, there, capacity);
  boost::put(boost::edge_capacity, g, back, 0);
  boost::put(boost::edge_reverse, g, there, back);
  boost::put(boost::edge_reverse, g, back, there);
}

// Vertices on the side of `source` after the flow.
std::vector<std::uint8_t> source_side(FlowGraph& g, std::size_t source, std::size_t sink) {
  boost::push_relabel_max_flow(g, source, sink);
  std::vector<std::uint8_t> reached(boost::num_vertices(g));
  std::vector<std::size_t> stack{source};
  reached[source] = 1;
  while (!stack.empty()) {
    const std::size_t v = stack.back();
    stack.pop_back();
    for (auto [e, end] = boost::out_edges(v, g); e != end; ++e) {
      const std::size_t to = boost::target(*e, g);
      if (reached[to] != 0 || boost::get(boost::edge_residual_capacity, g, *e) == 0) continue;
      reached[to] = 1;
      stack.push_back(to);
    }
  }
  return reached;
}

std::vector<std::uint8_t> marked(const AttributionGraph& graph, std::span<const std::int32_t> nodes,
                                 const char* what) {
  std::vector<std::uint8_t> flags(graph.nodes.size());
  if (nodes.empty()) fail_usage("a path or cut needs at least one {}", what);
  for (std::int32_t n : nodes) {
    if (n < 0 || n >= static_cast<std::int32_t>(flags.size()))
      fail_usage("{} {} of a graph of {} nodes", what, n, flags.size());
    flags[static_cast<std::size_t>(n)] = 1;
  }
  return flags;
}

void check_apart(const AttributionGraph& graph, const std::vector<std::uint8_t>& a,
                 const std::vector<std::uint8_t>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] != 0 && b[i] != 0)
      fail_usage("node {} is source and target: nothing cuts it", graph.nodes[i].id);
}

}  // namespace

CircuitBoostGraph boost_graph(const AttributionGraph& graph) {
  CircuitBoostGraph g(graph.nodes.size());
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    double sum = 0;
    for (float w : in.weight) sum += std::abs(w);
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      const double share = std::abs(in.weight[e]) / sum;
      boost::add_edge(static_cast<std::size_t>(in.source[e]), t,
                      CircuitArc{in.weight[e], share, 1e-12 - std::log(share)}, g);
    }
  }
  return g;
}

std::vector<CircuitPath> strongest_paths(const AttributionGraph& graph,
                                         std::span<const std::int32_t> sources,
                                         std::span<const std::int32_t> targets,
                                         std::int64_t count) {
  if (count < 1) fail_usage("at least one path must be asked for, got {}", count);
  const std::vector<std::uint8_t> from = marked(graph, sources, "source");
  marked(graph, targets, "target");
  const CircuitBoostGraph g = boost_graph(graph);
  // The strongest ways that end in a node, each by its last edge.
  struct Way {
    double strength = 1.0, effect = 1.0;
    std::int32_t before = -1;
    std::size_t rank = 0;
  };
  const auto stronger = [](const Way& a, const Way& b) {
    return a.strength != b.strength ? a.strength > b.strength
                                    : std::pair(a.before, a.rank) < std::pair(b.before, b.rank);
  };
  std::vector<std::vector<Way>> ways(graph.nodes.size());
  for (std::int32_t v : source_order(graph)) {
    std::vector<Way>& mine = ways[static_cast<std::size_t>(v)];
    if (from[static_cast<std::size_t>(v)] != 0) mine.push_back({});
    for (auto [e, end] = boost::in_edges(static_cast<std::size_t>(v), g); e != end; ++e) {
      const auto before = boost::source(*e, g);
      const CircuitArc& arc = g[*e];
      for (std::size_t r = 0; r < ways[before].size(); ++r) {
        const Way& w = ways[before][r];
        mine.push_back({w.strength * arc.share,
                        w.effect * (arc.weight < 0 ? -arc.share : arc.share),
                        static_cast<std::int32_t>(before), r});
      }
    }
    const auto some = std::min(mine.size(), static_cast<std::size_t>(count));
    std::partial_sort(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(some), mine.end(),
                      stronger);
    mine.resize(some);
    mine.shrink_to_fit();
  }
  std::vector<CircuitPath> paths;
  for (std::int32_t t : targets) {
    for (const Way& last : ways[static_cast<std::size_t>(t)]) {
      if (last.before < 0) continue;  // a source that is a target
      CircuitPath path{.nodes = {t}, .strength = last.strength, .effect = last.effect};
      for (const Way* w = &last; w->before >= 0;) {
        path.nodes.push_back(w->before);
        w = &ways[static_cast<std::size_t>(w->before)][w->rank];
      }
      std::reverse(path.nodes.begin(), path.nodes.end());
      paths.push_back(std::move(path));
    }
  }
  std::stable_sort(paths.begin(), paths.end(),
                   [](const auto& a, const auto& b) { return a.strength > b.strength; });
  if (static_cast<std::int64_t>(paths.size()) > count)
    paths.resize(static_cast<std::size_t>(count));
  return paths;
}

CircuitCut edge_cut(const AttributionGraph& graph, std::span<const std::int32_t> sources,
                    std::span<const std::int32_t> targets) {
  const auto from = marked(graph, sources, "source"), to = marked(graph, targets, "target");
  check_apart(graph, from, to);
  const std::size_t n = graph.nodes.size();
  // Flows in whole numbers, 2^50 for the sum of all weights: doubles would leave crumbs behind.
  double all = 0.0;
  for (const IncomingEdges& in : graph.incoming)
    for (float w : in.weight) all += std::abs(w);
  constexpr std::int64_t kWhole = std::int64_t{1} << 50, kEndless = std::int64_t{1} << 60;
  FlowGraph g(n + 2);
  for (std::size_t i = 0; i < n; ++i) {
    if (from[i] != 0) add_arc(g, n, i, kEndless);
    if (to[i] != 0) add_arc(g, i, n + 1, kEndless);
    for (std::size_t e = 0; e < graph.incoming[i].source.size(); ++e)
      add_arc(g, static_cast<std::size_t>(graph.incoming[i].source[e]), i,
              1 + std::llround(std::abs(graph.incoming[i].weight[e]) / all * kWhole));
  }
  const auto side = source_side(g, n, n + 1);
  CircuitCut cut;
  for (std::size_t t = 0; t < n; ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      if (side[static_cast<std::size_t>(in.source[e])] == 0 || side[t] != 0) continue;
      cut.edges.emplace_back(in.source[e], static_cast<std::int32_t>(t));
      cut.value += std::abs(in.weight[e]);
    }
  }
  return cut;
}

CircuitCut node_cut(const AttributionGraph& graph, std::span<const std::int32_t> sources,
                    std::span<const std::int32_t> targets) {
  const auto from = marked(graph, sources, "source"), to = marked(graph, targets, "target");
  check_apart(graph, from, to);
  const std::size_t n = graph.nodes.size();
  const std::int64_t endless = static_cast<std::int64_t>(n) + 1 + graph.edges();
  // Node i is the arc 2i → 2i + 1; only an edge between the ends may be cut itself.
  FlowGraph g(2 * n + 2);
  for (std::size_t i = 0; i < n; ++i) {
    const bool end = from[i] != 0 || to[i] != 0;
    add_arc(g, 2 * i, 2 * i + 1, end ? endless : 1);
    if (from[i] != 0) add_arc(g, 2 * n, 2 * i, endless);
    if (to[i] != 0) add_arc(g, 2 * i + 1, 2 * n + 1, endless);
    for (std::int32_t s : graph.incoming[i].source) {
      const bool direct = from[static_cast<std::size_t>(s)] != 0 && to[i] != 0;
      add_arc(g, 2 * static_cast<std::size_t>(s) + 1, 2 * i, direct ? 1 : endless);
    }
  }
  const auto side = source_side(g, 2 * n, 2 * n + 1);
  CircuitCut cut;
  for (std::size_t t = 0; t < n; ++t) {
    if (side[2 * t] != 0 && side[2 * t + 1] == 0) cut.nodes.push_back(static_cast<std::int32_t>(t));
    for (std::int32_t s : graph.incoming[t].source)
      if (side[2 * static_cast<std::size_t>(s) + 1] != 0 && side[2 * t] == 0)
        cut.edges.emplace_back(s, static_cast<std::int32_t>(t));
  }
  cut.value = static_cast<double>(cut.nodes.size() + cut.edges.size());
  return cut;
}

}  // namespace lamina
