#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "lamina/circuits/graph_io.h"
#include "lamina/core/error.h"
#include "one_line.h"

namespace lamina {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMostBytes = std::uintmax_t{64} << 20;

// Between two underscores. After a mismatch only the last * can give way: time is at most the
// product of the lengths, whatever a file's patterns are.
bool part_matches(std::string_view pattern, std::string_view part) {
  std::size_t p = 0, i = 0, star = std::string_view::npos, taken = 0;
  while (i < part.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = i;
    } else if (p < pattern.size() && pattern[p] == part[i]) {
      ++p;
      ++i;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      i = ++taken;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

}  // namespace

bool node_id_matches(std::string_view pattern, std::string_view id) {
  while (true) {
    const std::size_t p = pattern.find('_'), i = id.find('_');
    if (!part_matches(pattern.substr(0, p), id.substr(0, i))) return false;
    if (p == std::string_view::npos || i == std::string_view::npos) return p == i;
    pattern.remove_prefix(p + 1);
    id.remove_prefix(i + 1);
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
      if (!members.is_array()) fail("{}: '{}' is no list of node ids", where, one_line(name));
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
          fail("{}: node '{}' is in '{}' and in '{}'", where, one_line(node.id),
               one_line(at->second), one_line(name));
      }
      if (!any)
        fail("{}: '{}' of group '{}' is no node of the graph", where, one_line(pattern),
             one_line(name));
    }
    out.push_back(std::move(group));
  }
  return out;
}

}  // namespace lamina
