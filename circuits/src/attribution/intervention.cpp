#include "lamina/circuits/intervention.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "lamina/circuits/graph_io.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool is_target(const CircuitNode& node) {
  return node.kind == CircuitNodeKind::feature || node.kind == CircuitNodeKind::logit;
}

double parse_factor(const std::string& text, const std::string& whole) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || !std::isfinite(value))
    fail_usage("change '{}': '{}' is no factor", whole, text);
  return value;
}

}  // namespace

SourceChange source_change(const Replacement& replacement, const CircuitNode& node, double factor) {
  const auto features = replacement.features();
  const auto n_features = static_cast<std::int64_t>(features.size());
  const std::int64_t layers = replacement.model().config().n_layers, tokens = replacement.tokens();
  if (node.position < 0 || node.position >= tokens)
    fail_usage("node '{}' is at position {}, the prompt has {}", node.id, node.position, tokens);
  switch (node.kind) {
    case CircuitNodeKind::feature: {
      const auto found = std::find_if(features.begin(), features.end(), [&](const auto& f) {
        return f.layer == node.layer && f.position == node.position && f.feature == node.index;
      });
      if (found == features.end()) fail_usage("feature '{}' is not active on the prompt", node.id);
      return {found - features.begin(), factor};
    }
    case CircuitNodeKind::error:
      if (node.layer < 0 || node.layer >= layers)
        fail_usage("node '{}' is of layer {}, the model has {}", node.id, node.layer, layers);
      return {n_features + node.layer * tokens + node.position, factor};
    case CircuitNodeKind::token:
      return {n_features + layers * tokens + node.position, factor};
    case CircuitNodeKind::logit:
      break;
  }
  fail_usage("node '{}' is a logit: only features, errors and tokens can be changed", node.id);
}

std::vector<NodeChange> parse_node_changes(std::span<const std::string> texts,
                                           const AttributionGraph& graph) {
  std::map<std::int32_t, double> changes;
  for (const std::string& text : texts) {
    const std::size_t at = text.rfind('=');
    const std::string name = text.substr(0, at);
    const double factor = at == std::string::npos ? 0.0 : parse_factor(text.substr(at + 1), text);
    const auto group = std::find_if(graph.supernodes.begin(), graph.supernodes.end(),
                                    [&](const Supernode& s) { return s.name == name; });
    bool any = false;
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      const CircuitNode& node = graph.nodes[i];
      const bool named = group != graph.supernodes.end()
                             ? std::find(group->members.begin(), group->members.end(), node.id) !=
                                   group->members.end()
                             : node_id_matches(name, node.id);
      if (!named) continue;
      any = true;
      if (node.kind == CircuitNodeKind::logit)
        fail_usage("change '{}': node '{}' is a logit", text, node.id);
      changes[static_cast<std::int32_t>(i)] = factor;
    }
    if (!any) fail_usage("change '{}': no node and no supernode of the graph is '{}'", text, name);
  }
  std::vector<NodeChange> out;
  for (const auto& [node, factor] : changes) out.push_back({node, factor});
  return out;
}

std::vector<double> predict_changes(const AttributionGraph& graph,
                                    std::span<const NodeChange> changes, bool through) {
  const std::size_t n = graph.nodes.size();
  std::vector<double> moved(n), share(n);  // Δ pre-activation; Δ of a source over the source
  std::vector<std::uint8_t> fixed(n);
  for (const NodeChange& change : changes) {
    fixed[size(change.node)] = 1;
    share[size(change.node)] = change.factor - 1.0;
  }
  for (std::int32_t v : source_order(graph)) {
    const IncomingEdges& in = graph.incoming[size(v)];
    double sum = 0;
    for (std::size_t e = 0; e < in.source.size(); ++e)
      sum += share[size(in.source[e])] * in.weight[e];
    moved[size(v)] = sum;
    const CircuitNode& node = graph.nodes[size(v)];
    if (through && fixed[size(v)] == 0 && node.kind == CircuitNodeKind::feature &&
        node.activation > 0)
      share[size(v)] = sum / node.activation;
  }
  return moved;
}

ChangeCheck check_changes(const Replacement& replacement, const AttributionGraph& graph,
                          std::span<const NodeChange> changes, Freedom freedom) {
  ChangeCheck out{.freedom = freedom,
                  .predicted = predict_changes(graph, changes, freedom != Freedom::direct)};
  std::vector<std::vector<SourceChange>> sets(1);
  for (const NodeChange& c : changes)
    sets[0].push_back(source_change(replacement, graph.nodes[size(c.node)], c.factor));
  const ReplacementRun run = std::move(replacement.run(sets, freedom).front());
  const ReplacementRun& clean = replacement.clean();
  const auto logits = salient_logits(
      replacement, 1.0, std::max<std::int64_t>(1, graph.count(CircuitNodeKind::logit)));
  const double log_sum = math::log_sum_exp(run.logits);
  out.measured.resize(graph.nodes.size());
  std::vector<std::uint8_t> fixed(graph.nodes.size());
  for (const NodeChange& c : changes) fixed[size(c.node)] = 1;
  double largest = 0, worst = 0, n = 0, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const CircuitNode& node = graph.nodes[i];
    if (!is_target(node)) continue;
    if (node.kind == CircuitNodeKind::feature) {
      const std::int64_t source = source_change(replacement, node, 1.0).source;
      out.measured[i] =
          double{run.pre_activations[size(source)]} - clean.pre_activations[size(source)];
      const Transcoder& t = *replacement.transcoder(node.layer);
      const double bound = t.threshold.empty() ? 0.0 : t.threshold[size(node.index)];
      if (run.pre_activations[size(source)] <= std::max(0.0, bound)) ++out.turned_off;
    } else {
      const auto found = std::find_if(logits.begin(), logits.end(),
                                      [&](const auto& l) { return l.token == node.index; });
      if (found == logits.end()) fail_usage("'{}' is no logit of this prompt's graph", node.id);
      out.measured[i] = found->value(run) - found->value(clean);
      out.probability.push_back(std::exp(double{run.logits[size(node.index)]} - log_sum));
    }
    if (fixed[i] != 0) continue;
    const double x = out.predicted[i], y = out.measured[i];
    largest = std::max(largest, std::abs(x));
    worst = std::max(worst, std::abs(y - x));
    n += 1;
    sx += x;
    sy += y;
    sxx += x * x;
    syy += y * y;
    sxy += x * y;
  }
  out.worst = largest > 0 ? worst / largest : worst;
  const double spread = (n * sxx - sx * sx) * (n * syy - sy * sy);
  out.correlation = spread > 0 ? (n * sxy - sx * sy) / std::sqrt(spread) : CircuitNode::kUnknown;
  out.logits = run.logits;
  return out;
}

}  // namespace lamina
