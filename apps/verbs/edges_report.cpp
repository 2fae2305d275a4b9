#include "verbs/edges_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

std::vector<std::int64_t> largest_edges(const EdgeGraph& graph, std::int64_t show) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(graph.edges()));
  std::iota(ids.begin(), ids.end(), 0);
  const auto count = static_cast<std::ptrdiff_t>(std::min(show, graph.edges()));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](auto a, auto b) {
    const double x = std::abs(graph.edge(a).score), y = std::abs(graph.edge(b).score);
    return x != y ? x > y : a < b;
  });
  ids.resize(static_cast<std::size_t>(count));
  return ids;
}

std::string percent(double share) {
  return fmt::format("{:.3g}%", 100 * share);
}

void add_points(Table& table, const std::vector<CircuitPoint>& points, const char* by) {
  for (const CircuitPoint& p : points) {
    table.row({by, percent(p.share), grouped(p.edges), grouped(p.nodes),
               fmt::format("{:.4f}", p.metric), fmt::format("{:.3f}", p.faithfulness),
               fmt::format("{:.3f}", p.completeness)});
  }
}

}  // namespace

KnownScores known_scores(const EdgeGraph& graph, const KnownCircuit& known) {
  KnownScores result;
  const auto count = [](const auto& flags) { return std::count(flags.begin(), flags.end(), 1); };
  result.edges = count(known.edges);
  result.counterfactual = count(known.counterfactual);
  result.nodes = count(known.nodes);
  result.auroc = edge_auroc(graph, known);
  result.mib =
      result.edges > 0 ? auroc_mib(graph, known.edges) : std::numeric_limits<double>::quiet_NaN();
  return result;
}

std::string edges_text(const EdgeReport& r, std::int64_t show) {
  std::string out;
  Facts facts;
  for (const auto& [name, value] : r.settings) facts.add(name, value);
  facts.add("graph", fmt::format("{} edges, {} nodes and the logits", grouped(r.graph.edges()),
                                 grouped(r.graph.sources())));
  if (r.has_runs)
    facts.add("metric", fmt::format("{:.4f} clean, {:.4f} corrupted", r.clean, r.corrupted));
  if (r.seconds > 0) facts.add("time", duration_text(r.seconds));
  out += facts.text();
  if (show > 0) {
    out += "\n" + styled(Style::bold, "largest edges") + "\n";
    Table table({"edge", ">score", "circuit"});
    for (const std::int64_t id : largest_edges(r.graph, show)) {
      table.row({r.graph.edge_name(id), fmt::format("{:+.5f}", r.graph.edge(id).score),
                 r.circuit && r.graph.edge(id).in_graph ? "in" : ""});
    }
    out += table.text(2);
  }
  if (r.circuit) {
    const ChosenCircuit& c = *r.circuit;
    out += "\n" + styled(Style::bold, "circuit") + "  " + c.how + "\n";
    Facts circuit;
    circuit.add("size", fmt::format("{} edges, {} nodes", grouped(c.edges), grouped(c.nodes)));
    circuit.add("metric", fmt::format("{:.4f} (whole graph {:.4f}, empty {:.4f})", c.metric, c.full,
                                      c.empty));
    circuit.add("faithfulness", fmt::format("{:.4f}", c.faithfulness));
    circuit.add("completeness",
                fmt::format("{:.4f} (what is left without it; lower is better)", c.completeness));
    out += circuit.text(2);
  }
  if (r.faithfulness) {
    const FaithfulnessResult& f = *r.faithfulness;
    out += "\n" + styled(Style::bold, "faithfulness") +
           fmt::format("  whole graph {:.4f}, empty {:.4f}\n", f.full, f.empty);
    Table table({"by", ">share", ">edges", ">nodes", ">metric", ">faithful", ">complete"});
    add_points(table, f.by_signed, "score");
    add_points(table, f.by_absolute, "|score|");
    out += table.text(2);
    Facts areas;
    areas.add("CPR", fmt::format("{:.4f} linear axis, {:.4f} log axis (by score; higher is better)",
                                 f.cpr, f.cpr_log));
    areas.add("CMD",
              fmt::format("{:.4f} linear axis, {:.4f} log axis (by |score|; lower is better)",
                          f.cmd, f.cmd_log));
    out += areas.text(2);
  }
  if (r.known) {
    const KnownScores& k = *r.known;
    out += "\n" + styled(Style::bold, "known circuit") +
           fmt::format("  {} edges, {} of them differ between the prompts\n", k.edges,
                       k.counterfactual);
    Facts facts_known;
    facts_known.add("AUROC, what differs",
                    fmt::format("{:.4f} edges, {:.4f} nodes", k.auroc.edges, k.auroc.nodes));
    facts_known.add("AUROC, all", fmt::format("{:.4f} edges, {:.4f} nodes", k.auroc.all_edges,
                                              k.auroc.all_nodes));
    facts_known.add("AUROC, MIB", fmt::format("{:.4f} all edges", k.mib));
    out += facts_known.text(2);
  }
  return out;
}

