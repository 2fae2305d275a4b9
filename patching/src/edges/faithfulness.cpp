#include "lamina/patching/faithfulness.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// Of the things that are no part of the circuit or are marked as differing.
double auroc_of_differing(std::span<const double> scores, std::span<const std::uint8_t> known,
                          std::span<const std::uint8_t> differs) {
  std::vector<double> kept;
  std::vector<std::uint8_t> right;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (known[i] != 0 && differs[i] == 0) continue;
    kept.push_back(scores[i]);
    right.push_back(differs[i]);
  }
  return auroc(kept, right);
}

}  // namespace

double faithfulness(double circuit, double empty, double full) {
  if (full == empty) return std::numeric_limits<double>::quiet_NaN();
  return (circuit - empty) / (full - empty);
}

double curve_area(std::span<const double> x, std::span<const double> y, bool log_axis) {
  if (x.size() != y.size()) fail_usage("a curve of {} places has {} values", x.size(), y.size());
  double area = 0.0;
  for (std::size_t i = 1; i < x.size(); ++i) {
    const double width = log_axis ? std::log(x[i]) - std::log(x[i - 1]) : x[i] - x[i - 1];
    area += width * (y[i] + y[i - 1]) / 2;
  }
  return area;
}

double cpr(std::span<const double> shares, std::span<const double> faithfulness, bool log_axis) {
  return curve_area(shares, faithfulness, log_axis);
}

double cmd(std::span<const double> shares, std::span<const double> faithfulness, bool log_axis) {
  std::vector<double> distance(faithfulness.begin(), faithfulness.end());
  for (double& value : distance) value = std::abs(1 - value);
  return curve_area(shares, distance, log_axis);
}

double auroc(std::span<const double> scores, std::span<const std::uint8_t> known) {
  if (scores.size() != known.size()) {
    fail_usage("AUROC: {} scores for {} known or unknown things", scores.size(), known.size());
  }
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::abs(scores[a]) > std::abs(scores[b]);
  });
  double area = 0.0, found = 0.0, wrong = 0.0;
  for (std::size_t i = 0; i < order.size();) {
    const double value = std::abs(scores[order[i]]);
    double more_found = 0.0, more_wrong = 0.0;
    for (; i < order.size() && std::abs(scores[order[i]]) == value; ++i) {
      (known[order[i]] != 0 ? more_found : more_wrong) += 1;
    }
    area += more_wrong * (found + more_found / 2);
    found += more_found;
    wrong += more_wrong;
  }
  if (found == 0 || wrong == 0) return std::numeric_limits<double>::quiet_NaN();
  return area / (found * wrong);
}

double auroc_mib(EdgeGraph graph, const EdgeMask& known) {
  const auto edges = static_cast<double>(graph.edges());
  const auto all_known = static_cast<double>(std::count(known.begin(), known.end(), 1));
  std::vector<double> true_rate, false_rate;
  for (const double share : kCircuitShares) {
    graph.keep_greedy(static_cast<std::int64_t>(std::ceil(share * edges)), true);
    const EdgeMask mask = graph.mask();
    double found = 0.0, wrong = 0.0;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (mask[i] != 0) (known[i] != 0 ? found : wrong) += 1;
    }
    true_rate.push_back(found / all_known);
    false_rate.push_back(wrong / (edges - all_known));
  }
  const double last = false_rate.back();
  for (double& rate : false_rate) rate /= last;
  return curve_area(false_rate, true_rate, false);
}

std::vector<double> node_scores(const EdgeGraph& graph) {
  std::vector<double> scores(static_cast<std::size_t>(graph.sources()), 0.0);
  for (std::int64_t id = 0; id < graph.edges(); ++id) {
    double& best = scores[static_cast<std::size_t>(graph.source_of_edge(id))];
    best = std::max(best, std::abs(graph.edge(id).score));
  }
  return scores;
}

KnownAuroc node_auroc(std::span<const double> scores, const EdgeGraph& graph,
                      const KnownCircuit& known) {
  std::vector<std::uint8_t> differs(known.nodes.size(), 0);
  for (std::int64_t id = 0; id < graph.edges(); ++id) {
    if (known.counterfactual[static_cast<std::size_t>(id)] != 0)
      differs[static_cast<std::size_t>(graph.source_of_edge(id))] = 1;
  }
  const std::span<const std::uint8_t> nodes = std::span(known.nodes).subspan(1);
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  return {.edges = kNone,
          .all_edges = kNone,
          .nodes = auroc_of_differing(scores, nodes, std::span(differs).subspan(1)),
          .all_nodes = auroc(scores, nodes)};
}

KnownAuroc edge_auroc(const EdgeGraph& graph, const KnownCircuit& known) {
  const std::vector<double> scores = graph.scores(), nodes = node_scores(graph);
  KnownAuroc result = node_auroc(std::span(nodes).subspan(1), graph, known);
  result.edges = auroc_of_differing(scores, known.edges, known.counterfactual);
  result.all_edges = auroc(scores, known.edges);
  return result;
}

}  // namespace lamina
