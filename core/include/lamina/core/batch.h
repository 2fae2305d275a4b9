#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lamina {

/// Prompts packed one after the other, without padding. Prompt i owns the token rows
/// offsets[i] … offsets[i+1] − 1.
struct Batch {
  std::vector<std::int32_t> ids;            // [token]
  std::vector<std::int64_t> offsets = {0};  // [prompt + 1]

  std::int64_t prompts() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t tokens() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t length(std::int64_t prompt) const { return offsets[prompt + 1] - offsets[prompt]; }
  void add(std::span<const std::int32_t> prompt) {
    ids.insert(ids.end(), prompt.begin(), prompt.end());
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
};

}  // namespace lamina
