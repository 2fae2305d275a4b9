#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "lamina/circuits/graph_io.h"
#include "lamina/core/error.h"
#include "one_line.h"

namespace lamina {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMostBytes = std::uintmax_t{4} << 30;
constexpr std::size_t kMostNodes = 4'000'000;
constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr std::int64_t kMostLayers = 100'000;

std::string json_text(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

// One number for (layer, feature): circuit-tracer's Cantor pairing. Features that other programs
// number beyond all dictionaries stay as they are.
std::int64_t paired(std::int64_t x, std::int64_t y) {
  if (y < 0 || y > (std::int64_t{1} << 31)) return y;
  return (x + y) * (x + y + 1) / 2 + y;
}

// Tokens as the viewers show them.
std::string shown(std::string text) {
  const auto replace = [&](const char* from, const char* to) {
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += 3)
      text.replace(at, 1, to);
  };
  replace("\n", "⏎");
  replace("\t", "→");
  replace("\r", "↵");
  return text;
}

const char* feature_type(CircuitNodeKind kind) {
  constexpr const char* kTypes[] = {"cross layer transcoder", "mlp reconstruction error",
                                    "embedding", "logit"};
  return kTypes[static_cast<std::size_t>(kind)];
}

std::string node_json(const CircuitNode& n, bool first_logit) {
  const std::string layer = n.kind == CircuitNodeKind::token   ? "E"
                            : n.kind == CircuitNodeKind::logit ? fmt::format("{}", n.layer + 1)
                                                               : fmt::format("{}", n.layer);
  std::int64_t feature = n.index;
  std::string js_id, label = n.label;
  switch (n.kind) {
    case CircuitNodeKind::feature:
      feature = paired(n.layer, n.index);
      js_id = fmt::format("{}_{}-0", n.layer, n.index);
      break;
    case CircuitNodeKind::error:
      js_id = fmt::format("{}_{}-0", n.layer, n.position);
      break;
    case CircuitNodeKind::token:
      feature = n.position;
      js_id = fmt::format("E_{}-{}", n.index, n.position);
      break;
    case CircuitNodeKind::logit:
      js_id = fmt::format("L_{}-{}", n.index, n.position);
      label = fmt::format("Output \"{}\" (p={:.3f})", shown(n.label), n.probability);
      break;
  }
  std::string out = fmt::format(
      R"({{"node_id":{},"feature":{},"layer":"{}","ctx_idx":{},"feature_type":"{}","token_prob":{},)"
      R"("is_target_logit":{},"run_idx":0,"reverse_ctx_idx":0,"jsNodeId":{},"clerp":{},)"
      R"("influence":{},"activation":{})",
      json_text(n.id), feature, layer, n.position, feature_type(n.kind), number(n.probability),
      first_logit, json_text(js_id), json_text(label), number(n.influence),
      n.kind == CircuitNodeKind::feature ? number(n.activation) : "null");
  if (n.kind == CircuitNodeKind::feature || n.kind == CircuitNodeKind::logit)
    out +=
        fmt::format(R"(,"preactivation":{},"bias":{})", number(n.pre_activation), number(n.bias));
  return out + "}";
}

// What the file says, links apart.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : where_(path.string()) {}

  AttributionGraph read(const std::filesystem::path& path) {
    std::error_code code;
    const std::uintmax_t bytes = std::filesystem::file_size(path, code);
    if (code) fail("{}: {}", where_, code.message());
    if (bytes > kMostBytes) fail("{}: {} bytes, expected at most {}", where_, bytes, kMostBytes);
    std::ifstream in(path, std::ios::binary);
    json file;
    try {
      // Links are taken as they come: there may be millions of them.
      std::string key;
      file = json::parse(in, [&](int depth, json::parse_event_t event, json& parsed) {
        if (depth > 12) fail("{}: nested deeper than a graph is", where_);
        if (event == json::parse_event_t::key && depth == 1) key = parsed.get<std::string>();
        if (event == json::parse_event_t::object_end && depth == 2 && key == "links") {
          take_link(parsed);
          return false;
        }
        return true;
      });
    } catch (const json::exception& e) {
      fail("{}: not valid JSON ({})", where_, parse_message(e.what()));
    }
    if (!file.is_object())
      fail("{}: a graph is a JSON object with metadata, nodes and links", where_);
    if (!file.contains("links") || !file["links"].is_array())
      fail("{}: has no list \"links\"", where_);
    if (!file["links"].empty()) fail("{}: every link is an object", where_);
    metadata(file);
    nodes(file);
    links();
    supernodes(file);
    return std::move(graph_);
  }

