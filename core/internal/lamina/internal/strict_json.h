#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

namespace lamina::files {

/// Parses JSON from somebody else's file. Throws Error naming `name` for ill-formed JSON or UTF-8,
/// zero bytes, a key that appears twice in its object, or nesting deeper than `max_depth`.
nlohmann::json parse_strict_json(std::string_view text, std::string_view name,
                                 std::size_t max_depth = 32);

}  // namespace lamina::files
