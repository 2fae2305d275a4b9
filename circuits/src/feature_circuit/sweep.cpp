// Circuits of growing size: faithfulness and completeness.

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "lamina/circuits/feature_circuit.h"
#include "lamina/core/error.h"
#include "lamina/patching/faithfulness.h"

namespace lamina {
namespace {

void check_method(const FeatureEffects& effects, std::size_t method) {
  if (method >= effects.options.methods.size()) {
    fail_usage("method {} was asked for, effects are by {}", method,
               effects.options.methods.size());
  }
}

// Circuits to run, each once.
class Wanted {
 public:
  std::size_t add(FeatureCircuit circuit) {
    const auto [found, fresh] = index_.try_emplace(circuit, circuits_.size());
    if (fresh) circuits_.push_back(std::move(circuit));
    return found->second;
  }
  const std::vector<FeatureCircuit>& circuits() const { return circuits_; }

 private:
  std::map<FeatureCircuit, std::size_t> index_;
  std::vector<FeatureCircuit> circuits_;
};

}  // namespace

std::vector<FeatureNode> nodes_above(const FeatureEffects& effects, std::size_t method,
                                     double threshold) {
  check_method(effects, method);
  std::vector<FeatureNode> nodes;
  const std::span<const double> values = effects.of(method);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::abs(values[i]) > threshold) nodes.push_back(effects.nodes[i]);
  }
  return nodes;
}

std::vector<FeatureNode> largest_nodes(const FeatureEffects& effects, std::size_t method,
                                       std::int64_t count) {
  check_method(effects, method);
  if (count < 0) fail_usage("a circuit of {} nodes", count);
  const std::span<const double> values = effects.of(method);
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto kept = std::min(count, static_cast<std::int64_t>(order.size()));
  std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                    [&](std::size_t a, std::size_t b) {
                      const double x = std::abs(values[a]), y = std::abs(values[b]);
                      return x > y || (x == y && a < b);
                    });
  order.resize(static_cast<std::size_t>(kept));
  std::sort(order.begin(), order.end());
  std::vector<FeatureNode> nodes;
  for (const std::size_t i : order) nodes.push_back(effects.nodes[i]);
  return nodes;
}

FeatureSweep sweep_feature_circuits(const FeatureStudy& study, const FeatureEffects& effects,
                                    std::span<const double> thresholds,
                                    std::span<const std::int64_t> counts, ErrorNodes errors,
                                    const FeatureRunOptions& options) {
  FeatureSweep sweep;
  sweep.thresholds.assign(thresholds.begin(), thresholds.end());
  sweep.counts.assign(counts.begin(), counts.end());
  Wanted wanted;
  const std::size_t full =
      wanted.add({.nodes = {}, .complement = true, .errors = ErrorNodes::keep});
  const std::size_t empty = wanted.add({.nodes = {}, .complement = false, .errors = errors});
  struct Entry {
    FeatureCircuitPoint* point;
    std::size_t circuit, complement;
  };
  std::vector<Entry> entries;
  const std::size_t methods = effects.options.methods.size();
  sweep.by_threshold.resize(methods * thresholds.size());
  sweep.by_count.resize(methods * counts.size());
  const auto ask = [&](FeatureCircuitPoint& point, std::vector<FeatureNode> nodes) {
    point.nodes = std::ssize(nodes);
    point.errors = std::count_if(nodes.begin(), nodes.end(), [](const FeatureNode& node) {
      return node.feature == kErrorNode;
    });
    const std::size_t circuit = wanted.add({.nodes = nodes, .complement = false, .errors = errors});
    const std::size_t rest =
        wanted.add({.nodes = std::move(nodes), .complement = true, .errors = errors});
    entries.push_back({&point, circuit, rest});
  };
  for (std::size_t m = 0; m < methods; ++m) {
    for (std::size_t i = 0; i < thresholds.size(); ++i) {
      ask(sweep.by_threshold[m * thresholds.size() + i], nodes_above(effects, m, thresholds[i]));
    }
    for (std::size_t i = 0; i < counts.size(); ++i) {
      ask(sweep.by_count[m * counts.size() + i], largest_nodes(effects, m, counts[i]));
    }
  }
  const std::vector<double> metric = run_feature_circuits(study, wanted.circuits(), options);
  const std::size_t pairs = study.pairs.size();
  const auto mean = [&](std::size_t circuit) {
    const auto first = metric.begin() + static_cast<std::ptrdiff_t>(circuit * pairs);
    return std::accumulate(first, first + static_cast<std::ptrdiff_t>(pairs), 0.0) /
           static_cast<double>(pairs);
  };
  sweep.full = mean(full);
  sweep.empty = mean(empty);
  for (const Entry& entry : entries) {
    FeatureCircuitPoint& point = *entry.point;
    point.metric = mean(entry.circuit);
    point.complement_metric = mean(entry.complement);
    point.faithfulness = faithfulness(point.metric, sweep.empty, sweep.full);
    point.completeness = faithfulness(point.complement_metric, sweep.empty, sweep.full);
  }
  return sweep;
}

}  // namespace lamina
