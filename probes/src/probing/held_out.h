#pragma once

// Scores of held-out predictions, with intervals by resampling whole units (prompts or groups).

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/probes/linear_probe.h"

namespace lamina::held_out {

/// A seed of its own for each (seed, stream): the finaliser of splitmix64.
std::uint64_t mix(std::uint64_t seed, std::uint64_t stream);

/// Linear interpolation between order statistics; NaN entries are left out, NaN if none is left.
double quantile(std::vector<double> values, double q);

/// `fold` and `unit` of every row. `resamples` = 0: no intervals (NaN).
class Scorer {
 public:
  Scorer(std::span<const std::int32_t> fold, std::span<const std::int32_t> unit,
         std::int64_t resamples, std::uint64_t seed);

  /// Share of rows whose prediction is right. Wilson's interval if every unit has one row.
  Score accuracy(std::span<const std::int32_t> predicted,
                 std::span<const std::int32_t> label) const;
  /// Mean over classes of the share of its rows that is predicted right.
  Score balanced(std::span<const std::int32_t> predicted, std::span<const std::int32_t> label,
                 std::int32_t classes) const;
  /// Share of pairs (positive, negative) of the same fold that the scores put in order, ties half:
  /// scores of different folds come from different fits. NaN without such pairs.
  Score auroc(std::span<const double> scores, std::span<const std::uint8_t> positive) const;
  /// 1 − Σ (y − ŷ)² / Σ (y − mean of the fold's training rows)².
  Score r2(std::span<const double> predicted, std::span<const double> mean,
           std::span<const double> y) const;

 private:
  Score with_interval(const std::function<double(std::span<const double>)>& statistic) const;

  std::vector<std::int32_t> fold_, unit_;
  std::int64_t units_ = 0, resamples_;
  std::uint64_t seed_;
};

}  // namespace lamina::held_out
