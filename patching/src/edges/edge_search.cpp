// Exact scores, ACDC and the faithfulness of scored graphs: searches over circuits.

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <map>
#include <numeric>

#include "lamina/core/error.h"
#include "lamina/patching/edges.h"
#include "lamina/patching/faithfulness.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Whether anything in the circuit reads what the node of this read point adds.
bool is_read(const EdgeGraph& graph, const EdgeMask& circuit, const ReadPoint& point) {
  if (point.kind == ReadPoint::Kind::logits) return true;
  const std::int64_t node = point.kind == ReadPoint::Kind::mlp
                                ? graph.mlp_source(point.layer)
                                : graph.head_source(point.layer, point.head);
  const auto [first, last] = boost::out_edges(node, graph.graph());
  return std::any_of(first, last,
                     [&](const auto& e) { return circuit[size(graph.graph()[e].id)] != 0; });
}

}  // namespace

std::vector<double> exact_edge_scores(
    CircuitRunner& runner, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  std::vector<double> scores = runner.without_each_edge(progress);
  const double full = mean(runner.clean());
  for (double& score : scores) score = full - score;
  return scores;
}

AcdcResult acdc(CircuitRunner& runner, const AcdcOptions& options) {
  if (!(options.threshold > 0))
    fail_usage("ACDC's threshold must be above 0, got {}", options.threshold);
  if (options.at_once < 1)
    fail_usage("ACDC tries at least one edge at once, got {}", options.at_once);
  const EdgeGraph& graph = runner.graph();
  AcdcResult result;
  result.circuit.assign(size(graph.edges()), 1);
  result.change.assign(size(graph.edges()), 0.0);
  double current = mean(runner.clean());
  std::int64_t done = 0;
  for (std::int64_t read = graph.reads() - 1; read >= 0; --read) {
    const ReadPoint point = graph.read_point(read);
    const std::int64_t first = graph.first_edge(read), sources = graph.sources_of(read);
    if (!is_read(graph, result.circuit, point)) {
      std::fill_n(result.circuit.begin() + first, sources, std::uint8_t{0});
    } else {
      const std::int32_t layer = point.kind == ReadPoint::Kind::logits
                                     ? static_cast<std::int32_t>(graph.shape().n_layers) - 1
                                     : point.layer;
      // The nearest sources first. A batch tries removals one upon the other, as if each were
      // accepted; behind the first that is not, it is worth nothing.
      std::int64_t next = sources - 1;
      while (next >= 0) {
        std::vector<EdgeMask> circuits;
        const std::int64_t count = std::min(options.at_once, next + 1);
        EdgeMask trial = result.circuit;
        for (std::int64_t i = 0; i < count; ++i) {
          trial[size(first + next - i)] = 0;
          circuits.push_back(trial);
        }
        const std::vector<double> metric = runner.run_means(circuits, layer);
        bool accepted = true;
        for (std::int64_t i = 0; i < count && accepted; ++i, --next) {
          const std::int64_t edge = first + next;
          result.change[size(edge)] = current - metric[size(i)];
          ++result.tried;
          accepted = result.change[size(edge)] < options.threshold;
          if (!accepted) continue;
          result.circuit[size(edge)] = 0;
          current = metric[size(i)];
        }
        if (options.progress) options.progress(done + sources - 1 - next, graph.edges());
      }
    }
    done += sources;
    if (options.progress) options.progress(done, graph.edges());
  }
  EdgeGraph pruned = graph;
  pruned.set_mask(result.circuit);
  pruned.prune();
  result.circuit = pruned.mask();
  return result;
}

FaithfulnessResult measure_faithfulness(
    CircuitRunner& runner, EdgeGraph graph, bool greedy, bool completeness,
    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  if (!(graph.shape() == runner.graph().shape())) {
    fail_usage("a graph of {} edges was given, the model's has {}", graph.edges(),
               runner.graph().edges());
  }
  FaithfulnessResult result;
  const EdgeMask none(size(graph.edges()), 0);
  result.full = mean(runner.clean());
  result.empty = runner.run_means(std::span(&none, 1))[0];
  // Small circuits are often the same by score and by magnitude: each is run once.
  std::map<EdgeMask, double> known = {{none, result.empty},
                                      {EdgeMask(size(graph.edges()), 1), result.full}};
  const auto metric_of = [&](const EdgeMask& circuit) {
    const auto [found, is_new] = known.try_emplace(circuit, 0.0);
    if (is_new) found->second = runner.run_means(std::span(&circuit, 1))[0];
    return found->second;
  };
  const auto shares = static_cast<std::int64_t>(kCircuitShares.size());
  std::int64_t done = 0;
  for (const bool absolute : {false, true}) {
    std::vector<CircuitPoint>& points = absolute ? result.by_absolute : result.by_signed;
    for (const double share : kCircuitShares) {
      CircuitPoint point{
          .share = share,
          .asked = static_cast<std::int64_t>(share * static_cast<double>(graph.edges()))};
      if (greedy) {
        graph.keep_greedy(point.asked, absolute);
      } else {
        graph.keep_top(point.asked, absolute);
      }
      point.edges = graph.edges_in_graph();
      point.nodes = graph.nodes_in_graph();
      EdgeMask circuit = graph.mask();
      point.metric = metric_of(circuit);
      point.faithfulness = faithfulness(point.metric, result.empty, result.full);
      if (completeness) {
        for (std::uint8_t& in : circuit) in = in != 0 ? 0 : 1;
        point.completeness = faithfulness(metric_of(circuit), result.empty, result.full);
      }
      points.push_back(point);
      if (progress) progress(++done, 2 * shares);
    }
  }
  const auto curve = [](const std::vector<CircuitPoint>& points) {
    std::vector<double> values;
    for (const CircuitPoint& point : points) values.push_back(point.faithfulness);
    return values;
  };
  const std::vector<double> up = curve(result.by_signed), away = curve(result.by_absolute);
  result.cpr = cpr(kCircuitShares, up, false);
  result.cpr_log = cpr(kCircuitShares, up, true);
  result.cmd = cmd(kCircuitShares, away, false);
  result.cmd_log = cmd(kCircuitShares, away, true);
  return result;
}

}  // namespace lamina
