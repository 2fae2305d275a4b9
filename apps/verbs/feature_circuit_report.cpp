#include "verbs/feature_circuit_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::vector<std::string> method_names(const FeatureCircuitReport& r) {
  std::vector<std::string> names;
  for (const FeatureMethod m : r.effects.options.methods)
    names.emplace_back(feature_method_name(m));
  return names;
}

std::string signed_text(double value) {
  return fmt::format("{:+.5f}", value);
}

std::string interval(const Agreement::Value& v) {
  if (std::isnan(v.value)) return "-";
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", v.value, v.low, v.high);
}

// What a dictionary's nodes do together.
struct SiteSums {
  std::int64_t features = 0, nodes = 0;
  std::vector<double> feature_effect, error_effect;  // [method]
};

std::vector<SiteSums> site_sums(const FeatureCircuitReport& r) {
  const std::size_t methods = r.effects.options.methods.size();
  std::vector<SiteSums> all(r.dictionaries.size());
  for (std::size_t d = 0; d < all.size(); ++d) {
    all[d].features = r.dictionaries[d].config.features;
    all[d].feature_effect.resize(methods);
    all[d].error_effect.resize(methods);
  }
  for (std::size_t i = 0; i < r.effects.nodes.size(); ++i) {
    const FeatureNode& node = r.effects.nodes[i];
    SiteSums& site = all[static_cast<std::size_t>(node.dictionary)];
    ++site.nodes;
    for (std::size_t m = 0; m < methods; ++m) {
      (node.feature == kErrorNode ? site.error_effect : site.feature_effect)[m] +=
          r.effects.of(m)[i];
    }
  }
  return all;
}

std::string dictionaries_table(const FeatureCircuitReport& r) {
  const std::vector<std::string> methods = method_names(r);
  std::vector<std::string> headings = {"site", ">features", ">nodes"};
  for (const std::string& name : methods) {
    headings.push_back(">" + name + " features");
    headings.push_back(">error");
  }
  Table table(headings);
  const std::vector<SiteSums> sums = site_sums(r);
  for (std::size_t d = 0; d < sums.size(); ++d) {
    std::vector<std::string> cells = {site_name(r.dictionaries[d].config.output.site),
                                      grouped(sums[d].features), grouped(sums[d].nodes)};
    for (std::size_t m = 0; m < methods.size(); ++m) {
      cells.push_back(fmt::format("{:+.4f}", sums[d].feature_effect[m]));
      cells.push_back(fmt::format("{:+.4f}", sums[d].error_effect[m]));
    }
    table.row(cells);
  }
  return table.text(2);
}

// The measured effect of a node, if it was measured.
std::optional<double> exact_of(const FeatureCircuitReport& r, std::size_t node) {
  for (const FeatureCheck& check : r.checks) {
    const auto found = std::find(check.nodes.begin(), check.nodes.end(), node);
    if (found != check.nodes.end())
      return check.exact[static_cast<std::size_t>(found - check.nodes.begin())];
  }
  return std::nullopt;
}

std::string nodes_table(const FeatureCircuitReport& r, std::int64_t show) {
  std::vector<std::string> headings = {"node"};
  for (const std::string& name : method_names(r)) headings.push_back(">" + name);
  if (!r.checks.empty()) headings.emplace_back(">exact");
  Table table(headings);
  for (const std::size_t i : largest_by_any(r.effects, static_cast<std::size_t>(show))) {
    std::vector<std::string> cells = {feature_node_name(r.effects.nodes[i], r.dictionaries)};
    for (std::size_t m = 0; m < r.effects.options.methods.size(); ++m)
      cells.push_back(signed_text(r.effects.of(m)[i]));
    if (!r.checks.empty()) {
      const std::optional<double> exact = exact_of(r, i);
      cells.push_back(exact ? signed_text(*exact) : "");
    }
    table.row(cells);
  }
  return table.text(2);
}

std::string checks_table(const FeatureCircuitReport& r) {
  Table table({"nodes", ">number", "method", "Pearson", "Spearman", "same sign", "top 10"});
  const std::vector<std::string> methods = method_names(r);
  for (const FeatureCheck& check : r.checks) {
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const Agreement& a = check.agreements[m];
      table.row({check.name, grouped(a.nodes), methods[m], interval(a.pearson),
                 interval(a.spearman), interval(a.sign), interval(a.top_k)});
    }
  }
  return table.text(2);
}

