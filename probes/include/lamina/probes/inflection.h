#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"
#include "lamina/core/run.h"

// Where a model saturates and stops learning: attention entropy, gradients of the loss, how much a
// second model differs layer by layer, and the score that joins the first two. After "Attention
// Saturation and Gradient Suppression at Inflection Layers". docs/inflection.md has the formulas.

namespace lamina {

/// automatic: label for classifiers, next_token for causal language models, none for others.
enum class InflectionLoss : std::uint8_t { automatic, next_token, label, none };
InflectionLoss parse_inflection_loss(std::string_view name);
std::string_view inflection_loss_name(InflectionLoss loss);

struct InflectionOptions {
  InflectionLoss loss = InflectionLoss::automatic;
  std::string label = "label";   // which of the prompts' labels is the answer (a name or a number)
  double weight = 0.5;           // w of the score: share of the entropy
  bool batch_gradient = false;   // the score reads the gradient of a batch, not the mean per token
  double band = 0.8;             // layers of the band score at least this share of the peak
  std::int64_t components = 64;  // most of the shared basis
  double variance = 0.95;        // that it should hold
  std::int64_t skip = 0;         // first tokens of every prompt that the CKA leaves out
  std::int64_t batch_tokens = 512;  // whole prompts are packed up to this many tokens
  Progress progress;
};

/// What one model did. L layers; streams: what enters layer 0, then what leaves every layer.
struct InflectionRun {
  std::string model_id, model_sha256;
  std::int64_t tokens = 0, batches = 0;
  std::int64_t predicted = 0;                                 // tokens or labels in the loss
  double loss = 0, accuracy = 0;                              // means over these; nats, share
  std::vector<double> entropy, entropy_normalized;            // [L]
  std::vector<double> head_entropy, head_entropy_normalized;  // [L, H]
  std::vector<double> token_gradient, batch_gradient;         // [L + 1]; empty without a loss
  std::vector<std::string> parameters;                        // canonical tensors
  std::vector<std::int32_t> parameter_layer;                  // −1: outside the layers
  std::vector<double> parameter_gradient;                     // [parameter]
  std::vector<double> layer_gradient;                         // [L] all of a layer's parameters
  std::vector<double> low_entropy, low_gradient, score;       // [L]; empty without a loss
  std::vector<std::int32_t> candidates;                       // highest first
  std::int32_t band_first = -1, band_last = -1;
};

struct InflectionResults {
  InflectionLoss loss = InflectionLoss::none;
  std::int64_t n_layers = 0, n_heads = 0;
  std::vector<InflectionRun> runs;  // one or two models
  // Of two models, per stream [L + 1].
  std::vector<double> delta_cka;         // 1 − linear CKA in the shared basis
  std::vector<double> full_delta_cka;    // the same without a basis
  std::vector<std::int32_t> components;  // of the shared basis
  std::vector<double> kept_variance;     // share that it holds
};

/// Runs one or two models over `prompts` forwards and backwards, batch after batch; memory does not
/// grow with the number of prompts. Throws UsageError for settings that do not fit the models,
/// Error for prompts without the label, nothing to predict, and a layer without any gradient.
InflectionResults measure_inflection(std::span<Forward* const> models,
                                     std::span<const Prompt> prompts,
                                     const InflectionOptions& options = {});

/// Writes to the file's current group.
void write_inflection(ResultFile& file, const InflectionResults& results,
                      const InflectionOptions& options);

/// The answer of a prompt as the number of a label of a classifier. Error naming the prompt.
std::int32_t label_of(const Prompt& prompt, std::string_view name, const ModelConfig& config);

/// (x − min)/(max − min); zeros if all are equal.
std::vector<double> min_max(std::span<const double> x);
/// Local maxima, highest first; an end counts if it is above its one neighbour. Of equal
/// neighbours the first counts.
std::vector<std::int32_t> local_maxima(std::span<const double> x);
/// First and last of the neighbours of the highest value that are at least `share` of it.
std::pair<std::int32_t, std::int32_t> peak_band(std::span<const double> x, double share);

/// Linear CKA of two sets of rows in the principal components that they share, from streamed sums:
/// memory 3·d² doubles, whatever the number of rows.
class SharedCka {
 public:
  explicit SharedCka(std::int64_t d);
  ~SharedCka();
  SharedCka(SharedCka&&) noexcept;

  /// Adds rows: x, y [rows, d].
  void add(std::span<const float> x, std::span<const float> y);

  struct Result {
    double cka = 0;       // in the shared basis
    double full_cka = 0;  // of the rows as they are
    std::int32_t components = 0;
    double kept_variance = 0;
  };
  /// The basis: principal components of both sets stacked, each minus its own mean; the fewest that
  /// hold `variance` of the sum of squares, at most `components`. A set that does not vary has no
  /// CKA: NaN.
  Result result(std::int64_t components, double variance) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
