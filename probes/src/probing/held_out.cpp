#include "probing/held_out.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "lamina/probes/choice.h"

namespace lamina::held_out {

namespace {
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
}  // namespace

std::uint64_t mix(std::uint64_t seed, std::uint64_t stream) {
  std::uint64_t z = seed + (stream + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

double quantile(std::vector<double> values, double q) {
  std::erase_if(values, [](double v) { return std::isnan(v); });
  if (values.empty()) return kNaN;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

Scorer::Scorer(std::span<const std::int32_t> fold, std::span<const std::int32_t> unit,
               std::int64_t resamples, std::uint64_t seed)
    : fold_(fold.begin(), fold.end()),
      unit_(unit.begin(), unit.end()),
      resamples_(resamples),
      seed_(seed) {
  for (std::int32_t u : unit_) units_ = std::max<std::int64_t>(units_, u + 1);
}

Score Scorer::with_interval(const std::function<double(std::span<const double>)>& statistic) const {
  std::vector<double> weights(unit_.size(), 1.0);
  Score score{statistic(weights), kNaN, kNaN};
  if (resamples_ == 0 || std::isnan(score.value)) return score;
  std::vector<double> values(static_cast<std::size_t>(resamples_));
#pragma omp parallel for schedule(static) firstprivate(weights)
  for (std::int64_t b = 0; b < resamples_; ++b) {
    std::mt19937_64 random(mix(seed_, static_cast<std::uint64_t>(b)));
    std::vector<double> drawn(static_cast<std::size_t>(units_), 0.0);
    for (std::int64_t i = 0; i < units_; ++i) {
      const double u = static_cast<double>(random() >> 11) * 0x1.0p-53;
      drawn[static_cast<std::size_t>(u * static_cast<double>(units_))] += 1;
    }
    for (std::size_t r = 0; r < weights.size(); ++r) {
      weights[r] = drawn[static_cast<std::size_t>(unit_[r])];
    }
    values[static_cast<std::size_t>(b)] = statistic(weights);
  }
  score.low = quantile(values, 0.025);
  score.high = quantile(values, 0.975);
  return score;
}

Score Scorer::accuracy(std::span<const std::int32_t> predicted,
                       std::span<const std::int32_t> label) const {
  if (units_ == static_cast<std::int64_t>(unit_.size())) {
    std::int64_t right = 0;
    for (std::size_t i = 0; i < label.size(); ++i) right += predicted[i] == label[i];
    const Interval interval = wilson(right, units_);
    return {static_cast<double>(right) / static_cast<double>(units_), interval.low, interval.high};
  }
  return with_interval([&](std::span<const double> w) {
    double right = 0, all = 0;
    for (std::size_t i = 0; i < label.size(); ++i) {
      all += w[i];
      if (predicted[i] == label[i]) right += w[i];
    }
    return right / all;
  });
}

Score Scorer::balanced(std::span<const std::int32_t> predicted, std::span<const std::int32_t> label,
                       std::int32_t classes) const {
  return with_interval([&, classes](std::span<const double> w) {
    std::vector<double> right(static_cast<std::size_t>(classes)), all(right);
    for (std::size_t i = 0; i < label.size(); ++i) {
      const auto c = static_cast<std::size_t>(label[i]);
      all[c] += w[i];
      if (predicted[i] == label[i]) right[c] += w[i];
    }
    double sum = 0, present = 0;
    for (std::size_t c = 0; c < all.size(); ++c) {
      if (all[c] == 0) continue;  // a resample without that class
      sum += right[c] / all[c];
      ++present;
    }
    return sum / present;
  });
}

Score Scorer::auroc(std::span<const double> scores, std::span<const std::uint8_t> positive) const {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (fold_[a] != fold_[b]) return fold_[a] < fold_[b];
    if (scores[a] != scores[b]) return scores[a] < scores[b];
    return a < b;
  });
  return with_interval([&](std::span<const double> w) {
    double ordered = 0, pairs = 0;
    for (std::size_t i = 0; i < order.size();) {
      const std::int32_t fold = fold_[order[i]];
      double negatives = 0, positives = 0;  // of this fold so far
      while (i < order.size() && fold_[order[i]] == fold) {
        double tied_positive = 0, tied_negative = 0;
        const double score = scores[order[i]];
        for (; i < order.size() && fold_[order[i]] == fold && scores[order[i]] == score; ++i) {
          (positive[order[i]] != 0 ? tied_positive : tied_negative) += w[order[i]];
        }
        ordered += tied_positive * (negatives + 0.5 * tied_negative);
        negatives += tied_negative;
        positives += tied_positive;
      }
      pairs += negatives * positives;
    }
    return pairs > 0 ? ordered / pairs : kNaN;
  });
}

Score Scorer::r2(std::span<const double> predicted, std::span<const double> mean,
                 std::span<const double> y) const {
  return with_interval([&](std::span<const double> w) {
    double error = 0, total = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      error += w[i] * (y[i] - predicted[i]) * (y[i] - predicted[i]);
      total += w[i] * (y[i] - mean[i]) * (y[i] - mean[i]);
    }
    return 1 - error / total;
  });
}

}  // namespace lamina::held_out
