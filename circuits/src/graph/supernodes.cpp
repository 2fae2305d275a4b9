#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "lamina/circuits/graph_io.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMostBytes = std::uintmax_t{64} << 20;

}  // namespace

bool node_id_matches(std::string_view pattern, std::string_view id) {
  if (pattern.empty()) return id.empty();
  if (pattern.front() != '*')
    return !id.empty() && id.front() == pattern.front() &&
           node_id_matches(pattern.substr(1), id.substr(1));
  for (std::size_t n = 0;; ++n) {
    if (node_id_matches(pattern.substr(1), id.substr(n))) return true;
    if (n == id.size() || id[n] == '_') return false;
  }
}

std::vector<Supernode> read_supernodes(const std::filesystem::path& path,
                                       const AttributionGraph& graph) {
  const std::string where = path.string();
  std::error_code code;
  const std::uintmax_t bytes = std::filesystem::file_size(path, code);
  if (code) fail("{}: {}", where, code.message());
  if (bytes > kMostBytes) fail("{}: {} bytes, expected at most {}", where, bytes, kMostBytes);
  std::ifstream in(path, std::ios::binary);
  const json file = json::parse(in, nullptr, false);
  if (file.is_discarded()) fail("{}: not valid JSON", where);
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;
  const auto text = [&](const json& value) {
    if (!value.is_string()) fail("{}: names and node ids are texts", where);
    return value.get<std::string>();
  };
  if (file.is_object()) {
    for (const auto& [name, members] : file.items()) {
      if (!members.is_array()) fail("{}: '{}' is no list of node ids", where, name);
      groups.emplace_back(name, std::vector<std::string>{});
      for (const json& member : members) groups.back().second.push_back(text(member));
    }
  } else if (file.is_array()) {
    for (const json& group : file) {
      if (!group.is_array() || group.empty()) fail("{}: a group is a list: name, node ids", where);
      groups.emplace_back(text(group[0]), std::vector<std::string>{});
      for (std::size_t i = 1; i < group.size(); ++i) groups.back().second.push_back(text(group[i]));
    }
  } else {
    fail("{}: groups are a JSON object of lists or a list of lists", where);
  }

  std::unordered_map<std::string, std::string> group_of;
  std::vector<Supernode> out;
  for (const auto& [name, patterns] : groups) {
    Supernode group{.name = name, .members = {}};
    for (const std::string& pattern : patterns) {
      bool any = false;
      for (const CircuitNode& node : graph.nodes) {
        if (!node_id_matches(pattern, node.id)) continue;
        any = true;
        const auto [at, fresh] = group_of.emplace(node.id, name);
        if (fresh)
          group.members.push_back(node.id);
        else if (at->second != name)
          fail("{}: node '{}' is in '{}' and in '{}'", where, node.id, at->second, name);
      }
      if (!any) fail("{}: '{}' of group '{}' is no node of the graph", where, pattern, name);
    }
    out.push_back(std::move(group));
  }
  return out;
}

}  // namespace lamina
