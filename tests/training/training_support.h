#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lamina/circuits/trainer.h"
#include "lamina/core/safetensors.h"

namespace lamina::test {

/// The arrays of tests/training/make_training_goldens.py.
class TrainingGoldens {
 public:
  TrainingGoldens()
      : store_(open_safetensors(LAMINA_SOURCE_DIR "/tests/training/training.safetensors")) {}
  bool has(const std::string& name) const { return store_.find(name) != nullptr; }
  std::vector<float> operator()(const std::string& name) const {
    const TensorInfo* tensor = store_.find(name);
    if (tensor == nullptr) throw std::runtime_error("no golden " + name);
    std::vector<float> values(tensor->elements());
    std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
    return values;
  }

 private:
  TensorStore store_;
};

/// The script's sizes and variants.
inline constexpr std::int64_t kIn = 12, kOut = 10, kFeatures = 40, kRows = 16, kBatches = 8,
                              kSteps = 60;

struct TrainingVariant {
  std::string name;
  TranscoderConfig config;
  TrainingOptions options;
  double threshold = 0;  // of jump_relu
  double shift = 0;      // of b_enc
};

inline std::vector<TrainingVariant> training_variants() {
  std::vector<TrainingVariant> all;
  const auto add = [&](const std::string& name, FeatureActivation activation, TrainingLoss loss,
                       SparsityPenalty penalty, double lambda) -> TrainingVariant& {
    TrainingVariant v;
    v.name = name;
    v.config.name = name;
    v.config.input.site = {SiteKind::ln2_normalized, 0};
    v.config.output.site = {SiteKind::mlp_out, 0};
    v.config.d_in = kIn;
    v.config.d_out = kOut;
    v.config.features = kFeatures;
    v.config.activation = activation;
    v.options.loss = loss;
    v.options.penalty = penalty;
    v.options.lambda = lambda;
    v.options.learning_rate = 3e-3;
    v.options.beta2 = 0.99;
    v.options.batch = kRows;
    v.options.buffer_rows = 4 * kRows;
    v.options.steps = kSteps;
    all.push_back(v);
    return all.back();
  };
  using enum FeatureActivation;
  using enum SparsityPenalty;
  const TrainingLoss text = TrainingLoss::text, code = TrainingLoss::code;
  add("relu_text", relu, text, l1, 0.05).options.lambda_warmup = 20;
  add("relu_few", relu, text, l1, 0.05).shift = -1.5;
  add("relu_few_code", relu, code, l1, 0.002).shift = -1.5;
  TrainingVariant& relu_code = add("relu_code", relu, code, l1, 0.002);
  relu_code.options.lambda_warmup = 20;
  relu_code.options.rate_warmup = 5;
  TrainingVariant& free = add("relu_free", relu, text, SparsityPenalty::tanh, 0.05);
  free.options.unit_decoder = false;
  free.options.rate_decay = 20;
  TrainingVariant& sae = add("relu_sae", relu, code, l1, 0.002);
  sae.config.d_in = kOut;
  sae.config.input = sae.config.output;
  sae.config.subtract_decoder_bias = true;
  add("relu_skip", relu, text, l1, 0.05).config.skip = true;
  TrainingVariant& topk_text = add("topk_text", topk, text, none, 0);
  topk_text.config.k = 5;
  topk_text.config.skip = true;
  for (const char* name : {"topk_code", "topk_auxk"}) {
    const bool first = std::string(name) == "topk_code";
    TrainingVariant& v = add(name, topk, first ? code : text, none, 0);
    v.config.k = first ? 5 : 3;
    v.options.dead = DeadFeatures::auxk;
    v.options.auxk = 6;
    v.options.dead_window = 4;
  }
  add("batch_topk_text", batch_topk, text, none, 0).config.k = 4;
  add("batch_topk_code", batch_topk, code, none, 0).config.k = 4;
  const auto jump = [&](const std::string& name, TrainingLoss loss, SparsityPenalty penalty,
                        double lambda, double threshold, double bandwidth) {
    TrainingVariant& v = add(name, jump_relu, loss, penalty, lambda);
    v.threshold = threshold;
    v.options.bandwidth = bandwidth;
  };
  jump("jump_relu_text", text, l0, 0.05, 0.3, 0.4);
  jump("jump_relu_code", code, l0, 0.002, 0.3, 0.4);
  jump("jump_relu_sparse", text, l0, 0.05, 1.2, 0.1);
  jump("jump_relu_tanh", text, SparsityPenalty::tanh, 0.05, 0.3, 0.4);
  return all;
}

/// The script's first weights for a variant, and its batches.
struct TrainingCase {
  std::vector<float> x, y;
  Transcoder initial;

  TrainingCase(const TrainingGoldens& golden, const TrainingVariant& v) {
    const bool sae = v.config.input == v.config.output;
    y = golden("y");
    x = sae ? y : golden("x");
    initial.config = v.config;
    initial.encoder = golden(sae ? "W_enc_sae" : "W_enc");
    initial.encoder_bias = golden("b_enc");
    for (float& b : initial.encoder_bias) b += static_cast<float>(v.shift);
    initial.decoder = golden("W_dec");
    initial.decoder_bias = golden("b_dec");
    if (v.config.skip) initial.skip = golden("W_skip");
    if (v.threshold > 0) initial.threshold.assign(kFeatures, static_cast<float>(v.threshold));
  }
  std::span<const float> batch_x(std::int64_t step) const { return part(x, step); }
  std::span<const float> batch_y(std::int64_t step) const { return part(y, step); }

 private:
  static std::span<const float> part(const std::vector<float>& all, std::int64_t step) {
    const std::size_t n = all.size() / kBatches;
    return std::span(all).subspan(static_cast<std::size_t>(step % kBatches) * n, n);
  }
};

/// Every array of a trainer's state.
inline std::map<std::string, std::vector<float>> state_of(TranscoderTrainer& trainer) {
  std::map<std::string, std::vector<float>> all;
  trainer.state([&](const std::string& name, std::vector<float>& v) { all[name] = v; });
  return all;
}

}  // namespace lamina::test
