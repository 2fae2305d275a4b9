#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <unordered_map>

#include "lamina/circuits/graph_io.h"
#include "lamina/core/error.h"

extern char** environ;  // NOLINT: POSIX

namespace lamina {
namespace {

// Text of an XML attribute or element; controls, which XML 1.0 cannot hold, as spaces.
std::string xml(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string dot_quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

// UTF-8 with anything else replaced: GraphML and Graphviz refuse other bytes.
std::string valid_utf8(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const std::size_t n = c < 0x80                ? 1
                          : c >= 0xC2 && c < 0xE0 ? 2
                          : c >= 0xE0 && c < 0xF0 ? 3
                          : c >= 0xF0 && c < 0xF5 ? 4
                                                  : 0;
    bool good = n > 0 && i + n <= text.size();
    for (std::size_t k = 1; good && k < n; ++k)
      good = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    if (!good) {
      out += "\xEF\xBF\xBD";
      ++i;
      continue;
    }
    out += text.substr(i, n);
    i += n;
  }
  return out;
}

std::string label_of(const AttributionGraph& graph, const CircuitNode& n) {
  const std::string token = n.position < static_cast<std::int32_t>(graph.tokens.size())
                                ? graph.tokens[static_cast<std::size_t>(n.position)]
                                : "";
  switch (n.kind) {
    case CircuitNodeKind::feature:
      return n.label.empty() ? fmt::format("L{} #{}", n.layer, n.index)
                             : fmt::format("L{} #{} {}", n.layer, n.index, n.label);
    case CircuitNodeKind::error:
      return fmt::format("L{} error", n.layer);
    case CircuitNodeKind::token:
      return fmt::format("“{}”", token);
    case CircuitNodeKind::logit:
      return fmt::format("→ “{}” {:.1f}%", n.label, 100 * n.probability);
  }
  return n.id;
}

}  // namespace

std::string circuit_graphml(const AttributionGraph& graph) {
  std::string out =
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n";
  const auto key = [&](const char* id, const char* on, const char* type) {
    out += fmt::format("<key id=\"{0}\" for=\"{1}\" attr.name=\"{0}\" attr.type=\"{2}\"/>\n", id,
                       on, type);
  };
  for (const char* name : {"kind", "label", "supernode"}) key(name, "node", "string");
  for (const char* name : {"layer", "position", "index"}) key(name, "node", "long");
  for (const char* name : {"activation", "preactivation", "bias", "probability", "influence"})
    key(name, "node", "double");
  key("weight", "edge", "double");
  out += "<graph edgedefault=\"directed\">\n";
  std::unordered_map<std::string, std::string> group_of;
  for (const Supernode& group : graph.supernodes)
    for (const std::string& id : group.members) group_of[id] = group.name;
  std::vector<std::string> ids;
  for (const CircuitNode& n : graph.nodes) {
    ids.push_back(xml(valid_utf8(n.id)));
    out += fmt::format("<node id=\"{}\">", ids.back());
    const auto text = [&](const char* name, const std::string& value) {
      if (!value.empty())
        out += fmt::format("<data key=\"{}\">{}</data>", name, xml(valid_utf8(value)));
    };
    const auto real = [&](const char* name, double value) {
      if (std::isfinite(value)) out += fmt::format("<data key=\"{}\">{}</data>", name, value);
    };
    text("kind", std::string(circuit_node_kind_name(n.kind)));
    text("label", label_of(graph, n));
    const auto group = group_of.find(n.id);
    if (group != group_of.end()) text("supernode", group->second);
    out += fmt::format(
        "<data key=\"layer\">{}</data><data key=\"position\">{}</data><data "
        "key=\"index\">{}</data>",
        n.layer, n.position, n.index);
    real("activation", n.activation);
    real("preactivation", n.pre_activation);
    real("bias", n.bias);
    real("probability", n.probability);
    real("influence", n.influence);
    out += "</node>\n";
  }
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      fmt::format_to(std::back_inserter(out),
                     "<edge source=\"{}\" target=\"{}\"><data key=\"weight\">{}</data></edge>\n",
                     ids[static_cast<std::size_t>(in.source[e])], ids[t], in.weight[e]);
    }
  }
  return out + "</graph>\n</graphml>\n";
}

