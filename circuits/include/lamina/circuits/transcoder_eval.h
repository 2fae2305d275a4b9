#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/feature_stats.h"
#include "lamina/circuits/transcoder.h"
#include "lamina/core/forward.h"
#include "lamina/core/run.h"
#include "lamina/core/tokenizer.h"
#include "lamina/probes/probe.h"

// How well dictionaries rebuild what they were trained to rebuild, and what their features do.

namespace lamina {

struct TranscoderEvalOptions {
  std::int64_t skip = 0;  // tokens at the beginning of each prompt that are left out
  double dead = 0.0;      // [ours] a feature is dead if it fires at this share of tokens or fewer
  double dense = 0.1;     // [ours] and dense if at more than this share
  std::int64_t examples = 5;    // top activating tokens kept per feature
  std::int64_t context = 10;    // tokens shown on either side of one
  bool store_features = false;  // keep all activations, sparsely
};

/// Means of the output places over tokens: what explained variance is measured against.
class OutputMeans : public Probe {
 public:
  OutputMeans(std::vector<TranscoderConfig> dictionaries, std::int64_t skip);
  std::string name() const override { return "output_means"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;
  /// [dictionary][D_out]. Error if no token was observed.
  std::vector<std::vector<double>> means() const;

 private:
  std::vector<TranscoderConfig> dictionaries_;
  std::int64_t skip_;
  std::int64_t tokens_ = 0;
  std::vector<std::vector<double>> sums_;
};

/// Sums over tokens of one dictionary. e = y − ŷ, ȳ the mean over all tokens.
struct ReconstructionSums {
  std::int64_t tokens = 0;
  std::int64_t active = 0;   // features, over all tokens
  double error = 0;          // Σ ‖e‖²
  double variance = 0;       // Σ ‖y − ȳ‖²
  double squares = 0;        // Σ ‖y‖²
  double row_explained = 0;  // Σ 1 − ‖e‖²/‖y − ȳ‖², over varying_rows
  std::int64_t varying_rows = 0;
  double cosine = 0;      // Σ cos(y, ŷ), over directed_rows
  double norm_ratio = 0;  // Σ ‖ŷ‖/‖y‖, the same
  std::int64_t directed_rows = 0;

  double l0() const;                  ///< active features per token
  double explained_variance() const;  ///< 1 − Σ‖e‖² / Σ‖y − ȳ‖² ("total")
  double explained_variance_rows() const;  ///< mean over tokens of 1 − ‖e‖²/‖y − ȳ‖² ("per token")
  double mse(std::int64_t width) const;  ///< mean over tokens and values of e²
  double normalized_mse() const;         ///< Σ‖e‖² / Σ‖y‖²
  double mean_cosine() const;
  double mean_norm_ratio() const;
};

/// Cross-entropy of the next token, nats, mean over `tokens`.
struct SpliceLoss {
  std::int64_t tokens = 0;
  double original = std::numeric_limits<double>::quiet_NaN();
  double spliced = std::numeric_limits<double>::quiet_NaN();  // ŷ instead of y
  double zero = std::numeric_limits<double>::quiet_NaN();     // 0 instead of y
  /// (zero − spliced) / (zero − original): 1 = nothing lost, 0 = no better than zeros.
  double score() const { return (zero - spliced) / (zero - original); }
};

/// Evaluates dictionaries: reconstruction and features. Observes tokens in one pass; the means
/// come from an earlier one.
class TranscoderEval : public Probe {
 public:
  /// `dictionaries` stay valid. `model` may be nullptr if no input place has norm weights;
  /// `tokenizer` may be nullptr: then contexts are token ids.
  TranscoderEval(std::vector<const Transcoder*> dictionaries, const Model* model,
                 const Tokenizer* tokenizer, std::vector<std::vector<double>> means,
                 const TranscoderEvalOptions& options);
  ~TranscoderEval() override;

  std::string name() const override { return "transcoder_eval"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  /// The summary, one row a dictionary, and groups transcoder_features_0, … with one row a feature.
  void write(ResultFile& file) const override;

  std::int64_t tokens() const;
  const ReconstructionSums& sums(std::size_t dictionary) const { return sums_.at(dictionary); }
  const FeatureStats& features(std::size_t dictionary) const { return features_.at(dictionary); }
  const SeenTokens& seen() const { return seen_; }
  std::int64_t dead(std::size_t dictionary) const;
  std::int64_t dense(std::size_t dictionary) const;
  /// To be written with the rest; one per dictionary.
  void set_losses(std::vector<SpliceLoss> losses) { losses_ = std::move(losses); }
  std::span<const SpliceLoss> losses() const { return losses_; }

 private:
  void write_features(ResultFile& file, std::size_t dictionary) const;

  std::vector<const Transcoder*> dictionaries_;
  const Model* model_;
  const Tokenizer* tokenizer_;
  std::vector<std::vector<double>> means_;
  TranscoderEvalOptions options_;
  SeenTokens seen_;
  std::vector<ReconstructionSums> sums_;
  std::vector<FeatureStats> features_;
  std::vector<SpliceLoss> losses_;
};

struct SpliceOptions {
  std::int64_t batch_tokens = 1024;
  std::int64_t skip = 0;  // tokens at the beginning of each prompt that keep their values and whose
                          // predictions are not counted
  Progress progress;
};

/// Cross-entropies with each dictionary's output in the place of what it rebuilds, with zeros
/// there, and untouched. The tokens counted: all with a following token in the prompt, and the last
/// one if the prompt has a target. Error if there is none, or the model predicts no tokens.
std::vector<SpliceLoss> splice_losses(Forward& forward, std::span<const Prompt> prompts,
                                      std::span<const Transcoder* const> dictionaries,
                                      const SpliceOptions& options = {});
/// All dictionaries at once; no two may rebuild the same place.
SpliceLoss splice_together(Forward& forward, std::span<const Prompt> prompts,
                           std::span<const Transcoder* const> dictionaries,
                           const SpliceOptions& options = {});

}  // namespace lamina