// Edges by the largest |weight| that any method gives them, as indices of FeatureEdges::weights.
std::vector<std::size_t> largest_edges(const FeatureCircuitReport& r, std::int64_t show) {
  std::vector<double> size(r.edges[0].weights.size());
  for (const FeatureEdges& edges : r.edges)
    for (std::size_t i = 0; i < size.size(); ++i)
      size[i] = std::max(size[i], std::abs(edges.weights[i]));
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < size.size(); ++i)
    if (size[i] > 0) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return size[a] > size[b]; });
  order.resize(std::min(static_cast<std::size_t>(show), order.size()));
  return order;
}

// Names of the nodes, and of the metric behind them.
std::vector<std::string> edge_ends(const FeatureCircuitReport& r) {
  std::vector<std::string> names;
  for (const FeatureNode& node : r.edges[0].nodes)
    names.push_back(feature_node_name(node, r.dictionaries));
  names.emplace_back("metric");
  return names;
}

std::string edges_table(const FeatureCircuitReport& r, std::int64_t show) {
  std::vector<std::string> headings = {"from", "to"};
  for (const std::string& name : method_names(r)) headings.push_back(">" + name);
  Table table(headings);
  const std::vector<std::string> names = edge_ends(r);
  const std::size_t n = r.edges[0].nodes.size();
  for (const std::size_t i : largest_edges(r, show)) {
    std::vector<std::string> cells = {names[i % n], names[i / n]};
    for (const FeatureEdges& edges : r.edges) cells.push_back(signed_text(edges.weights[i]));
    table.row(cells);
  }
  return table.text(2);
}

std::string points_table(const FeatureCircuitReport& r, const std::string& first,
                         const std::vector<std::string>& rows,
                         const std::vector<FeatureCircuitPoint>& points, bool show_nodes) {
  const std::vector<std::string> methods = method_names(r);
  std::vector<std::string> headings = {">" + first};
  for (const std::string& name : methods) {
    if (show_nodes) headings.push_back(">" + name + " nodes");
    headings.push_back(">" + (show_nodes ? std::string("errors") : name + " errors"));
    headings.insert(headings.end(), {">faithful", ">complete"});
  }
  Table table(headings);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<std::string> cells = {rows[i]};
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const FeatureCircuitPoint& p = points[m * rows.size() + i];
      if (show_nodes) cells.push_back(grouped(p.nodes));
      cells.push_back(grouped(p.errors));
      cells.push_back(fmt::format("{:.3f}", p.faithfulness));
      cells.push_back(fmt::format("{:.3f}", p.completeness));
    }
    table.row(cells);
  }
  return table.text(2);
}

std::string sweep_text(const FeatureCircuitReport& r) {
  const FeatureSweep& s = *r.sweep;
  std::string out = "\n" + styled(Style::bold, "circuits") +
                    fmt::format("  model {:.4f}, every node ablated {:.4f}\n", s.full, s.empty);
  if (!s.thresholds.empty()) {
    std::vector<std::string> rows;
    for (const double t : s.thresholds) rows.push_back(fmt::format("{:.3g}", t));
    out += points_table(r, "|effect| >", rows, s.by_threshold, true);
  }
  if (!s.counts.empty()) {
    if (!s.thresholds.empty()) out += "\n";
    std::vector<std::string> rows;
    for (const std::int64_t n : s.counts) rows.push_back(grouped(n));
    out += points_table(r, "largest nodes", rows, s.by_count, false);
  }
  out +=
      "  faithful: what the circuit alone restores (1: as the model); complete: what is left "
      "without it (0: nothing)\n";
  return out;
}

Json points_json(const std::vector<FeatureCircuitPoint>& points, std::size_t first,
                 std::size_t count) {
  Json list = Json::array();
  for (std::size_t i = first; i < first + count; ++i) {
    const FeatureCircuitPoint& p = points[i];
    list.push_back({{"nodes", p.nodes},
                    {"errors", p.errors},
                    {"metric", p.metric},
                    {"faithfulness", p.faithfulness},
                    {"complement_metric", p.complement_metric},
                    {"completeness", p.completeness}});
  }
  return list;
}

