#include <algorithm>
#include <boost/graph/betweenness_centrality.hpp>
#include <cmath>
#include <map>
#include <numeric>
#include <unordered_map>

#include "lamina/circuits/graph_analysis.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using Neighbours = std::vector<std::vector<std::pair<std::int32_t, double>>>;

struct Level {
  Neighbours neighbours;     // both directions, without loops
  std::vector<double> loop;  // [node] weight inside it, counted twice
};

// One pass of Louvain's method: every node to the community where modularity gains most, until
// nothing moves. Returns the community of every node, numbered from 0.
std::vector<std::int32_t> local_moves(const Level& level, double total, double resolution) {
  const std::size_t n = level.neighbours.size();
  std::vector<double> degree(level.loop);
  for (std::size_t i = 0; i < n; ++i)
    for (const auto& [j, w] : level.neighbours[i]) degree[i] += w;
  std::vector<std::int32_t> of(n);
  std::iota(of.begin(), of.end(), 0);
  std::vector<double> inside(degree), to(n);
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t i = 0; i < n; ++i) {
      const auto own = static_cast<std::size_t>(of[i]);
      for (const auto& [j, w] : level.neighbours[i])
        to[static_cast<std::size_t>(of[static_cast<std::size_t>(j)])] += w;
      inside[own] -= degree[i];
      const auto gain = [&](std::size_t c) {
        return to[c] - resolution * degree[i] * inside[c] / total;
      };
      std::size_t best = own;
      double most = gain(own) + 1e-12 * total;
      for (const auto& [j, w] : level.neighbours[i]) {
        const auto c = static_cast<std::size_t>(of[static_cast<std::size_t>(j)]);
        if (gain(c) > most) {
          most = gain(c);
          best = c;
        }
      }
      inside[best] += degree[i];
      moved = moved || best != own;
      of[i] = static_cast<std::int32_t>(best);
      to[own] = 0;
      for (const auto& [j, w] : level.neighbours[i])
        to[static_cast<std::size_t>(of[static_cast<std::size_t>(j)])] = 0;
      to[best] = 0;
    }
  }
  std::vector<std::int32_t> number(n, -1);
  std::int32_t next = 0;
  for (std::int32_t& c : of) {
    std::int32_t& to_number = number[static_cast<std::size_t>(c)];
    if (to_number < 0) to_number = next++;
    c = to_number;
  }
  return of;
}

Level join(const Level& level, const std::vector<std::int32_t>& of) {
  const auto count = static_cast<std::size_t>(1 + *std::max_element(of.begin(), of.end()));
  std::vector<std::map<std::int32_t, double>> sums(count);
  Level out{.neighbours = Neighbours(count), .loop = std::vector<double>(count)};
  for (std::size_t i = 0; i < of.size(); ++i) {
    const auto c = static_cast<std::size_t>(of[i]);
    out.loop[c] += level.loop[i];
    for (const auto& [j, w] : level.neighbours[i]) {
      const std::int32_t other = of[static_cast<std::size_t>(j)];
      if (other == of[i])
        out.loop[c] += w;
      else
        sums[c][other] += w;
    }
  }
  for (std::size_t c = 0; c < count; ++c) out.neighbours[c].assign(sums[c].begin(), sums[c].end());
  return out;
}

using EdgeKey = std::pair<std::string, std::string>;

std::map<EdgeKey, double> edges_by_id(const AttributionGraph& graph) {
  std::map<EdgeKey, double> edges;
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e)
      edges[{graph.nodes[static_cast<std::size_t>(in.source[e])].id, graph.nodes[t].id}] =
          in.weight[e];
  }
  return edges;
}

}  // namespace

Centrality centrality(const AttributionGraph& graph) {
  const std::size_t n = graph.nodes.size();
  Centrality c{.in_strength = std::vector<double>(n),
               .out_strength = std::vector<double>(n),
               .betweenness = std::vector<double>(n)};
  for (std::size_t t = 0; t < n; ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      c.in_strength[t] += std::abs(in.weight[e]);
      c.out_strength[static_cast<std::size_t>(in.source[e])] += std::abs(in.weight[e]);
    }
  }
  const CircuitBoostGraph g = boost_graph(graph);
  boost::brandes_betweenness_centrality(
      g, boost::centrality_map(boost::make_iterator_property_map(
                                   c.betweenness.begin(), boost::get(boost::vertex_index, g)))
             .weight_map(boost::get(&CircuitArc::distance, g)));
  return c;
}

