#include "verbs/circuit_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "lamina/core/math.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::string share_text(double share) {
  return std::isfinite(share) ? fmt::format("{:.1f}%", 100 * share) : "?";
}

// Features and errors by influence, largest first.
std::vector<std::size_t> by_influence(const AttributionGraph& graph,
                                      const std::vector<double>& influence) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i)
    if (graph.nodes[i].kind != CircuitNodeKind::logit) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return influence[a] > influence[b]; });
  return order;
}

std::string strongest_input(const AttributionGraph& graph, std::size_t node) {
  const IncomingEdges& in = graph.incoming[node];
  if (in.source.empty()) return "";
  double sum = 0;
  std::size_t best = 0;
  for (std::size_t e = 0; e < in.weight.size(); ++e) {
    sum += std::abs(in.weight[e]);
    if (std::abs(in.weight[e]) > std::abs(in.weight[best])) best = e;
  }
  return fmt::format("{} {:+.3g} ({})", node_text(graph, graph.nodes[size(in.source[best])]),
                     in.weight[best], share_text(std::abs(in.weight[best]) / sum));
}

std::string size_text(const AttributionGraph& graph) {
  return fmt::format("{} features, {} errors, {} tokens, {} logits, {} edges",
                     grouped(graph.count(CircuitNodeKind::feature)),
                     grouped(graph.count(CircuitNodeKind::error)),
                     grouped(graph.count(CircuitNodeKind::token)),
                     grouped(graph.count(CircuitNodeKind::logit)), grouped(graph.edges()));
}

}  // namespace

std::string node_text(const AttributionGraph& graph, const CircuitNode& node) {
  if (node.id.starts_with("supernode-")) return escape_controls(node.label);
  const std::string word = quoted_piece(
      node.position < std::ssize(graph.tokens) ? graph.tokens[size(node.position)] : "");
  switch (node.kind) {
    case CircuitNodeKind::feature:
      return node.label.empty()
                 ? fmt::format("L{} #{} at {} {}", node.layer, node.index, node.position, word)
                 : fmt::format("{} at {} {}", escape_controls(node.label), node.position, word);
    case CircuitNodeKind::error:
      return fmt::format("error of L{} at {} {}", node.layer, node.position, word);
    case CircuitNodeKind::token:
      return fmt::format("token {} {}", node.position, word);
    case CircuitNodeKind::logit:
      return fmt::format("→ {}", quoted_piece(node.label));
  }
  return node.id;
}

std::string nodes_table(const AttributionGraph& graph, const std::vector<double>& influence,
                        std::int64_t show) {
  const std::vector<std::size_t> order = by_influence(graph, influence);
  Table table({"node", "id", ">influence", ">activation", "strongest input"});
  for (std::size_t i : order) {
    if (show-- <= 0) break;
    const CircuitNode& node = graph.nodes[i];
    table.row({clip(node_text(graph, node), 34), node.id, fmt::format("{:.4f}", influence[i]),
               node.kind == CircuitNodeKind::feature ? short_number(node.activation) : "",
               clip(strongest_input(graph, i), 60)});
  }
  return table.text(2);
}

LikeliestToken likeliest_token(std::span<const float> logits, const Model& model) {
  const auto best = std::max_element(logits.begin(), logits.end());
  const auto id = static_cast<std::int32_t>(best - logits.begin());
  return {id, model.tokenizer() != nullptr ? model.tokenizer()->piece(id) : std::to_string(id),
          std::exp(static_cast<double>(*best) - math::log_sum_exp(logits))};
}