 private:
  struct Link {
    std::string source, target;
    float weight;
  };

  static std::string parse_message(const std::string& text) {
    const std::size_t at = text.find("] ");
    return one_line(at == std::string::npos ? text : text.substr(at + 2));
  }

  const json& member(const json& object, const char* key, const std::string& what) const {
    if (!object.is_object() || !object.contains(key))
      fail("{}: {} has no \"{}\"", where_, what, key);
    return object[key];
  }
  std::string text(const json& object, const char* key, const std::string& what) const {
    const json& value = member(object, key, what);
    if (!value.is_string()) fail("{}: {}: \"{}\" is no text", where_, what, key);
    return value.get<std::string>();
  }
  std::int64_t integer(const json& object, const char* key, const std::string& what) const {
    const json& value = member(object, key, what);
    if (!value.is_number_integer()) fail("{}: {}: \"{}\" is no whole number", where_, what, key);
    return value.get<std::int64_t>();
  }
  double real(const json& object, const char* key, double otherwise,
              const std::string& what) const {
    if (!object.contains(key) || object[key].is_null()) return otherwise;
    if (!object[key].is_number()) fail("{}: {}: \"{}\" is no number", where_, what, key);
    return object[key].get<double>();
  }

  void take_link(const json& link) {
    const std::string what = fmt::format("link {}", links_.size());
    const json& weight = member(link, "weight", what);
    if (!weight.is_number()) fail("{}: {}: \"weight\" is no number", where_, what);
    const auto value = weight.get<float>();
    if (!std::isfinite(value)) fail("{}: {}: weight {} is not finite", where_, what, value);
    links_.push_back({text(link, "source", what), text(link, "target", what), value});
  }

  void metadata(const json& file) {
    const json& meta = member(file, "metadata", "the graph");
    graph_.slug = text(meta, "slug", "metadata");
    if (meta.contains("scan") && meta["scan"].is_string()) graph_.scan = meta["scan"];
    graph_.prompt = text(meta, "prompt", "metadata");
    if (meta.contains("model") && meta["model"].is_string()) graph_.model = meta["model"];
    graph_.node_share = real(meta, "node_threshold", CircuitNode::kUnknown, "metadata");
    graph_.edge_share = real(meta, "edge_threshold", CircuitNode::kUnknown, "metadata");
    const json& tokens = member(meta, "prompt_tokens", "metadata");
    if (!tokens.is_array()) fail("{}: metadata: \"prompt_tokens\" is no list", where_);
    for (const json& token : tokens) {
      if (!token.is_string()) fail("{}: metadata: \"prompt_tokens\" holds what is no text", where_);
      graph_.tokens.push_back(token);
    }
  }

