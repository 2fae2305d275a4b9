// EAP-IG's graph files.

#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/patching/faithfulness.h"
#include "lamina/patching/graph.h"

namespace lamina {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMostBytes = std::uintmax_t{2} << 30;

const json& member(const json& object, const char* name, const std::string& where) {
  const auto found = object.find(name);
  if (found == object.end()) fail("{}: \"{}\" is missing", where, name);
  return *found;
}

std::int64_t size_member(const json& object, const char* name, const std::string& where) {
  const json& value = member(object, name, where);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > (std::uint64_t{1} << 31)) {
    fail("{}: \"{}\" must be a positive whole number, got {}", where, name,
         value.dump().substr(0, 40));
  }
  return value.get<std::int64_t>();
}

bool flag_member(const json& object, const char* name, const std::string& where) {
  const json& value = member(object, name, where);
  if (!value.is_boolean())
    fail("{}: \"{}\" must be true or false, got {}", where, name, value.dump().substr(0, 40));
  return value.get<bool>();
}

json parse_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) fail("{}: cannot be read: {}", path.string(), error.message());
  if (bytes > kMostBytes)
    fail("{}: {} bytes, a graph may have at most {}", path.string(), bytes, kMostBytes);
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("{}: cannot be opened", path.string());
  // A nesting bomb would exhaust the stack when the values are destroyed.
  const json::parser_callback_t shallow = [&](int depth, json::parse_event_t, json&) {
    if (depth > 8) fail("{}: nested deeper than a graph is", path.string());
    return true;
  };
  try {
    return json::parse(in, shallow);
  } catch (const json::exception& problem) {
    fail("{}: no JSON: {}", path.string(), problem.what());
  }
}

EdgeGraph parse_graph(const json& file, const std::string& where) {
  if (!file.is_object()) fail("{}: a graph is a JSON object", where);
  const json& cfg = member(file, "cfg", where);
  const json& nodes = member(file, "nodes", where);
  const json& edges = member(file, "edges", where);
  if (!cfg.is_object() || !nodes.is_object() || !edges.is_object())
    fail("{}: \"cfg\", \"nodes\" and \"edges\" must be objects", where);

  GraphShape shape;
  const std::string in_cfg = where + ": cfg";
  shape.n_layers = size_member(cfg, "n_layers", in_cfg);
  shape.n_heads = size_member(cfg, "n_heads", in_cfg);
  shape.d_model = size_member(cfg, "d_model", in_cfg);
  shape.parallel = flag_member(cfg, "parallel_attn_mlp", in_cfg);
  shape.mlps = nodes.contains("m0");
  EdgeGraph graph = [&] {
    try {
      return EdgeGraph(shape);
    } catch (const Error& problem) {
      fail("{}: {}", where, problem.what());
    }
  }();

  for (const auto& [name, node] : nodes.items()) {
    if (!graph.find_node(name)) fail("{}: node \"{}\" is not in a graph of this size", where, name);
    const std::string in_node = where + ": node \"" + name + "\"";
    if (!node.is_object()) fail("{}: must be an object", in_node);
    flag_member(node, "in_graph", in_node);
    if (node.contains("neurons"))
      fail("{}: circuits at the level of neurons are not supported", in_node);
  }
  std::vector<double> scores(static_cast<std::size_t>(graph.edges()), 0.0);
  EdgeMask mask(static_cast<std::size_t>(graph.edges()), 0);
  for (const auto& [name, edge] : edges.items()) {
    const std::string in_edge = where + ": edge \"" + name + "\"";
    const std::optional<std::int64_t> id = graph.find_edge(name);
    if (!id) fail("{}: not in a graph of this size", in_edge);
    if (!edge.is_object()) fail("{}: must be an object", in_edge);
    const json& score = member(edge, "score", in_edge);
    if (!score.is_number() || !std::isfinite(score.get<double>()))
      fail("{}: \"score\" must be a finite number, got {}", in_edge, score.dump().substr(0, 40));
    scores[static_cast<std::size_t>(*id)] = score.get<double>();
    mask[static_cast<std::size_t>(*id)] = flag_member(edge, "in_graph", in_edge) ? 1 : 0;
  }
  graph.set_scores(scores);
  graph.set_mask(mask);
  return graph;
}

}  // namespace