Json value_json(const Agreement::Value& v) {
  return {{"value", v.value}, {"low", v.low}, {"high", v.high}};
}

}  // namespace

std::vector<std::size_t> largest_by_any(const FeatureEffects& effects, std::size_t count) {
  std::vector<double> size(effects.nodes.size());
  for (std::size_t m = 0; m < effects.options.methods.size(); ++m) {
    const auto values = effects.of(m);
    for (std::size_t i = 0; i < size.size(); ++i) size[i] = std::max(size[i], std::abs(values[i]));
  }
  std::vector<std::size_t> order(size.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return size[a] > size[b]; });
  order.resize(std::min(count, order.size()));
  return order;
}

std::string feature_circuit_text(const FeatureCircuitReport& r, std::int64_t show) {
  Facts facts;
  for (const auto& [name, value] : r.settings) facts.add(name, value);
  facts.add("metric", fmt::format("{:.4f} clean, {:.4f} corrupted", mean(r.effects.clean),
                                  mean(r.effects.corrupted)));
  const std::vector<std::string> methods = method_names(r);
  std::string times;
  for (std::size_t m = 0; m < methods.size(); ++m) {
    times += fmt::format("{}{} {}", m == 0 ? "" : ", ", methods[m], duration_text(r.seconds[m]));
  }
  facts.add("time", times);
  std::string out = facts.text();
  out += "\n" + styled(Style::bold, "dictionaries") +
         "  effects added up: metric clean − metric with the node patched\n" +
         dictionaries_table(r);
  if (show > 0 && !r.effects.nodes.empty()) {
    out += "\n" + styled(Style::bold, "largest effects") +
           fmt::format("  of {} nodes\n", grouped(std::ssize(r.effects.nodes))) +
           nodes_table(r, show);
  }
  if (!r.checks.empty()) {
    out += "\n" + styled(Style::bold, "estimates against patched runs") +
           "  95 % intervals over the nodes\n" + checks_table(r);
  }
  if (!r.edges.empty() && show > 0) {
    out += "\n" + styled(Style::bold, "largest edges") +
           fmt::format("  between {} nodes: what of an effect passes directly\n",
                       grouped(std::ssize(r.edges[0].nodes))) +
           edges_table(r, show);
  }
  if (r.sweep) out += sweep_text(r);
  return out;
}

Json feature_circuit_json(const FeatureCircuitReport& r, std::int64_t show) {
  Json json;
  for (const auto& [name, value] : r.settings) json["settings"][name] = value;
  json["clean"] = mean(r.effects.clean);
  json["corrupted"] = mean(r.effects.corrupted);
  const std::vector<std::string> methods = method_names(r);
  json["methods"] = methods;
  json["seconds"] = r.seconds;
  const std::vector<SiteSums> sums = site_sums(r);
  for (std::size_t d = 0; d < sums.size(); ++d) {
    json["dictionaries"].push_back({{"site", site_name(r.dictionaries[d].config.output.site)},
                                    {"name", r.dictionaries[d].config.name},
                                    {"features", sums[d].features},
                                    {"nodes", sums[d].nodes},
                                    {"feature_effect", sums[d].feature_effect},
                                    {"error_effect", sums[d].error_effect}});
  }
  json["nodes"] = r.effects.nodes.size();
  json["largest"] = Json::array();
  for (const std::size_t i : largest_by_any(r.effects, static_cast<std::size_t>(show))) {
    Json node = {{"node", feature_node_name(r.effects.nodes[i], r.dictionaries)}};
    for (std::size_t m = 0; m < methods.size(); ++m) node[methods[m]] = r.effects.of(m)[i];
    if (const std::optional<double> exact = exact_of(r, i)) node["exact"] = *exact;
    json["largest"].push_back(std::move(node));
  }
  for (const FeatureCheck& check : r.checks) {
    Json part = {{"nodes", check.name}, {"number", check.nodes.size()}};
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const Agreement& a = check.agreements[m];
      part[methods[m]] = {{"pearson", value_json(a.pearson)},
                          {"spearman", value_json(a.spearman)},
                          {"sign", value_json(a.sign)},
                          {"top", value_json(a.top_k)}};
    }
    json["checks"].push_back(std::move(part));
  }
  if (!r.edges.empty()) {
    const std::vector<std::string> names = edge_ends(r);
    const std::size_t n = r.edges[0].nodes.size();
    json["edges"] = Json::array();
    for (const std::size_t i : largest_edges(r, show)) {
      Json edge = {{"from", names[i % n]}, {"to", names[i / n]}};
      for (std::size_t m = 0; m < methods.size(); ++m) edge[methods[m]] = r.edges[m].weights[i];
      json["edges"].push_back(std::move(edge));
    }
  }
  if (r.sweep) {
    const FeatureSweep& s = *r.sweep;
    Json& sweep = json["sweep"];
    sweep = {
        {"model", s.full}, {"empty", s.empty}, {"thresholds", s.thresholds}, {"counts", s.counts}};
    for (std::size_t m = 0; m < methods.size(); ++m) {
      sweep["by_threshold"][methods[m]] =
          points_json(s.by_threshold, m * s.thresholds.size(), s.thresholds.size());
      sweep["by_count"][methods[m]] = points_json(s.by_count, m * s.counts.size(), s.counts.size());
    }
  }
  return json;
}

