#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <unordered_set>

#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kSmallest = 1e-10;  // of a row's sum, as in circuit-tracer

double row_sum(const IncomingEdges& in) {
  double sum = 0;
  for (float w : in.weight) sum += std::abs(w);
  return sum;
}

std::vector<double> influence_in_order(const AttributionGraph& graph,
                                       const std::vector<std::int32_t>& order) {
  double given = 0;
  std::vector<double> influence(graph.nodes.size());
  for (auto at = order.rbegin(); at != order.rend(); ++at) {
    const auto target = static_cast<std::size_t>(*at);
    const CircuitNode& node = graph.nodes[target];
    const double own = node.kind == CircuitNodeKind::logit ? node.probability : 0.0;
    given += own;
    const IncomingEdges& in = graph.incoming[target];
    const double factor = (influence[target] + own) / std::max(row_sum(in), kSmallest);
    if (factor == 0) continue;
    for (std::size_t e = 0; e < in.source.size(); ++e)
      influence[static_cast<std::size_t>(in.source[e])] += factor * std::abs(in.weight[e]);
  }
  if (!(given > 0)) fail("the graph has no logit with a probability: nothing has influence");
  return influence;
}

// The smallest of the largest scores that together have `share` of all.
template <class Number>
double score_at(std::vector<Number> scores, double share) {
  if (scores.empty()) return 0.0;
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  double sum = 0;
  for (Number s : scores) {
    sum += s;
    if (sum / total >= share) return s;
  }
  return scores.back();
}

void check_share(double share, const char* name) {
  if (!(share >= 0 && share <= 1)) fail_usage("the share of {} is 0 to 1, got {}", name, share);
}

}  // namespace

std::vector<std::int32_t> source_order(const AttributionGraph& graph) {
  const std::size_t n = graph.nodes.size();
  std::vector<std::int64_t> begin(n + 1);  // edges out of a node, counted, then placed
  for (const IncomingEdges& in : graph.incoming)
    for (std::int32_t s : in.source) ++begin[static_cast<std::size_t>(s) + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<std::int32_t> targets(static_cast<std::size_t>(begin.back()));
  std::vector<std::int64_t> at(begin.begin(), begin.end() - 1);
  std::vector<std::int64_t> waiting(n);
  std::vector<std::int32_t> order;
  for (std::size_t t = 0; t < n; ++t) {
    for (std::int32_t s : graph.incoming[t].source)
      targets[static_cast<std::size_t>(at[static_cast<std::size_t>(s)]++)] =
          static_cast<std::int32_t>(t);
    waiting[t] = static_cast<std::int64_t>(graph.incoming[t].source.size());
    if (waiting[t] == 0) order.push_back(static_cast<std::int32_t>(t));
  }
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto s = static_cast<std::size_t>(order[i]);
    for (std::int64_t e = begin[s]; e < begin[s + 1]; ++e) {
      const std::int32_t t = targets[static_cast<std::size_t>(e)];
      if (--waiting[static_cast<std::size_t>(t)] == 0) order.push_back(t);
    }
  }
  if (order.size() < n) {
    const auto stuck = std::find_if(waiting.begin(), waiting.end(), [](auto w) { return w > 0; });
    fail("the graph has a cycle: node {} acts on itself",
         graph.nodes[static_cast<std::size_t>(stuck - waiting.begin())].id);
  }
  return order;
}

std::vector<double> node_influence(const AttributionGraph& graph) {
  return influence_in_order(graph, source_order(graph));
}

GraphScores graph_scores(const AttributionGraph& graph) {
  const std::vector<double> influence = node_influence(graph);
  double tokens = 0, errors = 0, explained = 0, all = 0;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const CircuitNode& node = graph.nodes[i];
    if (node.kind == CircuitNodeKind::token) tokens += influence[i];
    if (node.kind == CircuitNodeKind::error) errors += influence[i];
    const double output =
        influence[i] + (node.kind == CircuitNodeKind::logit ? node.probability : 0.0);
    const IncomingEdges& in = graph.incoming[i];
    double from_errors = 0;
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      if (graph.nodes[static_cast<std::size_t>(in.source[e])].kind == CircuitNodeKind::error)
        from_errors += std::abs(in.weight[e]);
    }
    explained += (1 - from_errors / std::max(row_sum(in), kSmallest)) * output;
    all += output;
  }
  return {.replacement = tokens / (tokens + errors), .completeness = explained / all};
}

