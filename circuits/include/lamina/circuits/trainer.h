#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/block.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/prompts.h"
#include "lamina/core/recording.h"
#include "lamina/core/result_file.h"

// Training of dictionaries (transcoder.h). Letters as there: N rows of a batch, F features.

namespace lamina {

/// The two published losses of Dunefsky, Chlenski, Nanda 2024; both are means over the batch.
enum class TrainingLoss : std::uint8_t {
  text,  ///< of the paper: ‖y − ŷ‖² + penalty
  code,  ///< of its code: ‖y − ŷ‖² / (D_out ‖y‖) + penalty; a learnt bias is subtracted before
         ///< encoding (an autoencoder's own b_dec, otherwise one apart, folded into b_enc at the
         ///< end)
};
std::string_view training_loss_name(TrainingLoss loss);
/// UsageError for a name that is none of them.
TrainingLoss parse_training_loss(std::string_view name);

/// What is added to the error, per row, times λ.
enum class SparsityPenalty : std::uint8_t {
  none,  ///< top-k selections need none
  l1,    ///< Σ z
  l0,    ///< number of active features; jump_relu only, through the thresholds' pseudo-derivative
         ///< (Rajamanoharan et al. 2024)
  tanh,  ///< Σ tanh(c·z) (Anthropic, Circuits Updates, January 2025; decoder norms taken as 1)
};
std::string_view sparsity_penalty_name(SparsityPenalty penalty);
SparsityPenalty parse_sparsity_penalty(std::string_view name);

/// What is done for features that no row activated for `dead_window` steps.
enum class DeadFeatures : std::uint8_t {
  none,
  resample,  ///< every `dead_window` steps: a new start from rows that are rebuilt badly, chosen
             ///< with probability ∝ error² (Bricken et al. 2023)
  auxk,      ///< the `auxk` largest dead ones of a row rebuild what the others left over (Gao et
             ///< al. 2024); same error measure, times `auxk_weight`
};
std::string_view dead_features_name(DeadFeatures dead);
DeadFeatures parse_dead_features(std::string_view name);

struct TrainingOptions {
  TrainingLoss loss = TrainingLoss::text;
  SparsityPenalty penalty = SparsityPenalty::l1;
  double lambda = 1e-3;            // of the penalty
  std::int64_t lambda_warmup = 0;  // steps over which λ rises along a line from 0
  double tanh_scale = 4.0;         // c

  double threshold = 0.01;          // jump_relu: at the start
  double bandwidth = 0.05;          // jump_relu: ε of the rectangle kernel
  double threshold_average = 0.99;  // batch_topk: of the running mean of the least kept value

  DeadFeatures dead = DeadFeatures::none;
  std::int64_t dead_window = 1000;  // steps
  std::int64_t auxk = 64;           // features a row
  double auxk_weight = 1.0 / 32.0;  // α
  double resample_encoder = 0.2;    // norm of a new encoder row, of the mean of the living

  bool unit_decoder = true;  // rows of W_dec of norm 1; their gradients lose the parallel part
  bool mean_biases = true;   // b_dec (and the subtracted bias) begin at the first rows' means

  std::int64_t batch = 4096;
  std::int64_t steps = 1000;
  double learning_rate = 4e-4;
  std::int64_t rate_warmup = 0;  // steps over which the rate rises along a line from 0
  std::int64_t rate_decay = 0;   // last steps, over which it falls along a line towards 0
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // Adam

