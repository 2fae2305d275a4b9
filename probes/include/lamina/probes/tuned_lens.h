#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/probes/lens.h"
#include "lamina/probes/probe.h"
#include "lamina/probes/readout.h"

namespace lamina {

struct TunedLensOptions {
  std::vector<Site> sites;  // residual-width sites, any order; empty = tuned_lens_sites()
  LensPositions positions = LensPositions::all;
  std::vector<std::int64_t> position_list;  // as in LensOptions

  std::int64_t steps = 1000;
  std::int64_t batch = 64;  // tokens per step
  double learning_rate = 1e-3;
  bool linear_decay = true;  // from learning_rate at the first step towards 0 after the last
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // Adam
  double weight_decay = 0.0;                          // decoupled from the gradient, as in AdamW
  std::uint64_t seed = 0;                             // held-out prompts and order of the tokens
  double held_out = 0.1;  // share of the prompts kept from training, at least one prompt

  std::uint64_t row_bytes = std::uint64_t{4} << 30;  // most that observed activations may take
};

/// The stream entering the first block, then leaving every block but the last.
std::vector<Site> tuned_lens_sites(const ModelConfig& config);

/// What train() did. S sites, in firing order.
struct TunedLensReport {
  std::int64_t prompts = 0, held_out_prompts = 0;
  std::int64_t tokens = 0, held_out_tokens = 0;  // trained on; held out
  std::vector<double> plain;  // [S] mean KL(p_final ‖ p_l) over held-out tokens, nats: logit lens
  std::vector<double> tuned;  // [S] the same through the translators
  std::vector<double> loss;   // [steps, S] mean over the step's tokens, before its update, nats
};

/// Trains tuned-lens translators: per site A and b, from zero, such that
/// p_l = softmax(U·norm_final(h + A·h + b)) comes close to the model's final distribution,
/// by Adam on KL(p_final ‖ p_l). Source: Belrose et al., "Eliciting Latent Predictions from
/// Transformers with the Tuned Lens"; optimiser: ours (they use SGD with Nesterov momentum).
///
/// A probe: observe the prompts first (live, over a recording, over shards), then train(). The
/// activations observed stay in memory, 4·d_model·(S + 1) bytes a token; the unembedding is copied.
/// The result depends on what was observed and on the options, not on blocks or threads.
class TunedLensTrainer : public Probe {
 public:
  /// `readout` must outlive the trainer. UsageError for options that cannot be.
  TunedLensTrainer(const ModelConfig& config, const Readout& readout,
                   TunedLensOptions options = {});
  ~TunedLensTrainer() override;
  TunedLensTrainer(TunedLensTrainer&&) noexcept;

  std::string name() const override;
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  /// Held-out divergences and the loss curve of train().
  void write(ResultFile& file) const override;

  /// Called with steps done and the mean loss over sites of the last one.
  using StepProgress = std::function<void(std::int64_t step, double loss)>;
  /// All steps. Error if fewer than two prompts were observed, or a loss is not finite.
  const TunedLensReport& train(const StepProgress& progress = {});

  const TunedLensReport& report() const;
  /// The maps trained so far.
  LensTranslators translators() const;
  const TunedLensOptions& options() const;
  /// Sites with a map, [S].
  std::span<const Site> trained_sites() const;

  /// Tokens observed.
  std::int64_t tokens() const;
  /// One step on these observed tokens (indices in order of observation). Returns the mean loss
  /// per site, [S], before the update.
  std::vector<double> step(std::span<const std::int64_t> tokens, double learning_rate);
  /// Mean KL(p_final ‖ p_l) per site over these tokens, [S], nats, with the maps as they are.
  std::vector<double> evaluate(std::span<const std::int64_t> tokens);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
