#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"

namespace lamina::testing {

inline const std::filesystem::path kTranscoderGoldens =
    std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/transcoder/goldens";

/// One tensor of goldens/values.safetensors (make_file_goldens.py).
inline std::vector<float> file_golden(const std::string& name) {
  static const TensorStore store = open_safetensors(kTranscoderGoldens / "values.safetensors");
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

inline std::vector<float> random_values(std::size_t count, std::uint64_t seed, float scale = 1) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(count);
  for (float& v : out) v = normal(engine);
  return out;
}

/// A random dictionary with everything that `config` asks for.
inline Transcoder random_transcoder(const TranscoderConfig& config, std::uint64_t seed) {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const TranscoderConfig& c = config;
  Transcoder t;
  t.config = c;
  t.encoder = random_values(size(c.features * c.d_in), seed, 0.4F);
  t.encoder_bias = random_values(size(c.features), seed + 1, 0.4F);
  t.decoder = random_values(size(c.features * c.d_out), seed + 2, 0.4F);
  t.decoder_bias = random_values(size(c.d_out), seed + 3, 0.4F);
  if (c.activation == FeatureActivation::jump_relu) {
    t.threshold = random_values(size(c.features), seed + 4);
    for (float& v : t.threshold) v = std::abs(v);
  }
  if (c.activation == FeatureActivation::batch_topk) t.threshold.assign(size(c.features), 0.5F);
  if (c.skip) t.skip = random_values(size(c.d_out * c.d_in), seed + 5, 0.3F);
  t.check();
  return t;
}

inline TranscoderConfig small_config(FeatureActivation activation) {
  TranscoderConfig c;
  c.name = "small";
  c.input = c.output = {{SiteKind::resid_post, 1}, false};
  c.d_in = c.d_out = 12;
  c.features = 40;
  c.activation = activation;
  if (activation == FeatureActivation::topk || activation == FeatureActivation::batch_topk) c.k = 5;
  return c;
}

/// Active features as a matrix [rows, features].
inline std::vector<float> dense(const SparseRows& z, std::int64_t features) {
  std::vector<float> out(static_cast<std::size_t>(z.rows() * features));
  for (std::int64_t r = 0; r < z.rows(); ++r) {
    for (std::int64_t e = z.offsets[r]; e < z.offsets[r + 1]; ++e) {
      out[static_cast<std::size_t>(r * features + z.feature[e])] = z.value[e];
    }
  }
  return out;
}

/// The message of the Error that `action` throws; fails the test if it throws none.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_message(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos)
      << "expected: …" << part << "…\ngot: " << message;
}

}  // namespace lamina::testing
