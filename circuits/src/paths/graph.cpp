// Paths laid over one another, and the texts of the graph.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "lamina/circuits/paths.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// In quotes for Graphviz: bytes that are no UTF-8 become U+FFFD, control characters blanks.
std::string escaped(const std::string& text) {
  const std::string valid =
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string out;
  for (const char c : nlohmann::json::parse(valid).get<std::string>()) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out;
}

const char* colour(const std::string& kind) {
  if (kind == "logit") return "#f6d5d5";
  if (kind == "feature") return "#d5e6f6";
  if (kind == "head") return "#f6ecd0";
  if (kind == "token" || kind == "position") return "#d9f0d9";
  return "#e6e6e6";
}

}  // namespace

PathGraph merge_paths(const FoundPaths& paths) {
  PathGraph graph;
  graph.tokens = paths.tokens;
  std::map<std::pair<std::string, std::string>, std::int32_t> known;  // kind, name
  const auto node = [&](const PathNode& n, const std::string& kind, const std::string& name) {
    const auto [at, is_new] =
        known.try_emplace({kind, name}, static_cast<std::int32_t>(graph.nodes.size()));
    if (is_new) {
      std::string word;
      if (n.kind == PathNodeKind::logit) {
        word = paths.explained;
      } else if (n.position < std::ssize(paths.tokens)) {
        word = paths.tokens[size(n.position)];
      }
      graph.nodes.push_back(
          {.node = n, .kind = kind, .name = name, .word = word, .contribution = 0});
    }
    return at->second;
  };
  std::map<std::pair<std::int32_t, std::int32_t>, double> weights;  // target, source
  for (const PathPrefix& p : paths.prefixes) {
    const auto own =
        node(p.node, std::string(path_node_kind_name(p.node.kind)), path_node_name(p.node));
    graph.nodes[size(own)].contribution += p.contribution;
    if (p.parent >= 0) {
      const PathNode& above = paths.prefixes[size(p.parent)].node;
      const auto target =
          node(above, std::string(path_node_kind_name(above.kind)), path_node_name(above));
      weights[{target, own}] += p.contribution;
    }
    if (!p.expanded) continue;
    const PathPrefix::Account& a = p.account;
    const std::pair<const char*, double> rest[] = {
        {"error", a.errors},
        {"bias", a.biases},
        {"rest", a.features + a.heads + a.skips + a.embeddings}};
    for (const auto& [kind, value] : rest) {
      if (value == 0) continue;
      const std::int32_t source =
          node(p.node, kind, fmt::format("{} of {}", kind, path_node_name(p.node)));
      graph.nodes[size(source)].contribution += value;
      weights[{own, source}] += value;
    }
  }
  for (const auto& [ends, weight] : weights)
    graph.edges.push_back({.source = ends.second, .target = ends.first, .weight = weight});
  return graph;
}

std::string path_graph_json(const PathGraph& graph) {
  nlohmann::ordered_json json;
  json["format"] = "lamina.paths";
  json["version"] = 1;
  json["tokens"] = graph.tokens;
  json["nodes"] = nlohmann::ordered_json::array();
  json["edges"] = nlohmann::ordered_json::array();
  for (const PathGraph::Node& n : graph.nodes) {
    nlohmann::ordered_json one = {{"id", n.name}, {"kind", n.kind}};
    const bool own = n.kind == path_node_kind_name(n.node.kind);
    if (own && n.node.layer >= 0) one["layer"] = n.node.layer;
    one["position"] = n.node.position;
    if (own && n.node.kind == PathNodeKind::feature) one["feature"] = n.node.index;
    if (own && n.node.kind == PathNodeKind::head) one["head"] = n.node.index;
    if (own && (n.node.kind == PathNodeKind::token || n.node.kind == PathNodeKind::logit))
      one["token"] = n.node.index;
    if (own && n.node.other >= 0) one["minus"] = n.node.other;
    if (own && !n.word.empty()) one["text"] = n.word;
    one["contribution"] = n.contribution;
    json["nodes"].push_back(std::move(one));
  }
  for (const PathGraph::Edge& e : graph.edges)
    json["edges"].push_back({{"source", graph.nodes[size(e.source)].name},
                             {"target", graph.nodes[size(e.target)].name},
                             {"weight", e.weight}});
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string path_graph_dot(const PathGraph& graph) {
  std::string out =
      "digraph paths {\n  rankdir=BT;\n  node [shape=box, style=\"filled,rounded\", "
      "fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n";
  double most = 0;
  for (const PathGraph::Edge& e : graph.edges) most = std::max(most, std::abs(e.weight));
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const PathGraph::Node& n = graph.nodes[i];
    if (n.kind == path_node_kind_name(n.node.kind)) {
      out += fmt::format("  n{} [label=\"{}\\n{}\\n{:+.3g}\", fillcolor=\"{}\"];\n", i,
                         escaped(n.kind == "logit" ? "logit" : n.name), escaped(n.word),
                         n.contribution, colour(n.kind));
    } else {  // errors, biases, the rest: the edge has the number
      out += fmt::format("  n{} [label=\"{}\", shape=plaintext, style=\"\", fontcolor=gray40];\n",
                         i, n.kind);
    }
  }
  for (const PathGraph::Edge& e : graph.edges) {
    const double share = most > 0 ? std::abs(e.weight) / most : 0;
    out +=
        fmt::format("  n{} -> n{} [label=\"{:+.3g}\", penwidth={:.2f}, color=\"{}\"];\n", e.source,
                    e.target, e.weight, 0.5 + 4 * share, e.weight < 0 ? "#b03030" : "#3060a0");
  }
  return out + "}\n";
}

}  // namespace lamina