AttributionGraph subgraph(const AttributionGraph& graph, const std::vector<std::uint8_t>& keep) {
  AttributionGraph out;
  out.slug = graph.slug;
  out.scan = graph.scan;
  out.prompt = graph.prompt;
  out.model = graph.model;
  out.tokens = graph.tokens;
  out.n_layers = graph.n_layers;
  out.node_share = graph.node_share;
  out.edge_share = graph.edge_share;
  std::vector<std::int32_t> to(graph.nodes.size(), -1);
  std::unordered_set<std::string> ids;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (keep[i] == 0) continue;
    to[i] = static_cast<std::int32_t>(out.nodes.size());
    out.nodes.push_back(graph.nodes[i]);
    ids.insert(graph.nodes[i].id);
  }
  out.incoming.resize(out.nodes.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (to[i] < 0) continue;
    const IncomingEdges& in = graph.incoming[i];
    IncomingEdges& left = out.incoming[static_cast<std::size_t>(to[i])];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      if (to[static_cast<std::size_t>(in.source[e])] < 0) continue;
      left.source.push_back(to[static_cast<std::size_t>(in.source[e])]);
      left.weight.push_back(in.weight[e]);
    }
  }
  for (const Supernode& group : graph.supernodes) {
    Supernode left{.name = group.name, .members = {}};
    for (const std::string& id : group.members)
      if (ids.contains(id)) left.members.push_back(id);
    if (!left.members.empty()) out.supernodes.push_back(std::move(left));
  }
  return out;
}

AttributionGraph prune(const AttributionGraph& graph, const PruneOptions& options) {
  check_share(options.node_share, "nodes");
  check_share(options.edge_share, "edges");
  const std::size_t n = graph.nodes.size();
  const std::vector<double> influence = node_influence(graph);
  const double least = score_at(influence, options.node_share);
  const auto fixed = [](const CircuitNode& node) {
    return node.kind == CircuitNodeKind::token || node.kind == CircuitNodeKind::logit;
  };
  std::vector<std::uint8_t> keep(n);
  for (std::size_t i = 0; i < n; ++i)
    keep[i] = influence[i] >= least || fixed(graph.nodes[i]) ? 1 : 0;
  AttributionGraph out = subgraph(graph, keep);
  {
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return influence[a] > influence[b]; });
    const double total = std::accumulate(influence.begin(), influence.end(), 0.0);
    std::vector<double> cumulative(n);
    double sum = 0;
    for (std::size_t i : order) cumulative[i] = (sum += influence[i]) / total;
    for (std::size_t i = 0, to = 0; i < n; ++i)
      if (keep[i] != 0) out.nodes[to++].influence = cumulative[i];
  }

  const std::vector<double> left = node_influence(out);
  std::vector<float> scores;
  scores.reserve(static_cast<std::size_t>(out.edges()));
  const auto scale = [&](std::size_t i) {
    const CircuitNode& node = out.nodes[i];
    const double own = node.kind == CircuitNodeKind::logit ? node.probability : 0.0;
    return (left[i] + own) / std::max(row_sum(out.incoming[i]), kSmallest);
  };
  for (std::size_t i = 0; i < out.nodes.size(); ++i) {
    const double factor = scale(i);
    for (float w : out.incoming[i].weight)
      scores.push_back(static_cast<float>(factor * std::abs(w)));
  }
  const double weakest = score_at(scores, options.edge_share);
  std::size_t at = 0;
  for (IncomingEdges& in : out.incoming) {
    std::size_t to = 0;
    for (std::size_t e = 0; e < in.source.size(); ++e, ++at) {
      if (!(scores[at] >= weakest)) continue;
      in.source[to] = in.source[e];
      in.weight[to++] = in.weight[e];
    }
    in.source.resize(to);
    in.weight.resize(to);
  }

  for (;;) {
    std::vector<std::uint8_t> acts(out.nodes.size());
    for (const IncomingEdges& in : out.incoming)
      for (std::int32_t s : in.source) acts[static_cast<std::size_t>(s)] = 1;
    std::vector<std::uint8_t> stays(out.nodes.size(), 1);
    bool all = true;
    for (std::size_t i = 0; i < out.nodes.size(); ++i) {
      if (fixed(out.nodes[i])) continue;
      const bool fed =
          out.nodes[i].kind != CircuitNodeKind::feature || !out.incoming[i].source.empty();
      if (acts[i] != 0 && fed) continue;
      stays[i] = 0;
      all = false;
    }
    if (all) break;
    out = subgraph(out, stays);
  }
  out.node_share = options.node_share;
  out.edge_share = options.edge_share;
  return out;
}

}  // namespace lamina
