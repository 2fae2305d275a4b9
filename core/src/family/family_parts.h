#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "family/config_reader.h"
#include "lamina/core/error.h"

namespace lamina {

/// An integer that must be at least 1.
std::int64_t positive(ConfigReader& reader, std::string_view key, std::int64_t fallback);

/// Sizes under the names that most Hugging Face families share: hidden_size, num_hidden_layers, …
/// `kv_heads_default` and `head_dim_default`: used when the file has no such key; 0 for "as many as
/// query heads" and "hidden_size / num_attention_heads".
ModelConfig read_sizes(ConfigReader& reader, std::string_view family, std::int64_t kv_heads_default,
                       std::int64_t head_dim_default);

/// Which layers have a window: from `layer_types` if the file has it, otherwise from `by_default`.
std::vector<bool> read_layer_types(ConfigReader& reader, std::size_t n_layers,
                                   const std::function<bool(std::size_t)>& by_default);

}  // namespace lamina