EdgeGraph read_graph(const std::filesystem::path& path) {
  return parse_graph(parse_file(path), path.string());
}

std::string graph_json(const EdgeGraph& graph) {
  // Written by hand: the order of the keys is EAP-IG's, and millions of edges need no tree.
  const GraphShape& shape = graph.shape();
  std::string out = fmt::format(
      R"({{"cfg": {{"n_layers": {}, "n_heads": {}, "parallel_attn_mlp": {}, "d_model": {}}}, "nodes": {{)",
      shape.n_layers, shape.n_heads, shape.parallel, shape.d_model);
  for (std::int64_t v = 0; v <= graph.sources(); ++v) {
    out += fmt::format(R"({}"{}": {{"in_graph": {}}})", v == 0 ? "" : ", ", graph.node_name(v),
                       graph.node(v).in_graph);
  }
  out += R"(}, "edges": {)";
  for (std::int64_t id = 0; id < graph.edges(); ++id) {
    const GraphEdge& edge = graph.edge(id);
    if (!std::isfinite(edge.score)) fail("edge {}: the score is not finite", graph.edge_name(id));
    out += fmt::format(R"({}"{}": {{"score": {}, "in_graph": {}}})", id == 0 ? "" : ", ",
                       graph.edge_name(id), edge.score, edge.in_graph);
  }
  return out + "}}\n";
}

KnownCircuit read_known_circuit(const std::filesystem::path& path, const EdgeGraph& graph) {
  const std::string where = path.string();
  const json file = parse_file(path);
  if (!file.is_object()) fail("{}: a circuit is a JSON object", where);
  KnownCircuit known;
  known.nodes.assign(static_cast<std::size_t>(graph.sources()), 0);
  if (file.contains("cfg")) {
    const EdgeGraph circuit = parse_graph(file, where);
    if (circuit.edges() != graph.edges() || circuit.sources() != graph.sources()) {
      fail("{}: a graph of {} nodes and {} edges, the model's has {} and {}", where,
           circuit.sources(), circuit.edges(), graph.sources(), graph.edges());
    }
    known.edges = known.counterfactual = circuit.mask();
    for (std::int64_t v = 0; v < graph.sources(); ++v)
      known.nodes[static_cast<std::size_t>(v)] = circuit.node(v).in_graph ? 1 : 0;
    return known;
  }
  known.edges.assign(static_cast<std::size_t>(graph.edges()), 0);
  known.counterfactual = known.edges;
  const json& nodes = member(file, "nodes", where);
  const json& edges = member(file, "edges", where);
  if (!nodes.is_array() || !edges.is_array())
    fail("{}: \"nodes\" and \"edges\" must be lists", where);
  const auto name_of = [&](const json& entry, const char* key) {
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_string())
      fail("{}: every entry needs a \"{}\", got {}", where, key, entry.dump().substr(0, 60));
    return entry[key].get<std::string>();
  };
  for (const json& node : nodes) {
    const std::string name = name_of(node, "name");
    const std::optional<std::int64_t> vertex = graph.find_node(name);
    if (!vertex) fail("{}: node \"{}\" is not in the model's graph", where, name);
    if (*vertex < graph.sources()) known.nodes[static_cast<std::size_t>(*vertex)] = 1;
  }
  for (const json& edge : edges) {
    const std::string name = name_of(edge, "edge");
    const std::optional<std::int64_t> id = graph.find_edge(name);
    if (!id) fail("{}: edge \"{}\" is not in the model's graph", where, name);
    known.edges[static_cast<std::size_t>(*id)] = 1;
    if (!edge.contains("counterfactual")) continue;
    known.marks_counterfactual = true;
    const bool differs = flag_member(edge, "counterfactual", where + ": edge \"" + name + "\"");
    known.counterfactual[static_cast<std::size_t>(*id)] = differs ? 1 : 0;
  }
  if (!known.marks_counterfactual) known.counterfactual = known.edges;
  return known;
}

}  // namespace lamina
