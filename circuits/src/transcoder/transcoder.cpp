#include "lamina/circuits/transcoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lamina/core/error.h"

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

std::string dictionary_place_name(const DictionaryPlace& place) {
  return site_name(place.site) + (place.norm_weights ? "·w" : "");
}

void Transcoder::check() const {
  const TranscoderConfig& c = config;
  check_array(c, "W_enc", encoder, c.features * c.d_in);
  check_array(c, "b_enc", encoder_bias, c.features);
  check_array(c, "W_dec", decoder, c.features * c.d_out);
  check_array(c, "b_dec", decoder_bias, c.d_out);
  const bool thresholds =
      c.activation == FeatureActivation::jump_relu || c.activation == FeatureActivation::batch_topk;
  check_array(c, "threshold", threshold, thresholds ? c.features : 0);
  check_array(c, "W_skip", skip, c.skip ? c.d_out * c.d_in : 0);
}

void Transcoder::pre_activations(std::span<const float> x, std::span<float> u) const {
  const std::int64_t d = config.d_in, f = config.features;
  const auto rows = static_cast<std::int64_t>(x.size()) / d;
  if (x.size() != size(rows * d) || u.size() != size(rows * f)) {
    fail_usage("{}: {} values in and {} out, expected rows of {} and of {}", config.name, x.size(),
               u.size(), d, f);
  }
  const bool shifted = config.subtract_decoder_bias;
#pragma omp parallel for schedule(static)
  for (std::int64_t j = 0; j < f; ++j) {
    const float* w = encoder.data() + j * d;
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = encoder_bias[size(j)];
      for (std::int64_t i = 0; i < d; ++i) {
        const float v = x[size(r * d + i)] - (shifted ? decoder_bias[size(i)] : 0.0F);
        sum += double{w[i]} * v;
      }
      u[size(r * f + j)] = static_cast<float>(sum);
    }
  }
}

SparseRows Transcoder::encode(std::span<const float> x) const {
  const std::int64_t d = config.d_in, f = config.features;
  const auto rows = static_cast<std::int64_t>(x.size()) / d;
  SparseRows out;
  std::vector<float> u(size(f));
  std::vector<std::int32_t> order;
  for (std::int64_t r = 0; r < rows; ++r) {
    pre_activations(x.subspan(size(r * d), size(d)), u);
    float least = 0.0F;
    if (config.activation == FeatureActivation::topk && config.k < f) {
      order.resize(size(f));
      std::iota(order.begin(), order.end(), 0);
      const auto before = [&](std::int32_t a, std::int32_t b) {
        return u[size(a)] > u[size(b)] || (u[size(a)] == u[size(b)] && a < b);
      };
      std::nth_element(order.begin(), order.begin() + config.k, order.end(), before);
      order.resize(size(config.k));
      std::sort(order.begin(), order.end());
    } else {
      order.resize(size(f));
      std::iota(order.begin(), order.end(), 0);
    }
    for (std::int32_t j : order) {
      const float bound = threshold.empty() ? least : threshold[size(j)];
      if (u[size(j)] > bound && u[size(j)] > 0.0F) {
        out.feature.push_back(j);
        out.value.push_back(u[size(j)]);
      }
    }
    out.offsets.push_back(static_cast<std::int64_t>(out.feature.size()));
  }
  return out;
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
    if (!config.skip) continue;
    for (std::int64_t i = 0; i < d; ++i) {
      const float* w = skip.data() + i * config.d_in;
      double sum = 0;
      for (std::int64_t c = 0; c < config.d_in; ++c)
        sum += double{w[c]} * x[size(r * config.d_in + c)];
      out[i] += static_cast<float>(sum);
    }
  }
}

void apply_place(const Model& model, const DictionaryPlace& place, std::span<float> rows) {
  if (!place.norm_weights) return;
  const std::int64_t d = model.config().d_model;
  std::vector<float> weight(size(d)), bias(size(d));
  model.norm_weight(place.site.kind, place.site.layer, weight);
  model.norm_bias(place.site.kind, place.site.layer, bias);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = rows[i] * weight[i % size(d)] + bias[i % size(d)];
}

}  // namespace lamina
