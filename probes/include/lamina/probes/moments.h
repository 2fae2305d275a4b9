#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace lamina {

/// Count, mean, spread and extremes of a stream of numbers, by sums that add up.
struct Moments {
  std::int64_t count = 0;
  double sum = 0, squares = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();

  void add(double value) {
    ++count;
    sum += value;
    squares += value * value;
    min = std::min(min, value);
    max = std::max(max, value);
  }
  void add(const Moments& other) {
    count += other.count;
    sum += other.sum;
    squares += other.squares;
    min = std::min(min, other.min);
    max = std::max(max, other.max);
  }
  /// NaN without numbers, like the three below.
  double mean() const { return or_nan(sum / static_cast<double>(count)); }
  /// Of the numbers seen, divided by their count. Not below 0.
  double variance() const {
    const double m = mean();
    return or_nan(std::max(0.0, squares / static_cast<double>(count) - m * m));
  }
  double lowest() const { return or_nan(min); }
  double highest() const { return or_nan(max); }
  bool operator==(const Moments&) const = default;

 private:
  double or_nan(double value) const {
    return count > 0 ? value : std::numeric_limits<double>::quiet_NaN();
  }
};

}  // namespace lamina
