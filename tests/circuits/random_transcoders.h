#pragma once

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/safetensors.h"

namespace lamina::testing {

struct RandomDictionary {
  SiteKind input = SiteKind::ln2_normalized;
  bool norm_weights = true;
  FeatureActivation activation = FeatureActivation::relu;
  std::int64_t features = 64;
  bool skip = false;
};

/// A transcoder of one layer's MLP with random weights.
inline Transcoder random_transcoder(const ModelConfig& model, std::int32_t layer,
                                    const RandomDictionary& kind, std::uint64_t seed) {
  std::mt19937_64 generator(seed * 1000003 + static_cast<std::uint64_t>(layer));
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& values, std::int64_t n, float scale) {
    values.resize(static_cast<std::size_t>(n));
    for (float& v : values) v = scale * normal(generator);
  };
  Transcoder t;
  const std::int64_t d = model.d_model, f = kind.features;
  t.config = {.name = "random-" + std::to_string(layer),
              .model_id = "",
              .input = {{kind.input, layer}, kind.norm_weights},
              .output = {{SiteKind::mlp_out, layer}, false},
              .d_in = d,
              .d_out = d,
              .features = f,
              .activation = kind.activation,
              .k = kind.activation == FeatureActivation::topk ? 8 : 0,
              .subtract_decoder_bias = false,
              .skip = kind.skip};
  const float in = 1.0F / std::sqrt(static_cast<float>(d));
  fill(t.encoder, f * d, in);
  fill(t.encoder_bias, f, 0.3F);
  fill(t.decoder, f * d, in);
  fill(t.decoder_bias, d, 0.2F);
  if (kind.activation == FeatureActivation::jump_relu) {
    fill(t.threshold, f, 0.2F);
    for (float& v : t.threshold) v = std::abs(v);
  }
  if (kind.skip) fill(t.skip, d * d, 0.5F * in);
  return t;
}

inline std::vector<Transcoder> random_transcoders(const ModelConfig& model,
                                                  const RandomDictionary& kind,
                                                  std::uint64_t seed) {
  std::vector<Transcoder> all;
  for (std::int32_t l = 0; l < model.n_layers; ++l)
    all.push_back(random_transcoder(model, l, kind, seed));
  return all;
}

/// Writes a random cross-layer transcoder that reads resid_mid: circuit-tracer's files.
inline void write_random_cross_layer(const ModelConfig& model, std::int64_t features,
                                     std::uint64_t seed, const std::filesystem::path& folder) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  const std::int64_t d = model.d_model, layers = model.n_layers;
  const float in = 1.0F / std::sqrt(static_cast<float>(d));
  const auto random = [&](std::int64_t n, float scale) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& v : values) v = scale * normal(generator);
    return values;
  };
  const auto u = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
  for (std::int64_t l = 0; l < layers; ++l) {
    const std::string n = std::to_string(l);
    const auto encoder = random(features * d, in), bias = random(features, 0.3F),
               out_bias = random(d, 0.2F), decoder = random(features * (layers - l) * d, in);
    const F32Tensor read[] = {{"W_enc_" + n, {u(features), u(d)}, encoder},
                              {"b_enc_" + n, {u(features)}, bias},
                              {"b_dec_" + n, {u(d)}, out_bias}};
    const F32Tensor write[] = {{"W_dec_" + n, {u(features), u(layers - l), u(d)}, decoder}};
    write_safetensors(folder / ("W_enc_" + n + ".safetensors"), read);
    write_safetensors(folder / ("W_dec_" + n + ".safetensors"), write);
  }
}

}  // namespace lamina::testing
