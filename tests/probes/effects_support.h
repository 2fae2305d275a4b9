#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/prompts.h"
#include "lamina/core/safetensors.h"
#include "support/tiny_model.h"

namespace lamina::testing {

/// effects.json, made by make_effects_goldens.py with the authors' code in double precision.
inline const nlohmann::json& effects_golden() {
  static const nlohmann::json golden = nlohmann::json::parse(
      std::ifstream(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/probes/effects.json"));
  return golden;
}

inline Model golden_model() {
  return Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/goldens" /
                     effects_golden()["model"].get<std::string>());
}

/// A random model whose layer `layer` adds nothing to the residual stream.
inline Model with_identity_layer(const TinyConfig& config, std::int64_t layer) {
  const TempDir folder;
  write_tiny_model(folder.path(), config, 1);
  const std::filesystem::path path = folder.path() / "model.safetensors";
  const std::string block = "blocks." + std::to_string(layer) + ".";
  std::vector<std::vector<float>> values;
  std::vector<F32Tensor> tensors;
  {
    const TensorStore store = open_safetensors(path);
    values.reserve(store.tensors().size());
    for (const TensorInfo& t : store.tensors()) {
      std::vector<float>& v = values.emplace_back(t.elements());
      expand_to_f32(t.dtype, t.bytes, v);
      if (t.name == block + "attn.W_O" || t.name == block + "mlp.W_out") {
        std::fill(v.begin(), v.end(), 0.0f);
      }
      tensors.push_back({t.name, t.shape, v});
    }
  }
  write_safetensors(path, tensors);
  return Model::load(folder.path());
}

inline std::vector<Prompt> as_prompts(const std::vector<std::vector<std::int32_t>>& ids) {
  std::vector<Prompt> out;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Prompt p;
    p.id = std::to_string(i);
    p.ids = ids[i];
    p.given = static_cast<std::int64_t>(ids[i].size());
    out.push_back(std::move(p));
  }
  return out;
}

}  // namespace lamina::testing