nlohmann::ordered_json edges_json(const EdgeReport& r, std::int64_t show) {
  nlohmann::ordered_json json;
  for (const auto& [name, value] : r.settings) json["settings"][name] = value;
  json["edges"] = r.graph.edges();
  json["nodes"] = r.graph.sources();
  json["seconds"] = r.seconds;
  if (r.has_runs) {
    json["clean"] = r.clean;
    json["corrupted"] = r.corrupted;
  }
  json["largest"] = nlohmann::ordered_json::array();
  for (const std::int64_t id : largest_edges(r.graph, show)) {
    json["largest"].push_back({{"edge", r.graph.edge_name(id)}, {"score", r.graph.edge(id).score}});
  }
  if (r.circuit) {
    const ChosenCircuit& c = *r.circuit;
    json["circuit"] = {{"how", c.how},
                       {"edges", c.edges},
                       {"nodes", c.nodes},
                       {"metric", c.metric},
                       {"whole_graph", c.full},
                       {"empty", c.empty},
                       {"faithfulness", c.faithfulness},
                       {"completeness", c.completeness}};
    for (std::int64_t id = 0; id < r.graph.edges(); ++id) {
      if (r.graph.edge(id).in_graph) json["circuit"]["names"].push_back(r.graph.edge_name(id));
    }
  }
  if (r.faithfulness) {
    const FaithfulnessResult& f = *r.faithfulness;
    auto& out = json["faithfulness"];
    out = {{"whole_graph", f.full}, {"empty", f.empty}, {"cpr", f.cpr},
           {"cpr_log", f.cpr_log},  {"cmd", f.cmd},     {"cmd_log", f.cmd_log}};
    const auto points = [](const std::vector<CircuitPoint>& all) {
      auto list = nlohmann::ordered_json::array();
      for (const CircuitPoint& p : all) {
        list.push_back({{"share", p.share},
                        {"edges", p.edges},
                        {"nodes", p.nodes},
                        {"metric", p.metric},
                        {"faithfulness", p.faithfulness},
                        {"completeness", p.completeness}});
      }
      return list;
    };
    out["by_score"] = points(f.by_signed);
    out["by_magnitude"] = points(f.by_absolute);
  }
  if (r.known) {
    const KnownScores& k = *r.known;
    json["known"] = {{"edges", k.edges},
                     {"counterfactual_edges", k.counterfactual},
                     {"nodes", k.nodes},
                     {"auroc_edges", k.auroc.edges},
                     {"auroc_nodes", k.auroc.nodes},
                     {"auroc_all_edges", k.auroc.all_edges},
                     {"auroc_all_nodes", k.auroc.all_nodes},
                     {"auroc_mib", k.mib}};
  }
  return json;
}

