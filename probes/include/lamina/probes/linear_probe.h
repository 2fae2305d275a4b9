#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/core/site.h"
#include "lamina/probes/features.h"

// Linear probes: what can be read off activations linearly, and along which direction.
namespace lamina {

/// logistic: labels are classes; ridge: labels are numbers.
enum class ProbeKind : std::uint8_t { logistic, ridge };
std::string_view probe_kind_name(ProbeKind kind);
ProbeKind parse_probe_kind(std::string_view name);

struct LinearProbeOptions {
  ProbeKind kind = ProbeKind::logistic;
  /// λ of (mean loss) + λ/2 ‖w‖² on standardised features.
  std::vector<double> strengths = {1e-3, 1e-2, 1e-1, 1, 10, 100};
  std::int64_t folds = 5;
  std::int64_t controls = 5;      // repetitions with shuffled labels
  std::int64_t resamples = 1000;  // of the intervals
  double shrinkage = 0.1;         // of the covariance that whitens the class means
  std::uint64_t seed = 0;
};

/// What the rows are to be told apart by.
struct ProbeTargets {
  std::vector<std::string> classes;  // sorted (as numbers if all are); empty for ridge
  std::vector<std::int32_t> label;   // [row] index into classes; empty for ridge
  std::vector<double> value;         // [row] for ridge
  std::vector<std::int32_t> unit;    // [row] what folds never part: the rows' groups, from 0
  std::int32_t units = 0;
};
/// Error if there are no rows, one class only, more than 256 classes, or a ridge label is no
/// finite number or all are equal.
ProbeTargets probe_targets(std::span<const FeatureRow> rows, ProbeKind kind);

/// The fold of every row, 0 … folds − 1. Units are shuffled by the seed and dealt in turn, class
/// after class where all rows of each unit have one class, so that folds have equal shares of each.
/// Error if there are too few units, or a class would be missing from the rows that a fit is given
/// (those of all folds but one; but two if a strength has to be chosen).
std::vector<std::int32_t> deal_folds(const ProbeTargets& targets,
                                     const LinearProbeOptions& options);

/// A score and the 95 % interval of it.
struct Score {
  double value = 0, low = 0, high = 0;
};

/// What one site's features say. Outputs: one score (of class 1) for two classes or a number, one
/// per class otherwise. Held-out: of rows that neither the fit nor the choice of its strength saw.
struct SiteProbe {
  std::string site;
  std::int32_t layer = -1;
  std::int64_t width = 0, outputs = 0, constant_features = 0;
  double strength = 0;                            // of the fit to all rows
  std::vector<double> path_score, path_loss;      // [strength] of the folds' fits at each strength
  std::vector<double> fold_score, fold_strength;  // [fold]
  Score accuracy, balanced_accuracy, auroc;       // logistic; auroc for two classes
  Score r2;                                       // ridge
  std::vector<double> control;                    // [repetition] score with shuffled labels
  double control_mean = 0, selectivity = 0;       // selectivity = score − control_mean
  std::vector<double> weight, bias;               // [output, width], [output]: features as they are
  /// Mean of the class minus that of the others, [output, width] (raw: its norm is the distance of
  /// the means); the point between the two means, along it, [output]; AUROC of the held-out
  /// projection. Then the same whitened by the shrunk within-class covariance. Logistic only.
  std::vector<double> direction, midpoint;
  std::vector<Score> direction_auroc;  // [output]
  std::vector<double> whitened;
  std::vector<Score> whitened_auroc;
  std::vector<double> decision;  // [row, output] held-out scores
  double residual = 0;           // largest derivative that a fit was left with

  /// accuracy or r2.
  const Score& score(ProbeKind kind) const { return kind == ProbeKind::ridge ? r2 : accuracy; }
};

/// Fits one site: `values` [row, width]. The strength of each held-out fold is chosen within its
/// training rows, by folds left out of those (nested cross-validation); the last fit sees all rows
/// with the strength of least held-out loss. Error, naming `site`, if a value is not finite or all
/// features are constant. Results do not depend on the number of threads.
SiteProbe probe_site(std::string_view site, std::span<const float> values, std::int64_t width,
                     const ProbeTargets& targets, std::span<const std::int32_t> fold,
                     const LinearProbeOptions& options);

/// Everything a run of probes found.
struct ProbeRun {
  FeatureOptions features;
  LinearProbeOptions options;
  std::vector<FeatureRow> rows;
  ProbeTargets targets;
  std::vector<std::int32_t> fold;  // [row]
  std::vector<SiteProbe> sites;
};
/// Datasets with dimensions site, strength, fold, repetition, output, component, row.
void write_linear_probes(ResultFile& file, const ProbeRun& run);

/// Trained probes as a safetensors file has them.
struct StoredProbe {
  std::string site;
  std::int64_t width = 0;
  std::vector<float> weight, bias;               // [output, width], [output]
  std::vector<float> direction, midpoint, unit;  // empty for ridge
  std::vector<float> whitened;
};
struct StoredProbes {
  std::string model_sha256, label;
  ProbeKind kind = ProbeKind::logistic;
  RowChoice choice = RowChoice::last;
  std::int64_t index = 0, skip = 0;
  std::vector<std::string> classes;
  std::vector<StoredProbe> sites;
};
/// Tensors <site>.weight, .bias, .direction, .unit, .midpoint, .whitened, fp32.
void write_probe_file(const std::filesystem::path& path, const ProbeRun& run,
                      const std::string& model_sha256);
StoredProbes read_probe_file(const std::filesystem::path& path);

/// A stored probe on new rows: scores [row, output] and the rows' projections on the unit
/// direction [row, output] (empty without one).
struct AppliedProbe {
  std::string site;
  std::vector<double> score, projection;
  std::vector<std::int32_t> predicted;  // [row] class; empty for ridge
};
AppliedProbe apply_probe(const StoredProbe& probe, std::span<const float> values, ProbeKind kind);

}  // namespace lamina
