#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "lamina/circuits/feature_stats.h"
#include "lamina/circuits/transcoder_eval.h"
#include "lamina/core/site.h"
#include "lamina/core/tokenizer.h"
#include "lamina/probes/probe.h"

namespace lamina {

/// K vectors that stand for a site's activations: one is replaced by the mean of the k codes that
/// are nearest to it by cosine. Source: Tamkin, Taufeeque, Goodman 2023 (codebook features); here
/// the codes are k-means centres of recorded activations, theirs are trained with the model.
struct Codebook {
  Site site;
  std::int64_t width = 0;    // values of a token at the site
  std::int64_t nearest = 1;  // k
  std::vector<float> codes;  // [K, width]

  std::int64_t size() const { return static_cast<std::int64_t>(codes.size()) / width; }
  /// x [N, width] → the k nearest codes of each row and their cosines (which may be negative), ids
  /// ascending. Ties: the smaller code; a row of zeros has cosine 0 with all. Rows do not depend on
  /// each other or on threads.
  SparseRows encode(std::span<const float> x) const;
  /// The mean of each row's codes → y [N, width].
  void decode(const SparseRows& z, std::span<float> y) const;
};

struct KMeansOptions {
  std::int64_t codes = 0;
  std::int64_t max_iterations = 100;
  double tolerance = 1e-4;  // [ours] stop when the sum of squares falls by less than this share
  std::uint64_t seed = 0;
  /// Called after each iteration with its number and the sum of squares.
  std::function<void(std::int64_t, double)> progress;
};

struct KMeansResult {
  std::vector<float> centres;   // [K, width]
  std::int64_t iterations = 0;  // updates of the centres
  std::vector<double> inertia;  // Σ ‖x − nearest centre‖² before each update; falls
  bool converged = false;
};

/// Lloyd's k-means, Euclidean, on rows x [N, width]; k-means++ starts it. A centre that loses all
/// its rows moves to the row that is farthest from its own. The same at any number of threads.
/// Error if there are fewer different rows than codes.
KMeansResult k_means(std::span<const float> x, std::int64_t width, const KMeansOptions& options);
/// The same from given centres [K, width].
KMeansResult k_means_from(std::vector<float> centres, std::span<const float> x, std::int64_t width,
                          const KMeansOptions& options);

/// Keeps at most `cap` token rows of a site: those whose hash of (seed, prompt id, position) is
/// smallest, so that the sample is the same live, recorded and sharded.
class RowSample : public Probe {
 public:
  RowSample(Site site, std::int64_t cap, std::int64_t skip, std::uint64_t seed);
  std::string name() const override { return "row_sample"; }
  std::vector<Site> sites(const ModelConfig&) const override { return {site_}; }
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;
  /// [rows, width()], in the order of the tokens.
  std::vector<float> rows() const;
  std::int64_t width() const { return width_; }
  std::int64_t seen() const { return seen_; }

 private:
  struct Entry {
    std::uint64_t key;
    std::int64_t token;
    std::vector<float> values;
  };
  void trim(std::size_t limit);

  Site site_;
  std::int64_t cap_, skip_;
  std::uint64_t seed_;
  std::int64_t width_ = 0, seen_ = 0;
  std::vector<Entry> entries_;
};

struct CodebookEvalOptions {
  std::int64_t skip = 0;
  std::int64_t examples = 5;     // places kept per code
  std::int64_t context = 10;     // tokens on either side of one
  std::int64_t top_tokens = 10;  // most frequent tokens kept per code
};

/// What a codebook does with a site's activations: reconstruction, usage of the codes, and the
/// tokens that fire them.
class CodebookEval : public Probe {
 public:
  /// `codebook` stays valid; `mean` of the site over the tokens (OutputMeans).
  CodebookEval(const Codebook& codebook, const Tokenizer* tokenizer, std::vector<double> mean,
               const CodebookEvalOptions& options);
  std::string name() const override { return "codebook"; }
  std::vector<Site> sites(const ModelConfig&) const override { return {codebook_->site}; }
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  /// Codes and all that was observed; read_codebook() reads the codes again.
  void write(ResultFile& file) const override;

  const ReconstructionSums& sums() const { return sums_; }
  const FeatureStats& codes() const { return stats_; }
  const SeenTokens& seen() const { return seen_; }
  struct TokenCount {
    std::int32_t token;
    std::int64_t count;
  };
  /// The tokens at which a code fires most often, ties by the smaller id.
  std::vector<std::vector<TokenCount>> top_tokens() const;
  /// Codes that never fire.
  std::int64_t unused() const { return stats_.at_most(0); }
  /// exp of the entropy of the codes' shares: how many equally used ones they amount to.
  double perplexity() const;

 private:
  const Codebook* codebook_;
  const Tokenizer* tokenizer_;
  std::vector<double> mean_;
  CodebookEvalOptions options_;
  SeenTokens seen_;
  ReconstructionSums sums_;
  FeatureStats stats_;
  std::unordered_map<std::uint64_t, std::int64_t> pairs_;  // code · 2³² + token → count
};

/// The codes of a result file that CodebookEval wrote. Error naming the file if they do not fit.
Codebook read_codebook(const std::filesystem::path& path);

}  // namespace lamina