void write_edges(const EdgeReport& r, ResultFile& file) {
  file.group("edges");
  for (const auto& [name, value] : r.settings) file.setting(name, value);
  file.setting("sign", "positive: ablating the edge lowers the metric");
  if (r.has_runs) {
    file.setting("metric_clean", r.clean);
    file.setting("metric_corrupted", r.corrupted);
  }
  file.setting("seconds", r.seconds);
  std::vector<std::string> names, nodes;
  std::vector<std::int32_t> in, node_in;
  for (std::int64_t id = 0; id < r.graph.edges(); ++id) {
    names.push_back(r.graph.edge_name(id));
    in.push_back(r.graph.edge(id).in_graph ? 1 : 0);
  }
  for (std::int64_t v = 0; v < r.graph.sources(); ++v) {
    nodes.push_back(r.graph.node_name(v));
    node_in.push_back(r.graph.node(v).in_graph ? 1 : 0);
  }
  const std::vector<std::string> edge = {"edge"}, node = {"node"};
  file.axis("edge", std::span<const std::string>(names));
  file.axis("node", std::span<const std::string>(nodes));
  const std::vector<double> scores = r.graph.scores(), best = node_scores(r.graph);
  file.dataset("score", edge, std::span<const double>(scores),
               "score of every edge, mean over the pairs", "metric");
  file.dataset("node_score", node, std::span<const double>(best),
               "largest magnitude among the edges that leave the node", "metric");
  if (r.circuit) {
    file.dataset("in_circuit", edge, std::span<const std::int32_t>(in),
                 "1 if the edge is in the circuit, after pruning", "");
    file.dataset("node_in_circuit", node, std::span<const std::int32_t>(node_in),
                 "1 if the node has edges of the circuit on each of its sides", "");
    const ChosenCircuit& c = *r.circuit;
    file.setting("circuit", c.how);
    file.setting("circuit_edges", c.edges);
    file.setting("circuit_nodes", c.nodes);
    file.setting("circuit_metric", c.metric);
    file.setting("circuit_faithfulness", c.faithfulness);
    file.setting("circuit_completeness", c.completeness);
    file.setting("metric_whole_graph", c.full);
    file.setting("metric_empty_graph", c.empty);
  }
  if (r.known) {
    file.setting("auroc_edges", r.known->auroc.edges);
    file.setting("auroc_nodes", r.known->auroc.nodes);
    file.setting("auroc_all_edges", r.known->auroc.all_edges);
    file.setting("auroc_all_nodes", r.known->auroc.all_nodes);
    file.setting("auroc_mib", r.known->mib);
  }
  if (!r.faithfulness) return;
  const FaithfulnessResult& f = *r.faithfulness;
  file.group("edges_faithfulness");
  file.setting("metric_whole_graph", f.full);
  file.setting("metric_empty_graph", f.empty);
  file.setting("cpr", f.cpr);
  file.setting("cpr_log_axis", f.cpr_log);
  file.setting("cmd", f.cmd);
  file.setting("cmd_log_axis", f.cmd_log);
  const std::vector<std::string> by = {"score", "magnitude"};
  const std::vector<double> shares(kCircuitShares.begin(), kCircuitShares.end());
  file.axis("chosen_by", std::span<const std::string>(by));
  file.axis("share", std::span<const double>(shares));
  const std::vector<std::string> dimensions = {"chosen_by", "share"};
  const auto column = [&](auto member) {
    std::vector<double> values;
    for (const auto* points : {&f.by_signed, &f.by_absolute}) {
      for (const CircuitPoint& p : *points) values.push_back(static_cast<double>(p.*member));
    }
    return values;
  };
  const auto write = [&](const char* name, const std::vector<double>& values, const char* what,
                         const char* units) {
    file.dataset(name, dimensions, std::span<const double>(values), what, units);
  };
  write("faithfulness", column(&CircuitPoint::faithfulness),
        "(circuit - empty) / (whole graph - empty)", "");
  write("completeness", column(&CircuitPoint::completeness),
        "the same of the whole graph without the circuit", "");
  write("metric", column(&CircuitPoint::metric), "metric of the circuit, mean over the pairs",
        "metric");
  write("edges", column(&CircuitPoint::edges), "edges of the circuit after pruning", "");
  write("nodes", column(&CircuitPoint::nodes), "nodes of the circuit after pruning", "");
}

}  // namespace lamina::cli