std::string circuit_text(const CircuitReport& r, std::int64_t show) {
  Facts facts;
  for (const auto& [name, value] : r.settings) facts.add(name, value);
  facts.add("graph", size_text(r.whole));
  if (r.active > r.whole.count(CircuitNodeKind::feature))
    facts.add("active features", grouped(r.active));
  facts.add("replacement", fmt::format("{:.4f}", r.scores.replacement));
  facts.add("completeness", fmt::format("{:.4f}", r.scores.completeness));
  facts.add("pruned", size_text(r.pruned));
  facts.add("time", duration_text(r.seconds));
  std::string out = facts.text();
  out += "\n" + styled(Style::bold, "logits") + "\n";
  Table logits({"token", "id", ">probability", ">over the mean", ">bias", "strongest input"});
  for (std::size_t i = 0; i < r.pruned.nodes.size(); ++i) {
    const CircuitNode& node = r.pruned.nodes[i];
    if (node.kind != CircuitNodeKind::logit) continue;
    logits.row({quoted_piece(node.label), node.id, fmt::format("{:.4f}", node.probability),
                fmt::format("{:+.3f}", node.pre_activation), fmt::format("{:+.3f}", node.bias),
                clip(strongest_input(r.pruned, i), 60)});
  }
  out += logits.text(2);
  if (show > 0) {
    out += "\n" + styled(Style::bold, "most influential") + "  of the pruned graph\n";
    out += nodes_table(r.pruned, node_influence(r.pruned), show);
  }
  if (r.checks.empty()) return out;
  out += "\n" + styled(Style::bold, "change") + "  " + r.change + "\n";
  Table table({"logit", ">was", ">predicted", ">direct", ">predicted", ">constrained", ">free"});
  const AttributionGraph& g = r.whole;
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (g.nodes[i].kind != CircuitNodeKind::logit) continue;
    std::vector<std::string> row = {quoted_piece(g.nodes[i].label),
                                    fmt::format("{:+.3f}", g.nodes[i].pre_activation)};
    for (const ChangeCheck& c : r.checks) {
      if (c.freedom != Freedom::free) row.push_back(fmt::format("{:+.4f}", c.predicted[i]));
      row.push_back(fmt::format("{:+.4f}", c.measured[i]));
    }
    table.row(std::move(row));
  }
  out += table.text(2);
  const auto answer = [](const LikeliestToken& t) {
    return fmt::format("{} {:.1f}%", quoted_piece(t.text), 100 * t.probability);
  };
  out += fmt::format("  likeliest next token: {}", answer(r.unchanged));
  for (std::size_t i = 0; i < r.checks.size(); ++i)
    out += fmt::format(", {} {}", freedom_name(r.checks[i].freedom), answer(r.changed[i]));
  out += "\n";
  for (const ChangeCheck& c : r.checks) {
    out += fmt::format(
        "  {}: correlation of predicted and measured {:.4f}, worst error {:.2g} of the largest "
        "effect{}\n",
        freedom_name(c.freedom), c.correlation, c.worst,
        c.freedom == Freedom::direct
            ? ""
            : fmt::format(", {} features of the graph no longer active", grouped(c.turned_off)));
  }
  return out;
}

nlohmann::ordered_json circuit_report_json(const CircuitReport& r, std::int64_t show) {
  nlohmann::ordered_json json;
  for (const auto& [name, value] : r.settings) json["settings"][name] = value;
  const auto count = [](const AttributionGraph& g) {
    return nlohmann::ordered_json{{"features", g.count(CircuitNodeKind::feature)},
                                  {"errors", g.count(CircuitNodeKind::error)},
                                  {"tokens", g.count(CircuitNodeKind::token)},
                                  {"logits", g.count(CircuitNodeKind::logit)},
                                  {"edges", g.edges()}};
  };
  json["active_features"] = r.active;
  json["graph"] = count(r.whole);
  json["pruned"] = count(r.pruned);
  json["replacement"] = r.scores.replacement;
  json["completeness"] = r.scores.completeness;
  json["seconds"] = r.seconds;
  for (double u : r.unexplained) json["unexplained"].push_back(u);
  for (const CircuitNode& n : r.whole.nodes) {
    if (n.kind != CircuitNodeKind::logit) continue;
    json["logits"].push_back({{"id", n.id},
                              {"token", n.index},
                              {"text", n.label},
                              {"probability", n.probability},
                              {"over_mean", n.pre_activation},
                              {"bias", n.bias}});
  }
  const std::vector<double> influence = node_influence(r.pruned);
  json["nodes"] = nlohmann::ordered_json::array();
  for (std::size_t i : by_influence(r.pruned, influence)) {
    if (show-- <= 0) break;
    const CircuitNode& n = r.pruned.nodes[i];
    json["nodes"].push_back({{"id", n.id},
                             {"kind", circuit_node_kind_name(n.kind)},
                             {"influence", influence[i]},
                             {"activation", n.activation}});
  }
  const auto answer = [](const LikeliestToken& t) {
    return nlohmann::ordered_json{{"id", t.id}, {"text", t.text}, {"probability", t.probability}};
  };
  if (!r.checks.empty()) {
    json["change"] = r.change;
    json["answer"] = answer(r.unchanged);
  }
  for (std::size_t k = 0; k < r.checks.size(); ++k) {
    const ChangeCheck& c = r.checks[k];
    nlohmann::ordered_json check = {{"freedom", freedom_name(c.freedom)},
                                    {"correlation", c.correlation},
                                    {"worst", c.worst},
                                    {"turned_off", c.turned_off},
                                    {"answer", answer(r.changed[k])}};
    std::size_t at = 0;
    for (std::size_t i = 0; i < r.whole.nodes.size(); ++i) {
      if (r.whole.nodes[i].kind != CircuitNodeKind::logit) continue;
      check["logits"].push_back({{"id", r.whole.nodes[i].id},
                                 {"predicted", c.predicted[i]},
                                 {"measured", c.measured[i]},
                                 {"probability", c.probability[at++]}});
    }
    json["checks"].push_back(std::move(check));
  }
  return json;
}