namespace {

void write_points(ResultFile& file, const char* axis,
                  const std::vector<FeatureCircuitPoint>& points) {
  const std::vector<std::string> dimensions = {"estimator", axis};
  const auto write = [&](const char* name, auto value, const char* what, const char* units) {
    std::vector<double> values;
    for (const FeatureCircuitPoint& p : points) values.push_back(static_cast<double>(value(p)));
    file.dataset(name, dimensions, std::span<const double>(values), what, units);
  };
  using Point = FeatureCircuitPoint;
  write(
      "nodes", [](const Point& p) { return p.nodes; }, "nodes of the circuit", "");
  write(
      "errors", [](const Point& p) { return p.errors; }, "how many of them are errors", "");
  write(
      "metric", [](const Point& p) { return p.metric; },
      "metric of the circuit, mean over the pairs", "metric");
  write(
      "faithfulness", [](const Point& p) { return p.faithfulness; },
      "(circuit - empty) / (model - empty)", "");
  write(
      "complement_metric", [](const Point& p) { return p.complement_metric; },
      "metric of everything but the circuit, mean over the pairs", "metric");
  write(
      "completeness", [](const Point& p) { return p.completeness; },
      "(everything but the circuit - empty) / (model - empty)", "");
}

}  // namespace

void write_feature_circuit(const FeatureCircuitReport& r, ResultFile& file) {
  const std::vector<std::string> methods = method_names(r);
  const auto start = [&](const char* group) {
    file.group(group);
    for (const auto& [name, value] : r.settings) file.setting(name, value);
    file.axis("estimator", std::span<const std::string>(methods));
  };
  const std::vector<FeatureNode>& nodes = r.effects.nodes;
  if (!nodes.empty()) {
    start("feature_circuit");
    file.setting("sign", "effect = metric clean - metric with the node patched");
    file.setting("metric_clean", mean(r.effects.clean));
    file.setting("metric_corrupted", mean(r.effects.corrupted));
    std::vector<std::string> names, sites, dictionary_names;
    std::vector<std::int32_t> dictionary, feature, position;
    for (const FeatureNode& node : nodes) {
      names.push_back(feature_node_name(node, r.dictionaries));
      dictionary.push_back(node.dictionary);
      feature.push_back(node.feature);
      position.push_back(node.position);
    }
    for (const Transcoder& t : r.dictionaries) {
      sites.push_back(site_name(t.config.output.site));
      dictionary_names.push_back(t.config.name);
    }
    file.axis("node", std::span<const std::string>(names));
    file.axis("dictionary", std::span<const std::string>(sites));
    const std::vector<std::string> by_node = {"node"}, by_both = {"estimator", "node"},
                                   by_method = {"estimator"}, by_dictionary = {"dictionary"};
    file.dataset("effect", by_both, std::span<const double>(r.effects.effects),
                 "estimated effect of the node, mean over the pairs", "metric");
    file.dataset("seconds", by_method, std::span<const double>(r.seconds), "time of the estimates",
                 "s");
    file.dataset("dictionary_name", by_dictionary, std::span<const std::string>(dictionary_names),
                 "name of the dictionary that rebuilds the site", "");
    file.dataset("node_dictionary", by_node, std::span<const std::int32_t>(dictionary),
                 "index of the node's dictionary", "");
    file.dataset("node_feature", by_node, std::span<const std::int32_t>(feature),
                 "feature, -1: the dictionary's error", "");
    if (r.effects.options.by_position) {
      file.dataset("node_position", by_node, std::span<const std::int32_t>(position),
                   "token of the clean prompt, counted from where `positions` says", "");
    }
  }
  for (const FeatureCheck& check : r.checks) {
    start(("feature_circuit_exact_" + check.name).c_str());
    std::vector<std::string> names;
    std::vector<double> estimates;
    for (const std::size_t i : check.nodes)
      names.push_back(feature_node_name(nodes[i], r.dictionaries));
    for (std::size_t m = 0; m < methods.size(); ++m)
      for (const std::size_t i : check.nodes) estimates.push_back(r.effects.of(m)[i]);
    if (names.empty()) continue;
    file.axis("node", std::span<const std::string>(names));
    const std::vector<std::string> by_node = {"node"}, by_both = {"estimator", "node"},
                                   by_method = {"estimator"};
    file.dataset("exact", by_node, std::span<const double>(check.exact),
                 "effect of the node measured by patched runs, mean over the pairs", "metric");
    file.dataset("effect", by_both, std::span<const double>(estimates),
                 "estimated effect of the node, mean over the pairs", "metric");
    const auto write = [&](const char* name, Agreement::Value Agreement::*member,
                           const char* what) {
      std::vector<double> values, low, high;
      for (const Agreement& a : check.agreements) {
        values.push_back((a.*member).value);
        low.push_back((a.*member).low);
        high.push_back((a.*member).high);
      }
      const std::string n = name;
      file.dataset(n, by_method, std::span<const double>(values), what, "");
      file.dataset(n + "_low", by_method, std::span<const double>(low),
                   "lower end of its 95 % interval over the nodes", "");
      file.dataset(n + "_high", by_method, std::span<const double>(high),
                   "upper end of its 95 % interval over the nodes", "");
    };
    write("pearson", &Agreement::pearson, "Pearson correlation of estimated and measured effects");
    write("spearman", &Agreement::spearman, "Spearman correlation of the same");
    write("sign", &Agreement::sign, "share of equal signs");
    write("top", &Agreement::top_k, "share of the ten largest that are among the ten largest");
  }
  if (!r.edges.empty()) {
    start("feature_circuit_edges");
    const std::vector<std::string> to = edge_ends(r), from(to.begin(), to.end() - 1);
    if (!from.empty()) {
      file.axis("to", std::span<const std::string>(to));
      file.axis("from", std::span<const std::string>(from));
      std::vector<double> weights;
      for (const FeatureEdges& edges : r.edges)
        weights.insert(weights.end(), edges.weights.begin(), edges.weights.end());
      const std::vector<std::string> dimensions = {"estimator", "to", "from"};
      file.dataset("weight", dimensions, std::span<const double>(weights),
                   "what of the effect of `from` passes directly to `to`, mean over the pairs",
                   "metric");
    }
  }
  if (!r.sweep) return;
  const FeatureSweep& s = *r.sweep;
  const auto sweep = [&](const char* group) {
    start(group);
    file.setting("metric_model", s.full);
    file.setting("metric_empty", s.empty);
  };
  if (!s.thresholds.empty()) {
    sweep("feature_circuit_thresholds");
    file.axis("threshold", std::span<const double>(s.thresholds));
    write_points(file, "threshold", s.by_threshold);
  }
  if (!s.counts.empty()) {
    sweep("feature_circuit_counts");
    file.axis("count", std::span<const std::int64_t>(s.counts));
    write_points(file, "count", s.by_count);
  }
}

}  // namespace lamina::cli