  CircuitNode node(const json& entry, std::size_t i) const {
    std::string what = fmt::format("node {}", i);
    CircuitNode n;
    n.id = text(entry, "node_id", what);
    what = fmt::format("node '{}'", one_line(n.id));
    const std::string type = text(entry, "feature_type", what), layer = text(entry, "layer", what);
    const std::int64_t position = integer(entry, "ctx_idx", what);
    if (position < 0 || position >= static_cast<std::int64_t>(graph_.tokens.size())) {
      fail("{}: {}: position {}, the prompt has {} tokens", where_, what, position,
           graph_.tokens.size());
    }
    n.position = static_cast<std::int32_t>(position);
    n.index = integer(entry, "feature", what);
    n.probability = real(entry, "token_prob", 0.0, what);
    n.influence = real(entry, "influence", CircuitNode::kUnknown, what);
    n.activation = real(entry, "activation", 0.0, what);
    n.pre_activation = real(entry, "preactivation", 0.0, what);
    n.bias = real(entry, "bias", 0.0, what);
    if (entry.contains("clerp") && entry["clerp"].is_string()) n.label = entry["clerp"];
    if (type == "embedding") {
      n.kind = CircuitNodeKind::token;
      n.index = id_number(n.id, 1, -1);
      return n;
    }
    std::int64_t number = 0;
    for (char c : layer) {
      if (c < '0' || c > '9' || number > kMostLayers)
        fail("{}: {}: layer '{}' is no layer", where_, what, one_line(layer));
      number = 10 * number + (c - '0');
    }
    if (layer.empty() || number > kMostLayers) fail("{}: {}: no layer", where_, what);
    n.layer = static_cast<std::int32_t>(number);
    if (type == "logit") {
      n.kind = CircuitNodeKind::logit;
      n.layer = static_cast<std::int32_t>(std::max<std::int64_t>(0, number - 1));
      if (!(n.probability >= 0 && n.probability <= 1 + 1e-6))
        fail("{}: {}: probability {}, expected 0 to 1", where_, what, n.probability);
      // Output "word" (p=0.123)
      const std::size_t end = n.label.rfind("\" (p=");
      if (n.label.starts_with("Output \"") && end != std::string::npos && end >= 8)
        n.label = n.label.substr(8, end - 8);
    } else if (type.find("error") != std::string::npos) {
      n.kind = CircuitNodeKind::error;
      n.index = -1;
    } else {
      n.kind = CircuitNodeKind::feature;
      n.index = id_number(n.id, 1, n.index);
    }
    return n;
  }

  // The `field`-th number of "12_345_6"; `otherwise` if there is none.
  static std::int64_t id_number(const std::string& id, int field, std::int64_t otherwise) {
    std::size_t at = 0;
    for (; field > 0; --field) {
      at = id.find('_', at);
      if (at == std::string::npos) return otherwise;
      ++at;
    }
    std::int64_t value = 0;
    const std::size_t end = std::min(id.find('_', at), id.size());
    if (end == at || end - at > 15) return otherwise;
    for (; at < end; ++at) {
      if (id[at] < '0' || id[at] > '9') return otherwise;
      value = 10 * value + (id[at] - '0');
    }
    return value;
  }

  void nodes(const json& file) {
    const json& list = member(file, "nodes", "the graph");
    if (!list.is_array()) fail("{}: \"nodes\" is no list", where_);
    if (list.size() > kMostNodes)
      fail("{}: {} nodes, expected at most {}", where_, list.size(), kMostNodes);
    for (std::size_t i = 0; i < list.size(); ++i) {
      CircuitNode n = node(list[i], i);
      if (!by_id_.emplace(n.id, static_cast<std::int32_t>(i)).second)
        fail("{}: node '{}' comes twice", where_, one_line(n.id));
      const std::int64_t behind = n.kind == CircuitNodeKind::logit   ? n.layer
                                  : n.kind == CircuitNodeKind::token ? 0
                                                                     : n.layer + 1;
      graph_.n_layers = std::max(graph_.n_layers, behind);
      graph_.nodes.push_back(std::move(n));
    }
  }

  void links() {
    graph_.incoming.resize(graph_.nodes.size());
    const auto find = [&](const std::string& id, const char* end) {
      const auto found = by_id_.find(id);
      if (found == by_id_.end()) fail("{}: a link's {} '{}' is no node", where_, end, one_line(id));
      return found->second;
    };
    std::vector<std::vector<std::pair<std::int32_t, float>>> in(graph_.nodes.size());
    for (const Link& link : links_) {
      const std::int32_t source = find(link.source, "source"), target = find(link.target, "target");
      if (link.weight != 0) in[static_cast<std::size_t>(target)].emplace_back(source, link.weight);
    }
    links_ = {};
    for (std::size_t t = 0; t < in.size(); ++t) {
      std::sort(in[t].begin(), in[t].end());
      IncomingEdges& edges = graph_.incoming[t];
      for (const auto& [source, weight] : in[t]) {
        if (!edges.source.empty() && edges.source.back() == source) {
          fail("{}: two links from '{}' to '{}'", where_,
               one_line(graph_.nodes[static_cast<std::size_t>(source)].id),
               one_line(graph_.nodes[t].id));
        }
        edges.source.push_back(source);
        edges.weight.push_back(weight);
      }
    }
  }

