// Grouped key and value heads repeated, one copy for every query head.

#include <algorithm>

#include "engine/weights.h"
#include "lamina/core/model.h"

namespace lamina {
namespace {

// Head h of the result is head h / group of `grouped`.
Linear repeat_heads(const Linear& grouped, const ModelConfig& config) {
  const std::int64_t group = config.n_heads / config.n_kv_heads, dh = config.d_head;
  Linear repeated{.weight = kernels::PackedMatrix(config.d_attn(), config.d_model)};
  std::vector<float> row(static_cast<std::size_t>(config.d_model));
  for (std::int64_t i = 0; i < config.d_attn(); ++i) {
    const std::int64_t from = i / dh / group * dh + i % dh;
    grouped.weight.copy_row(from, row.data());
    repeated.weight.set_rows(i, 1, row.data());
    if (!grouped.bias.empty())
      repeated.bias.push_back(grouped.bias[static_cast<std::size_t>(from)]);
  }
  return repeated;
}

}  // namespace

Model Model::ungrouped() const {
  Model model;
  model.config_ = config_;
  model.config_.n_kv_heads = config_.n_heads;
  model.tokenizer_ = tokenizer_;
  model.id_ = id_;
  model.parameters_ = parameters_;
  model.fingerprint_ = fingerprint_;
  Weights weights = *weights_;
  if (config_.n_kv_heads != config_.n_heads) {
    for (LayerWeights& layer : weights.layers) {
      layer.k = repeat_heads(layer.k, config_);
      layer.v = repeat_heads(layer.v, config_);
    }
  }
  model.weights_ = std::make_unique<const Weights>(std::move(weights));
  return model;
}

}  // namespace lamina
