#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lamina/circuits/trainer.h"
#include "lamina/internal/product.h"
#include "random.h"
#include "rows.h"
#include "select.h"

namespace lamina {
namespace training {

/// Values under training with Adam's moments.
struct Parameter {
  std::vector<float> value, mean, square;

  void start(std::vector<float> values) {
    value = std::move(values);
    mean.assign(value.size(), 0.0F);
    square = mean;
  }
};

/// Memory of one step; trainers that take turns share it.
struct Workspace {
  std::vector<float> u;          // [N, F] pre-activations
  std::vector<float> z;          // [N, F] dense jump_relu only
  std::vector<float> centred;    // [N, D_in] x less the subtracted bias
  std::vector<float> rebuilt;    // [N, D_out] ŷ
  std::vector<float> slope;      // [N, D_out] ∂L/∂ŷ
  std::vector<float> aux_slope;  // [N, D_out] of the auxiliary loss
  std::vector<float> weight;     // [N] ∂L/∂ŷ = weight · (ŷ − y)
  std::vector<double> square_error, error, penalty, auxiliary;  // [N]
  std::vector<std::int64_t> active;                             // [N]
  Selection selection;
  Entries aux;
  ByFeature by_feature, aux_by_feature;
  internal::Operand encoder, skip;
};

}  // namespace training

struct TranscoderTrainer::Impl {
  TranscoderConfig config;
  TrainingOptions options;
  training::Parameter encoder, encoder_bias, decoder, decoder_bias;
  training::Parameter input_bias;     // [D_in] loss `code`, unless decoder_bias does that
  training::Parameter log_threshold;  // [F] jump_relu
  training::Parameter skip;           // [D_out, D_in]
  std::vector<float> last_active;     // [F] step at which a row last had it; 0 at the start
  std::vector<float> running;         // [1] batch_topk: threshold; below 0 before the first
  std::int64_t steps = 0;
  training::Random random;
  std::shared_ptr<training::Workspace> work = std::make_shared<training::Workspace>();

  Impl(const TranscoderConfig& c, const TrainingOptions& o);

  // What one step works on.
  struct Batch {
    std::int64_t rows;
    const float* x;   // as given
    const float* xc;  // less the subtracted bias
    const float* y;
    double lambda, rate;
    std::vector<float> threshold;    // [F] jump_relu
    std::vector<std::int32_t> dead;  // ids, ascending
  };
  // Gradients of one feature beside those of sparse entries; null: none.
  struct DenseGradient {
    const float *encoder, *decoder;
    float bias, threshold;
  };

  void center(std::span<const float> x, std::span<const float> y);
  TrainingStep step(std::span<const float> x, std::span<const float> y);
  double at_step(double value, std::int64_t warmup) const;
  double learning_rate() const;

  // trainer.cpp
  void start_rows(const Batch& b);                    // ŷ ← b_dec + W_skip x
  void finish_row(const Batch& b, std::int64_t row);  // error, slope
  double penalty(float z) const;
  float penalty_slope(float z, const Batch& b) const;
  bool subtracts() const { return !input_bias.value.empty() || config.subtract_decoder_bias; }
  void resample(const Batch& b);

  // training_sparse.cpp
  void forward_sparse(const Batch& b);
  void auxiliary(const Batch& b);

  // dense.cpp
  void forward_dense(const Batch& b);
  void update_dense(const Batch& b, const training::AdamStep& adam,
                    std::vector<double>& bias_slope);

  // update.cpp
  void update(const Batch& b);
  // Features [first, end): adds what their entries contribute, then Adam. Σ_f W_enc[f]·∂L/∂b_enc[f]
  // goes to bias_slope [D_in]. dense: null or one per feature.
  void update_features(const Batch& b, const training::AdamStep& adam, std::int64_t first,
                       std::int64_t end, const DenseGradient* dense, float* bias_slope);
};

}  // namespace lamina
