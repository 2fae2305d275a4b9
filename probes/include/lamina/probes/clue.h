#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/probes/linear_probe.h"

// CLUE: right and wrong answers told apart by how the hidden state moves from the start of an
// answer to its end. Source: "CLUE: Non-parametric Verification from Experience via Hidden-State
// Clustering" (2025), its text.
namespace lamina {

/// Whether a label says "right": equal to `positive`; without one, 1, true, yes, correct, right
/// against 0, false, no, incorrect, wrong. Error for anything else.
bool parse_correct(const FeatureRow& row, std::string_view positive);

struct ClueOptions {
  std::int64_t folds = 5;  // 0: centroids were given
  double train_share = 0;  // > 0: one split, this share of the groups gives the centroids
  std::int64_t resamples = 1000;
  std::uint64_t seed = 0;
};

/// Means of Δh over right and over wrong traces, one vector per layer.
struct ClueCentroids {
  std::string model_sha256, start, end;
  std::vector<std::string> sites;
  std::vector<std::vector<float>> success, failure;  // [layer][width]
};
/// Tensors <site>.success and <site>.failure, fp32.
void write_centroids(const std::filesystem::path& path, const ClueCentroids& centroids);
ClueCentroids read_centroids(const std::filesystem::path& path);

/// Share of questions whose chosen candidate is right, in several ways of choosing.
struct ClueReranking {
  std::int64_t questions = 0, candidates = 0;
  Score nearest;      // the candidate nearest to the success centroid
  Score first;        // the first candidate
  Score majority;     // the commonest answer (ties: the earliest); NaN without answers
  double mean = 0;    // a candidate at random
  double oracle = 0;  // any candidate
};

struct ClueResults {
  std::vector<std::string> sites;
  std::int64_t judged = 0;                          // traces with a distance
  std::vector<std::uint8_t> correct;                // [trace] as labelled
  std::vector<std::uint8_t> predicted;              // [trace] nearer to success; 2 = not judged
  std::vector<double> to_success, to_failure;       // [trace] (1/L) Σ_l ‖Δh_l − centroid_l‖
  std::vector<double> layer_accuracy, layer_auroc;  // [layer] by that layer alone
  Score accuracy, balanced_accuracy, auroc;         // auroc of to_failure − to_success
  double base = 0;                                  // share of right traces among the judged
  ClueReranking reranking;                          // of groups with several judged traces
  ClueCentroids centroids;                          // of all traces, or those given
};

/// Layer by layer: distances are sums over layers, so one layer's Δh is held at a time.
class Clue {
 public:
  /// `rows` are traces, their groups questions; `correct` [trace]. With `given`, its centroids are
  /// used instead of the traces' own. Error if a class is missing where centroids are needed.
  Clue(std::span<const FeatureRow> rows, std::span<const std::uint8_t> correct,
       const ClueOptions& options, const ClueCentroids* given = nullptr);
  ~Clue();

  /// Δh of every trace at one layer, [trace, width]. Error if a value is not finite.
  void add_layer(std::string_view site, std::span<const float> values, std::int64_t width);
  /// `answers` [trace] for the majority vote, or empty.
  ClueResults finish(std::span<const std::string> answers = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Datasets with dimensions layer, trace, component.
void write_clue(ResultFile& file, const ClueResults& results, std::span<const FeatureRow> rows,
                const ClueOptions& options);

}  // namespace lamina