void write_circuit(const CircuitReport& r, ResultFile& file) {
  file.group("circuit");
  for (const auto& [name, value] : r.settings) file.setting(name, value);
  file.setting("active_features", r.active);
  file.setting("replacement_score", r.scores.replacement);
  file.setting("completeness_score", r.scores.completeness);
  file.setting("seconds", r.seconds);
  const AttributionGraph& g = r.whole;
  std::vector<std::string> ids, kinds, labels;
  std::vector<std::int32_t> layer, position, index;
  std::vector<double> activation, pre, bias, probability;
  std::vector<std::uint8_t> kept;
  std::unordered_map<std::string, std::int32_t> in_pruned;
  for (std::size_t i = 0; i < r.pruned.nodes.size(); ++i)
    in_pruned[r.pruned.nodes[i].id] = static_cast<std::int32_t>(i);
  for (const CircuitNode& n : g.nodes) {
    ids.push_back(n.id);
    kinds.emplace_back(circuit_node_kind_name(n.kind));
    labels.push_back(escape_controls(n.label));
    layer.push_back(n.layer);
    position.push_back(n.position);
    index.push_back(static_cast<std::int32_t>(n.index));
    activation.push_back(n.activation);
    pre.push_back(n.pre_activation);
    bias.push_back(n.bias);
    probability.push_back(n.probability);
    kept.push_back(in_pruned.contains(n.id) ? 1 : 0);
  }
  std::vector<std::int32_t> source, target;
  std::vector<float> weight;
  std::vector<std::uint8_t> edge_kept;
  for (std::size_t t = 0; t < g.nodes.size(); ++t) {
    const auto pruned = in_pruned.find(g.nodes[t].id);
    const IncomingEdges* left =
        pruned == in_pruned.end() ? nullptr : &r.pruned.incoming[size(pruned->second)];
    for (std::size_t e = 0; e < g.incoming[t].source.size(); ++e) {
      const std::int32_t s = g.incoming[t].source[e];
      source.push_back(s);
      target.push_back(static_cast<std::int32_t>(t));
      weight.push_back(g.incoming[t].weight[e]);
      const auto at = in_pruned.find(g.nodes[size(s)].id);
      edge_kept.push_back(
          left != nullptr && at != in_pruned.end() &&
                  std::binary_search(left->source.begin(), left->source.end(), at->second)
              ? 1
              : 0);
    }
  }
  std::vector<std::int64_t> edges(weight.size()), layers(r.unexplained.size());
  std::iota(edges.begin(), edges.end(), 0);
  std::iota(layers.begin(), layers.end(), 0);
  const std::vector<std::string> node = {"node"}, edge = {"edge"}, by_layer = {"layer"};
  file.axis("node", std::span<const std::string>(ids));
  file.axis("edge", std::span<const std::int64_t>(edges));
  file.axis("layer", std::span<const std::int64_t>(layers));
  const auto real = [&](const char* name, const std::vector<double>& values, const char* what,
                        const char* units) {
    file.dataset(name, node, std::span<const double>(values), what, units);
  };
  const auto whole = [&](const char* name, const std::vector<std::string>& dimension,
                         const std::vector<std::int32_t>& values, const char* what) {
    file.dataset(name, dimension, std::span<const std::int32_t>(values), what, "");
  };
  file.dataset("kind", node, std::span<const std::string>(kinds), "feature, error, token or logit",
               "");
  file.dataset("label", node, std::span<const std::string>(labels), "text of a logit's token", "");
  whole("node_layer", node, layer, "layer; -1 for tokens, the number of layers for logits");
  whole("position", node, position, "token of the prompt");
  whole("index", node, index, "feature, token id or id of the logit; -1 for errors");
  real("activation", activation, "of a feature", "");
  real("pre_activation", pre, "of a feature; a logit over the mean logit, before a soft-cap", "");
  real("bias", bias, "what is left of the pre-activation with all sources at zero", "");
  real("probability", probability, "of a logit", "");
  const std::vector<double> influence = node_influence(g);
  real("influence", influence, "w (A + A^2 + ...), rows |A| / sum, w the probabilities", "");
  file.dataset("in_pruned", node, std::span<const std::uint8_t>(kept),
               "1 if the node is in the pruned graph", "");
  whole("source", edge, source, "number of the node that acts");
  whole("target", edge, target, "number of the node acted on");
  file.dataset("weight", edge, std::span<const float>(weight),
               "what the source adds to the target's pre-activation", "");
  file.dataset("edge_in_pruned", edge, std::span<const std::uint8_t>(edge_kept),
               "1 if the edge is in the pruned graph", "");
  file.dataset("unexplained", by_layer, std::span<const double>(r.unexplained),
               "squared error of the reconstruction over the variance of the MLP output", "");
  if (r.checks.empty()) return;
  file.group("circuit_change");
  file.setting("change", r.change);
  file.setting("answer", escape_controls(r.unchanged.text));
  file.setting("answer_probability", r.unchanged.probability);
  std::vector<std::string> freedoms, answers;
  std::vector<double> answer_probability;
  for (const LikeliestToken& t : r.changed) {
    answers.push_back(escape_controls(t.text));
    answer_probability.push_back(t.probability);
  }
  std::vector<double> predicted, measured, correlation, worst;
  for (const ChangeCheck& c : r.checks) {
    freedoms.emplace_back(freedom_name(c.freedom));
    predicted.insert(predicted.end(), c.predicted.begin(), c.predicted.end());
    measured.insert(measured.end(), c.measured.begin(), c.measured.end());
    correlation.push_back(c.correlation);
    worst.push_back(c.worst);
  }
  const std::vector<std::string> run = {"freedom"}, run_node = {"freedom", "node"};
  file.axis("freedom", std::span<const std::string>(freedoms));
  file.axis("node", std::span<const std::string>(ids));
  file.dataset("predicted", run_node, std::span<const double>(predicted),
               "change of the pre-activation that the graph predicts; 0 for errors and tokens", "");
  file.dataset("measured", run_node, std::span<const double>(measured),
               "change of the pre-activation in the run", "");
  std::vector<std::int64_t> vocabulary(r.logits.size());
  std::iota(vocabulary.begin(), vocabulary.end(), 0);
  std::vector<float> changed;
  for (const ChangeCheck& c : r.checks)
    changed.insert(changed.end(), c.logits.begin(), c.logits.end());
  const std::vector<std::string> word = {"vocabulary"}, run_word = {"freedom", "vocabulary"};
  file.axis("vocabulary", std::span<const std::int64_t>(vocabulary));
  file.dataset("logits", word, std::span<const float>(r.logits), "of the last token, as it is", "");
  file.dataset("changed_logits", run_word, std::span<const float>(changed), "after the change", "");
  file.dataset("changed_answer", run, std::span<const std::string>(answers),
               "likeliest next token after the change; before it: attribute answer", "");
  file.dataset("changed_answer_probability", run, std::span<const double>(answer_probability),
               "its probability", "");
  file.dataset("correlation", run, std::span<const double>(correlation),
               "of predicted and measured, over features and logits not changed", "");
  file.dataset("worst", run, std::span<const double>(worst),
               "largest error over the largest predicted effect", "");
}

}  // namespace lamina::cli
