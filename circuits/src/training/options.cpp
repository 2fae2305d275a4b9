#include <array>
#include <cmath>

#include "lamina/circuits/trainer.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::array<std::string_view, 2> kLosses = {"text", "code"};
constexpr std::array<std::string_view, 4> kPenalties = {"none", "l1", "l0", "tanh"};
constexpr std::array<std::string_view, 3> kDead = {"none", "resample", "auxk"};

template <class Enum, std::size_t n>
Enum parse(const std::array<std::string_view, n>& names, std::string_view what,
           std::string_view name) {
  for (std::size_t i = 0; i < n; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  fail_usage("{} '{}': expected {}", what, name, fmt::join(names, ", "));
}

void at_least(std::string_view what, std::int64_t n, std::int64_t least) {
  if (n < least) fail_usage("training: {} must be at least {}, got {}", what, least, n);
}

// Within [low, high).
void inside(std::string_view what, double x, double low, double high) {
  if (x >= low && x < high) return;
  fail_usage("training: {} must be at least {} and below {}, got {}", what, low, high, x);
}

void positive(std::string_view what, double x) {
  if (!(x > 0) || !std::isfinite(x)) {
    fail_usage("training: {} must be positive, got {}", what, x);
  }
}

}  // namespace

std::string_view training_loss_name(TrainingLoss loss) {
  return kLosses[static_cast<std::size_t>(loss)];
}
TrainingLoss parse_training_loss(std::string_view name) {
  return parse<TrainingLoss>(kLosses, "loss", name);
}
std::string_view sparsity_penalty_name(SparsityPenalty penalty) {
  return kPenalties[static_cast<std::size_t>(penalty)];
}
SparsityPenalty parse_sparsity_penalty(std::string_view name) {
  return parse<SparsityPenalty>(kPenalties, "penalty", name);
}
std::string_view dead_features_name(DeadFeatures dead) {
  return kDead[static_cast<std::size_t>(dead)];
}
DeadFeatures parse_dead_features(std::string_view name) {
  return parse<DeadFeatures>(kDead, "dead features", name);
}

void check_training(const TrainingOptions& o, const TranscoderConfig& c) {
  at_least("the batch", o.batch, 1);
  at_least("the number of steps", o.steps, 1);
  // Steps are kept as floats in checkpoints: exact to 2²⁴.
  if (o.steps > 16'000'000) {
    fail_usage("training: at most 16000000 steps are possible, got {}", o.steps);
  }
  at_least("the warm-up of λ", o.lambda_warmup, 0);
  at_least("the warm-up of the learning rate", o.rate_warmup, 0);
  at_least("the decay of the learning rate", o.rate_decay, 0);
  at_least("the window of dead features", o.dead_window, 1);
  at_least("tokens left out of every prompt", o.skip_first, 0);
  positive("the learning rate", o.learning_rate);
  positive("Adam's ε", o.epsilon);
  inside("β₁", o.beta1, 0, 1);
  inside("β₂", o.beta2, 0, 1);
  inside("λ", o.lambda, 0, HUGE_VAL);
  inside("the weight of the auxiliary loss", o.auxk_weight, 0, HUGE_VAL);
  inside("the average of the threshold", o.threshold_average, 0, 1);
  positive("the kernel's bandwidth", o.bandwidth);
  positive("the first threshold", o.threshold);
  positive("the scale of the tanh penalty", o.tanh_scale);
  positive("the norm of new encoder rows", o.resample_encoder);
  if (o.buffer_rows / 2 < o.batch) {
    fail_usage("training: the shuffle buffer must hold two batches of {}, got {} rows", o.batch,
               o.buffer_rows);
  }
  const bool top =
      c.activation == FeatureActivation::topk || c.activation == FeatureActivation::batch_topk;
  if (top && (c.k < 1 || c.k > c.features)) {
    fail_usage("{}: {} needs k between 1 and its {} features, got {}", c.name,
               feature_activation_name(c.activation), c.features, c.k);
  }
  if (o.penalty == SparsityPenalty::l0 && c.activation != FeatureActivation::jump_relu) {
    fail_usage("{}: the l0 penalty acts on the thresholds of jump_relu, the activation is {}",
               c.name, feature_activation_name(c.activation));
  }
  if (o.dead == DeadFeatures::auxk && (o.auxk < 1 || o.auxk > c.features)) {
    fail_usage("{}: auxk must be between 1 and its {} features, got {}", c.name, c.features,
               o.auxk);
  }
  if (c.d_in < 1 || c.d_out < 1 || c.features < 1) {
    fail_usage("{}: {} → {} features → {} is no dictionary", c.name, c.d_in, c.features, c.d_out);
  }
  if (c.subtract_decoder_bias && c.d_in != c.d_out) {
    fail_usage("{}: the decoder's bias of {} cannot be subtracted from inputs of {}", c.name,
               c.d_out, c.d_in);
  }
}

}  // namespace lamina
