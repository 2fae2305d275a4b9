#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lamina/probes/probe.h"

// How alike the representations of two layers are, of one model or of two, over the same rows:
// centred kernel alignment and canonical correlations. docs/cka.md has the formulas and sources.

namespace lamina {

/// exact: sums of products over all rows. minibatch: unbiased HSIC of consecutive minibatches,
/// averaged: a small share of the cost, only the debiased CKA, with a standard error.
enum class CkaMode : std::uint8_t { exact, minibatch };
CkaMode parse_cka_mode(std::string_view name);
std::string_view cka_mode_name(CkaMode mode);

/// What a row is: a token, the mean of a prompt's tokens, or a prompt's last token.
enum class CkaPool : std::uint8_t { none, mean, last };
CkaPool parse_cka_pool(std::string_view name);
std::string_view cka_pool_name(CkaPool pool);

struct CkaMeasures {
  bool linear = true, debiased = true, rbf = false, svcca = false, pwcca = false;
};
/// Of names "linear", "debiased", "rbf", "svcca", "pwcca". UsageError for others.
CkaMeasures parse_cka_measures(std::span<const std::string> names);

struct CkaOptions {
  CkaMode mode = CkaMode::exact;
  CkaMeasures measures;  // minibatch: debiased is always measured, of the others rbf can be
  /// Which streams: a site name or pattern as for recording, of one kind. Empty: what enters block
  /// 0 and what leaves every block (resid_post; post-norm models: normalized_resid_post).
  std::string site;
  std::int64_t skip = 0;  // first tokens of every prompt that are left out
  CkaPool pool = CkaPool::none;
  std::int64_t minibatch = 256;  // rows of a minibatch
  std::int64_t sample = 1000;    // rows that the RBF kernel sees
  double bandwidth = 0.5;        // σ of the RBF kernel over the median distance
  std::uint64_t seed = 0;        // of that sample
  double variance = 0.99;        // SVCCA keeps components with this share of the variance
  double floor = 1e-6;           // PWCCA: least variance of a direction over the largest
  std::uint64_t memory = std::uint64_t{4}
                         << 30;  // bytes: most for exact sums, most for the kernels
};

/// What was found. A layers against B others (the same ones if `self`); a matrix is [A, B], empty
/// if it was not asked for, NaN where it does not exist (`notes` say why).
struct CkaResults {
  bool self = true;
  std::vector<std::string> layers, layers_other;  // "embed", "0", … ; layers_other empty if self
  std::int64_t rows = 0;                          // compared
  std::int64_t minibatches = 0, rows_left_out = 0;  // minibatch mode
  std::int64_t sample = 0;                          // rows of the RBF kernel
  std::vector<double> linear, debiased, debiased_error, rbf, rbf_debiased, svcca, pwcca;
  std::vector<double> sigma, sigma_other;                  // [A], [B] of the RBF kernel
  std::vector<std::int32_t> components, components_other;  // [A], [B] that SVCCA kept
  /// [A], [B] share of the variance that the prompts' first tokens hold; empty if rows are prompts.
  std::vector<double> first_token, first_token_other;
  std::vector<std::string> notes;

  std::int64_t a() const { return static_cast<std::int64_t>(layers.size()); }
  std::int64_t b() const {
    return static_cast<std::int64_t>((self ? layers : layers_other).size());
  }
};

/// The streams that are compared, in order. UsageError for attention sites, several kinds, or sites
/// that the model does not have.
std::vector<Site> cka_sites(const ModelConfig& config, std::string_view site);

/// All layers of one model against one another. Memory does not grow with the number of tokens.
/// Exact mode keeps a d × d matrix of doubles for each pair of layers and fails if that is more
/// than `memory`; measure_cka can then read a recording several times instead.
///
/// merge: exact mode adds sums, so parts give the whole up to rounding (CKA within 1e-6), the
/// RBF sample is that of the whole bit for bit. A minibatch never spans two parts' rows but for the
/// rows left at their ends, which form further minibatches: same estimator, other minibatches.
class CkaProbe : public Probe {
 public:
  explicit CkaProbe(const ModelConfig& config, CkaOptions options = {});
  ~CkaProbe() override;

  std::string name() const override { return "cka"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  /// Ends the observation: observe and merge fail afterwards.
  const CkaResults& results() const;
  const CkaOptions& options() const { return options_; }

 private:
  struct Impl;
  ModelConfig config_;
  CkaOptions options_;
  std::unique_ptr<Impl> impl_;
};

/// Where rows come from: recordings, one after the other, or a model that runs over prompts.
struct CkaSource {
  std::span<const Recording> recordings;
  Forward* forward = nullptr;
  std::span<const Prompt> prompts;
  std::string name;  // for errors

  const ModelConfig& config() const;
  std::vector<std::span<const Prompt>> all_prompts() const;
};

/// Compares layers within one source, or those of `a` with those of `b` over the same prompts: row
/// by row if every prompt has as many tokens in both, otherwise by prompt (`pool`). Error if they
/// do not match, naming the first prompt. Exact sums beyond `memory` are made in several passes
/// over recordings; UsageError if a model would have to run several times.
CkaResults measure_cka(const CkaSource& a, const CkaSource* b, const CkaOptions& options,
                       const Progress& progress = {});

/// Writes to the file's current group.
void write_cka(ResultFile& file, const CkaResults& results, const CkaOptions& options);

/// Blocks of neighbouring layers, first and last, all of whose pairs reach `least`: from the first
/// layer on, each as long as possible. `matrix` [n, n].
std::vector<std::pair<std::int64_t, std::int64_t>> cka_blocks(std::span<const double> matrix,
                                                              std::int64_t n, double least);

}  // namespace lamina
