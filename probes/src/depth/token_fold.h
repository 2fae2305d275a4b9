#pragma once

// Means and maxima over tokens of statistics of single tokens, in parallel, with results that
// depend neither on the number of threads nor on where blocks end.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/error.h"

namespace lamina {

/// The rows of a token site. Error if there are not tokens × width values.
std::span<const float> site_rows(const ActivationBlock& block, Site site, std::int64_t width,
                                 std::string_view analysis);
/// "prompt "id", position i" of a row, for messages.
std::string token_place(const ActivationBlock& block, std::int64_t row);

/// Sums and maxima over tokens of `width` numbers a token.
struct TokenSums {
  std::int64_t tokens = 0;
  std::vector<double> sum, max;  // [width]

  TokenSums() = default;
  explicit TokenSums(std::int64_t width)
      : sum(static_cast<std::size_t>(width)),
        max(static_cast<std::size_t>(width), -std::numeric_limits<double>::infinity()) {}

  /// NaN without tokens.
  double mean(std::size_t i) const { return sum[i] / static_cast<double>(tokens); }
  double maximum(std::size_t i) const {
    return tokens > 0 ? max[i] : std::numeric_limits<double>::quiet_NaN();
  }
  void add(const TokenSums& other) {
    tokens += other.tokens;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += other.sum[i];
      max[i] = std::max(max[i], other.max[i]);
    }
  }
  bool operator==(const TokenSums&) const = default;

  /// fill(row, out) writes the `width` numbers of one token; it runs in parallel and must not
  /// throw. They are added token by token in order. Error naming the token if one is not finite.
  template <class Fill>
  void fold(std::string_view analysis, const ActivationBlock& block,
            std::span<const std::int64_t> rows, Fill&& fill) {
    constexpr std::int64_t kChunk = 128;  // tokens whose numbers are held at a time
    const auto width = static_cast<std::int64_t>(sum.size());
    const auto count = static_cast<std::int64_t>(rows.size());
    std::vector<double> table(static_cast<std::size_t>(std::min(kChunk, count) * width));
    for (std::int64_t first = 0; first < count; first += kChunk) {
      const std::int64_t n = std::min(kChunk, count - first);
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < n; ++i) {
        fill(rows[static_cast<std::size_t>(first + i)], table.data() + i * width);
      }
      for (std::int64_t i = 0; i < n; ++i) {
        const double* row = table.data() + i * width;
        double check = 0;  // NaN or infinite if one of them is, or if they are too large to add
        for (std::int64_t j = 0; j < width; ++j) {
          sum[static_cast<std::size_t>(j)] += row[j];
          max[static_cast<std::size_t>(j)] = std::max(max[static_cast<std::size_t>(j)], row[j]);
          check += row[j] * 0.0;
        }
        if (!(check == 0.0)) {
          fail("{}: {}: the activations are not finite", analysis,
               token_place(block, rows[static_cast<std::size_t>(first + i)]));
        }
      }
    }
    tokens += count;
  }
};

}  // namespace lamina