Communities communities(const AttributionGraph& graph, double resolution) {
  if (!(resolution > 0)) fail_usage("the resolution is above 0, got {}", resolution);
  const std::size_t n = graph.nodes.size();
  Communities out;
  out.of.resize(n);
  std::iota(out.of.begin(), out.of.end(), 0);
  Level level{.neighbours = Neighbours(n), .loop = std::vector<double>(n)};
  double total = 0;  // every edge twice
  for (std::size_t t = 0; t < n; ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      const double w = std::abs(in.weight[e]);
      level.neighbours[t].emplace_back(in.source[e], w);
      level.neighbours[static_cast<std::size_t>(in.source[e])].emplace_back(
          static_cast<std::int32_t>(t), w);
      total += 2 * w;
    }
  }
  const Level whole = level;
  while (total > 0) {
    const std::vector<std::int32_t> of = local_moves(level, total, resolution);
    const auto left = static_cast<std::size_t>(1 + *std::max_element(of.begin(), of.end()));
    for (std::int32_t& c : out.of) c = of[static_cast<std::size_t>(c)];
    if (left == of.size()) break;
    level = join(level, of);
  }
  if (n > 0) out.count = 1 + *std::max_element(out.of.begin(), out.of.end());
  if (total == 0) return out;
  const Level joined = join(whole, out.of);
  for (std::size_t c = 0; c < joined.loop.size(); ++c) {
    double degree = joined.loop[c];
    for (const auto& [other, w] : joined.neighbours[c]) degree += w;
    out.modularity += joined.loop[c] / total - resolution * (degree / total) * (degree / total);
  }
  return out;
}

AttributionGraph merge_graphs(std::span<const AttributionGraph> graphs) {
  if (graphs.empty()) fail_usage("nothing to merge");
  AttributionGraph out = graphs.front();
  std::unordered_map<std::string, std::int32_t> at;
  out.nodes.clear();
  out.incoming.clear();
  out.supernodes.clear();
  for (const AttributionGraph& graph : graphs) {
    if (graph.n_layers != out.n_layers) {
      fail("graph '{}' has {} layers, '{}' has {}: of different models", graph.slug, graph.n_layers,
           graphs.front().slug, out.n_layers);
    }
    if (graph.tokens.size() > out.tokens.size()) out.tokens = graph.tokens;
    for (const CircuitNode& node : graph.nodes) {
      const auto [known, fresh] = at.emplace(node.id, static_cast<std::int32_t>(out.nodes.size()));
      if (fresh) {
        out.nodes.push_back(node);
        continue;
      }
      const CircuitNode& other = out.nodes[static_cast<std::size_t>(known->second)];
      if (other.kind != node.kind || other.layer != node.layer || other.position != node.position)
        fail("node '{}' is two different nodes in the graphs to merge", node.id);
    }
  }
  std::vector<std::map<std::int32_t, double>> sums(out.nodes.size());
  for (const AttributionGraph& graph : graphs) {
    for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
      auto& to = sums[static_cast<std::size_t>(at.at(graph.nodes[t].id))];
      const IncomingEdges& in = graph.incoming[t];
      for (std::size_t e = 0; e < in.source.size(); ++e)
        to[at.at(graph.nodes[static_cast<std::size_t>(in.source[e])].id)] +=
            in.weight[e] / static_cast<double>(graphs.size());
    }
  }
  out.incoming.resize(out.nodes.size());
  for (std::size_t t = 0; t < sums.size(); ++t) {
    for (const auto& [source, weight] : sums[t]) {
      if (static_cast<float>(weight) == 0) continue;
      out.incoming[t].source.push_back(source);
      out.incoming[t].weight.push_back(static_cast<float>(weight));
    }
  }
  return out;
}