  std::int64_t buffer_rows = 32768;  // of the shuffle buffer; at least two batches
  std::int64_t skip_first = 0;       // tokens left out at the beginning of every prompt
  std::uint64_t seed = 0;
};

/// UsageError for options that cannot be, alone or with this dictionary.
void check_training(const TrainingOptions& options, const TranscoderConfig& config);

/// What one step found, before its update.
struct TrainingStep {
  double loss = 0;                // error + penalty + auxiliary
  double error = 0;               // as TrainingLoss says
  double penalty = 0;             // λ included
  double auxiliary = 0;           // weight included
  double l0 = 0;                  // active features per row
  double dead = 0;                // share of the features that are dead, 0 … 1
  double explained_variance = 0;  // 1 − Σ‖y − ŷ‖² / Σ‖y − mean y‖² of the batch
  double learning_rate = 0, lambda = 0;
};

/// One dictionary in training. Its arithmetic is exact Adam on the whole gradient; what is saved is
/// the work on inactive features. Every result is the same bit for bit whatever the threads.
class TranscoderTrainer {
 public:
  /// Random weights: unit Gaussian directions; an autoencoder's encoder equals its decoder.
  TranscoderTrainer(const TranscoderConfig& config, const TrainingOptions& options);
  /// From these weights, unit_decoder applied to them.
  TranscoderTrainer(Transcoder initial, const TrainingOptions& options);
  ~TranscoderTrainer();
  TranscoderTrainer(TranscoderTrainer&&) noexcept;
  TranscoderTrainer& operator=(TranscoderTrainer&&) noexcept;

  /// mean_biases: sets them from these rows.
  void center(std::span<const float> x, std::span<const float> y);
  /// One step on x [N, D_in], y [N, D_out]. Error if the loss is not finite.
  TrainingStep step(std::span<const float> x, std::span<const float> y);
  std::int64_t steps() const;

  /// The dictionary as it stands: subtracted bias folded, thresholds filled in.
  Transcoder transcoder() const;

  /// Everything that further steps depend on, as named arrays, to be saved and restored. `each` is
  /// called with name and values; restoring writes to them.
  using EachArray = std::function<void(const std::string& name, std::vector<float>& values)>;
  void state(const EachArray& each);
  /// Counters that belong to the state.
  std::uint64_t random_state() const;
  void restore(std::int64_t steps, std::uint64_t random_state);

  /// Uses the other's memory for what lives during a step only.
  void share_workspace(TranscoderTrainer& other);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Trains several dictionaries of one model from one stream of blocks: rows go through a seeded
/// shuffle buffer, all dictionaries see the same rows. The result depends on the order of the
/// prompts and on the options, not on how prompts are cut into blocks nor on threads.
class TrainingRun {
 public:
  /// The model must outlive the run.
  TrainingRun(const Model& model, std::vector<TranscoderConfig> configs,
              const TrainingOptions& options);
  ~TrainingRun();
  TrainingRun(const TrainingRun&) = delete;

  /// What every block must hold.
  std::vector<Site> sites() const;
  /// Most memory that parameters, optimiser and buffer take, bytes.
  std::uint64_t bytes() const;

  /// After every step: steps done and what it found, per dictionary.
  using Progress =
      std::function<void(std::int64_t step, std::span<const TrainingStep> dictionaries)>;
  void on_step(Progress progress);
  /// Every `every` steps the whole state goes to `path`, under a temporary name first. `identity`
  /// is kept with it: what resume() must find again.
  void checkpoint(const std::filesystem::path& path, std::int64_t every,
                  const std::map<std::string, std::string>& identity);
  /// Continues from a checkpoint; on_step and checkpoint() come first. Error naming the first
  /// setting that differs, with both values. The following tokens are those from position() on.
  void resume(const std::filesystem::path& path);

  /// Tokens of the stream taken so far, epoch after epoch.
  std::int64_t position() const;
  /// Adds the tokens of a block from its row `first` on. Returns done(): then the rest was left.
  bool observe(const ActivationBlock& block, std::int64_t first = 0);
  /// No tokens will follow: trains on what the buffer still holds.
  void flush();
  bool done() const;
  std::int64_t steps() const;
  const TrainingOptions& options() const;

  std::vector<Transcoder> transcoders() const;
  /// The learning curves, [dictionary, step].
  void write(ResultFile& file) const;
  /// Of the last step, per dictionary.
  std::span<const TrainingStep> last() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Feeds the run from recordings, read again and again until its steps are done; `epochs` > 0: at
/// most that often, then flush().
void train_recorded(TrainingRun& run, std::span<const Recording> recordings,
                    std::int64_t epochs = 0);
/// The same from a model that runs now: nothing is stored.
void train_live(TrainingRun& run, Forward& forward, std::span<const Prompt> prompts,
                std::int64_t epochs = 0);

/// Rows one pass over these prompts gives.
std::int64_t training_rows(std::span<const Prompt> prompts, std::int64_t skip_first);

}  // namespace lamina