  void supernodes(const json& file) {
    if (!file.contains("qParams") || !file["qParams"].is_object()) return;
    const json& params = file["qParams"];
    if (!params.contains("supernodes") || !params["supernodes"].is_array()) return;
    for (const json& group : params["supernodes"]) {
      if (!group.is_array() || group.empty()) fail("{}: a supernode is a list of texts", where_);
      Supernode one;
      for (const json& entry : group) {
        if (!entry.is_string()) fail("{}: a supernode is a list of texts", where_);
        if (&entry == &group.front())
          one.name = entry;
        else if (by_id_.contains(entry.get<std::string>()))  // pruned ones are gone
          one.members.push_back(entry);
      }
      if (!one.members.empty()) graph_.supernodes.push_back(std::move(one));
    }
  }

  std::string where_;
  AttributionGraph graph_;
  std::vector<Link> links_;
  std::unordered_map<std::string, std::int32_t> by_id_;
};

}  // namespace

void circuit_json(const AttributionGraph& graph,
                  const std::function<void(std::string_view)>& write) {
  std::string out =
      fmt::format(R"({{"metadata":{{"slug":{},"scan":{},"transcoder_list":[],"prompt_tokens":[)",
                  json_text(graph.slug), json_text(graph.scan));
  for (std::size_t i = 0; i < graph.tokens.size(); ++i)
    out += (i == 0 ? "" : ",") + json_text(shown(graph.tokens[i]));
  out += fmt::format(R"(],"prompt":{},"node_threshold":{},"edge_threshold":{},"model":{},)"
                     R"("schema_version":1}},)"
                     "\n"
                     R"("qParams":{{"pinnedIds":[],"supernodes":[)",
                     json_text(graph.prompt), number(graph.node_share), number(graph.edge_share),
                     json_text(graph.model));
  for (std::size_t i = 0; i < graph.supernodes.size(); ++i) {
    out += (i == 0 ? "[" : ",[") + json_text(graph.supernodes[i].name);
    for (const std::string& id : graph.supernodes[i].members) out += "," + json_text(id);
    out += "]";
  }
  out += "],\"linkType\":\"both\",\"clickedId\":\"\",\"sg_pos\":\"\"},\n\"nodes\":[\n";
  bool logit = false;
  std::vector<std::string> ids;
  ids.reserve(graph.nodes.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const CircuitNode& n = graph.nodes[i];
    const bool first = n.kind == CircuitNodeKind::logit && !logit;
    logit = logit || first;
    if (i > 0) out += ",\n";
    out += node_json(n, first);
    ids.push_back(json_text(n.id));
  }
  out += "\n],\n\"links\":[\n";
  bool any = false;
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      if (!std::isfinite(in.weight[e]))
        fail("a link into {} has weight {}: not finite", graph.nodes[t].id, in.weight[e]);
      fmt::format_to(std::back_inserter(out), R"({}{{"source":{},"target":{},"weight":{}}})",
                     any ? ",\n" : "", ids[static_cast<std::size_t>(in.source[e])], ids[t],
                     in.weight[e]);
      any = true;
    }
    if (out.size() < kPiece) continue;
    write(out);
    out.clear();
  }
  write(out + "\n]}\n");
}

std::string circuit_json(const AttributionGraph& graph) {
  std::string out;
  circuit_json(graph, [&](std::string_view piece) { out += piece; });
  return out;
}

AttributionGraph read_circuit_json(const std::filesystem::path& path) {
  return Reader(path).read(path);
}

}  // namespace lamina