GraphComparison compare_graphs(const AttributionGraph& first, const AttributionGraph& second,
                               std::int64_t show) {
  GraphComparison c;
  std::unordered_map<std::string, int> seen;
  for (const CircuitNode& n : first.nodes) seen[n.id] |= 1;
  for (const CircuitNode& n : second.nodes) seen[n.id] |= 2;
  for (const auto& [id, in] : seen)
    ++(in == 3 ? c.nodes_both : in == 1 ? c.nodes_first : c.nodes_second);
  const auto a = edges_by_id(first), b = edges_by_id(second);
  double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
  for (const auto& [key, weight] : a) {
    const auto other = b.find(key);
    const double y = other == b.end() ? 0.0 : other->second;
    c.largest_changes.push_back({key.first, key.second, weight, y});
    if (other == b.end()) {
      ++c.edges_first;
      continue;
    }
    ++c.edges_both;
    sx += weight;
    sy += y;
    sxx += weight * weight;
    syy += y * y;
    sxy += weight * y;
  }
  for (const auto& [key, weight] : b) {
    if (a.contains(key)) continue;
    ++c.edges_second;
    c.largest_changes.push_back({key.first, key.second, 0.0, weight});
  }
  const auto n = static_cast<double>(c.edges_both);
  c.weight_correlation =
      n < 2 ? CircuitNode::kUnknown
            : (n * sxy - sx * sy) / std::sqrt((n * sxx - sx * sx) * (n * syy - sy * sy));
  const auto jaccard = [](std::int64_t both, std::int64_t x, std::int64_t y) {
    return both + x + y == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(both + x + y);
  };
  c.node_jaccard = jaccard(c.nodes_both, c.nodes_first, c.nodes_second);
  c.edge_jaccard = jaccard(c.edges_both, c.edges_first, c.edges_second);
  std::stable_sort(c.largest_changes.begin(), c.largest_changes.end(),
                   [](const auto& x, const auto& y) {
                     return std::abs(x.second - x.first) > std::abs(y.second - y.first);
                   });
  if (static_cast<std::int64_t>(c.largest_changes.size()) > show)
    c.largest_changes.resize(static_cast<std::size_t>(std::max<std::int64_t>(0, show)));
  return c;
}

AttributionGraph collapse_supernodes(const AttributionGraph& graph) {
  std::unordered_map<std::string, std::size_t> group_of;
  for (std::size_t g = 0; g < graph.supernodes.size(); ++g)
    for (const std::string& id : graph.supernodes[g].members) group_of[id] = g;
  AttributionGraph out = graph;
  out.nodes.clear();
  out.incoming.clear();
  out.supernodes.clear();
  std::vector<std::int32_t> to(graph.nodes.size()), of_group(graph.supernodes.size(), -1);
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const auto group = group_of.find(graph.nodes[i].id);
    if (group == group_of.end()) {
      to[i] = static_cast<std::int32_t>(out.nodes.size());
      out.nodes.push_back(graph.nodes[i]);
      continue;
    }
    std::int32_t& at = of_group[group->second];
    if (at < 0) {
      at = static_cast<std::int32_t>(out.nodes.size());
      CircuitNode node = graph.nodes[i];
      node.label = graph.supernodes[group->second].name;
      node.id = "supernode-" + node.label;
      out.nodes.push_back(std::move(node));
    } else {
      // It stands where its last member does; a logit's probability counts for the group.
      CircuitNode& node = out.nodes[static_cast<std::size_t>(at)];
      node.layer = std::max(node.layer, graph.nodes[i].layer);
      node.position = std::max(node.position, graph.nodes[i].position);
      node.probability += graph.nodes[i].probability;
    }
    to[i] = at;
  }
  std::vector<std::map<std::int32_t, double>> sums(out.nodes.size());
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      const std::int32_t s = to[static_cast<std::size_t>(in.source[e])];
      if (s != to[t]) sums[static_cast<std::size_t>(to[t])][s] += in.weight[e];
    }
  }
  out.incoming.resize(out.nodes.size());
  for (std::size_t t = 0; t < sums.size(); ++t) {
    for (const auto& [source, weight] : sums[t]) {
      if (static_cast<float>(weight) == 0) continue;
      out.incoming[t].source.push_back(source);
      out.incoming[t].weight.push_back(static_cast<float>(weight));
    }
  }
  return out;
}

}  // namespace lamina
