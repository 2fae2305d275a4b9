#include "lamina/internal/strict_json.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

namespace lamina::files {

nlohmann::json parse_strict_json(std::string_view text, std::string_view name,
                                 std::size_t max_depth) {
  using nlohmann::json;
  if (const std::size_t zero = text.find('\0'); zero != text.npos) {
    fail("{}: zero byte at byte {} of {} in the JSON text", name, zero, text.size());
  }
  std::vector<std::unordered_set<std::string>> keys;  // of each open object, by depth
  const auto watch = [&](int depth_reported, json::parse_event_t event, json& value) {
    const auto depth = static_cast<std::size_t>(depth_reported);
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (depth >= max_depth) fail("{}: JSON nested deeper than {} levels", name, max_depth);
      keys.resize(depth + 1);
      keys[depth].clear();
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys[depth - 1].insert(key).second) {
        fail("{}: key {} appears twice in one object", name, quote(key));
      }
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    fail("{}: no valid JSON at byte {}", name, error.byte);
  } catch (const json::out_of_range&) {
    fail("{}: the JSON text holds a number that no 64-bit type can hold", name);
  }
}

}  // namespace lamina::files
