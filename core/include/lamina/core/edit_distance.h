#pragma once

#include <cstddef>
#include <string_view>

namespace lamina {

/// Levenshtein distance in bytes: insertions, deletions and replacements that turn `a` into `b`.
/// For suggestions in messages; takes time a·b.
std::size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace lamina
