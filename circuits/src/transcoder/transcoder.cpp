#include "lamina/circuits/transcoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lamina/core/error.h"
#include "lamina/internal/product.h"

namespace lamina {
namespace {

constexpr std::string_view kActivations[] = {"relu", "topk", "batch_topk", "jump_relu"};

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

void check_array(const TranscoderConfig& config, std::string_view name,
                 std::span<const float> values, std::int64_t expected) {
  if (static_cast<std::int64_t>(values.size()) != expected) {
    fail("{}: {} has {} values, expected {}", config.name, name, values.size(), expected);
  }
  for (float v : values) {
    if (!std::isfinite(v)) fail("{}: {} holds {}, expected finite values", config.name, name, v);
  }
}

}  // namespace

std::string_view feature_activation_name(FeatureActivation activation) {
  return kActivations[static_cast<std::size_t>(activation)];
}

FeatureActivation parse_feature_activation(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kActivations); ++i) {
    if (name == kActivations[i]) return static_cast<FeatureActivation>(i);
  }
  fail_usage("activation '{}': expected relu, topk, batch_topk or jump_relu", name);
}

void Transcoder::check_encoder() const {
  const TranscoderConfig& c = config;
  constexpr std::int64_t kMax = std::int64_t{1} << 31;  // products of two stay within 64 bits
  for (const auto& [name, value] :
       {std::pair{"d_in", c.d_in}, {"d_out", c.d_out}, {"features", c.features}}) {
    if (value < 1 || value >= kMax)
      fail("{}: {} is {}, expected 1 to {}", c.name, name, value, kMax - 1);
  }
  if (c.activation == FeatureActivation::topk && c.k < 1) {
    fail("{}: k of topk is {}, expected 1 or more", c.name, c.k);
  }
  if (c.subtract_decoder_bias && c.d_in != c.d_out) {
    fail("{}: b_dec has {} values, the input it is subtracted from {}", c.name, c.d_out, c.d_in);
  }
  check_array(c, "W_enc", encoder, c.features * c.d_in);
  check_array(c, "b_enc", encoder_bias, c.features);
  check_array(c, "b_dec", decoder_bias, c.d_out);
  const bool thresholds =
      c.activation == FeatureActivation::jump_relu || c.activation == FeatureActivation::batch_topk;
  check_array(c, "threshold", threshold, thresholds ? c.features : 0);
  check_array(c, "W_skip", skip, c.skip ? c.d_out * c.d_in : 0);
}

void Transcoder::check() const {
  check_encoder();
  check_array(config, "W_dec", decoder, config.features * config.d_out);
}

void Transcoder::decode(const SparseRows& z, std::span<const float> x, std::span<float> y) const {
  const std::int64_t d = config.d_out, rows = z.rows();
  if (y.size() != size(rows * d) || (config.skip && x.size() != size(rows * config.d_in))) {
    fail_usage("{}: {} rows of features, {} values to fill, expected rows of {}", config.name, rows,
               y.size(), d);
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    float* out = y.data() + r * d;
    std::copy(decoder_bias.begin(), decoder_bias.end(), out);
    for (std::int64_t e = z.offsets[size(r)]; e < z.offsets[size(r + 1)]; ++e) {
      const float* w = decoder.data() + std::int64_t{z.feature[size(e)]} * d;
      const float v = z.value[size(e)];
      for (std::int64_t i = 0; i < d; ++i) out[i] += v * w[i];
    }
  }
  if (!config.skip) return;
  // The skip on the engine's kernels, a block of outputs at a time.
  constexpr std::int64_t kBlock = 256;
  internal::Operand weights(std::min(d, kBlock), config.d_in);
  std::vector<float> part(size(rows * kBlock));
  for (std::int64_t first = 0; first < d; first += kBlock) {
    const std::int64_t count = std::min(kBlock, d - first);
    weights.set(skip.data() + first * config.d_in, count);
    internal::product(x.data(), config.d_in, rows, weights, part.data(), kBlock);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < count; ++i) {
        y[size(r * d + first + i)] += part[size(r * kBlock + i)];
      }
    }
  }
}

}  // namespace lamina