std::string circuit_dot(const AttributionGraph& graph) {
  std::string out = "digraph circuit {\n";
  out += fmt::format("  label={};\n  labelloc=t;\n", dot_quoted(valid_utf8(graph.prompt)));
  out +=
      "  rankdir=BT; newrank=true; splines=true; nodesep=0.15; ranksep=0.5;\n"
      "  node [fontname=\"sans-serif\", fontsize=10, shape=box, style=\"rounded,filled\", "
      "margin=\"0.08,0.03\", height=0.25];\n"
      "  edge [arrowsize=0.5];\n";
  float strongest = 0;
  for (const IncomingEdges& in : graph.incoming)
    for (float w : in.weight) strongest = std::max(strongest, std::abs(w));
  std::map<std::int32_t, std::vector<std::size_t>> ranks;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const CircuitNode& n = graph.nodes[i];
    constexpr const char* kColours[] = {"#cfe2f3", "#eeeeee", "#fff2cc", "#d9ead3"};
    out += fmt::format("  n{} [label={}, fillcolor=\"{}\", tooltip={}];\n", i,
                       dot_quoted(valid_utf8(label_of(graph, n))),
                       kColours[static_cast<std::size_t>(n.kind)], dot_quoted(valid_utf8(n.id)));
    ranks[n.layer].push_back(i);
  }
  for (auto& [layer, members] : ranks) {
    std::stable_sort(members.begin(), members.end(), [&](auto a, auto b) {
      return graph.nodes[a].position < graph.nodes[b].position;
    });
    out += "  { rank=same;";
    for (std::size_t i : members) out += fmt::format(" n{};", i);
    out += " }\n";
    // Invisible edges keep the tokens' order.
    if (layer >= 0 || members.size() < 2) continue;
    out += "  ";
    for (std::size_t i = 0; i < members.size(); ++i)
      out += fmt::format("{}n{}", i == 0 ? "" : " -> ", members[i]);
    out += " [style=invis, weight=10];\n";
  }
  std::unordered_map<std::string, std::size_t> index;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) index[graph.nodes[i].id] = i;
  for (std::size_t g = 0; g < graph.supernodes.size(); ++g) {
    out += fmt::format("  subgraph cluster_{} {{ label={}; style=dashed;", g,
                       dot_quoted(valid_utf8(graph.supernodes[g].name)));
    for (const std::string& id : graph.supernodes[g].members)
      if (const auto at = index.find(id); at != index.end())
        out += fmt::format(" n{};", at->second);
    out += " }\n";
  }
  for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
    const IncomingEdges& in = graph.incoming[t];
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      const double share = strongest > 0 ? std::abs(in.weight[e]) / strongest : 0.0;
      fmt::format_to(std::back_inserter(out),
                     "  n{} -> n{} [penwidth={:.2f}, color=\"{}\", tooltip=\"{:.4g}\"];\n",
                     in.source[e], t, 0.3 + 3.0 * share, in.weight[e] > 0 ? "#3d7a3d" : "#b03a2e",
                     in.weight[e]);
    }
  }
  return out + "}\n";
}

void draw_dot(const std::string& dot, const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  if (ending != ".svg" && ending != ".png" && ending != ".pdf")
    fail_usage("{}: drawings end in .svg, .png or .pdf", path.string());
  std::filesystem::path text = path, part = path;
  text += ".dot.part";
  part += ".part";
  {
    std::ofstream file(text, std::ios::binary);
    file << dot;
    file.close();
    if (!file) fail("{}: writing failed", text.string());
  }
  std::string format = "-T" + ending.substr(1), to = "-o" + part.string(), from = text.string(),
              program = "dot";
  char* arguments[] = {program.data(), format.data(), to.data(), from.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, "dot", nullptr, nullptr, arguments, environ);
  int status = -1;
  while (error == 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  std::error_code ignored;
  std::filesystem::remove(text, ignored);
  if (error == ENOENT) {
    fail(
        "{}: drawing needs Graphviz' program dot, which is not installed (Debian: apt install "
        "graphviz)",
        path.string());
  }
  if (error != 0) fail("{}: dot did not start: {}", path.string(), std::strerror(error));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::filesystem::remove(part, ignored);
    fail("{}: dot failed with exit status {}", path.string(),
         WIFEXITED(status) ? WEXITSTATUS(status) : -1);
  }
  std::filesystem::rename(part, path);
}

}  // namespace lamina
