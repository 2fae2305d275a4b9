#include "rows.h"

#include <algorithm>
#include <cmath>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lamina::training {
namespace {

constexpr std::int64_t kLanes = 32;     // of a dot product
constexpr std::int64_t kRowBlock = 64;  // of column sums

}  // namespace

void add_scaled(float a, const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = __builtin_fmaf(a, x[i], y[i]);
}

float dot(const float* x, const float* y, std::int64_t n) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      lanes[l] = __builtin_fmaf(x[i + l], y[i + l], lanes[l]);
    }
  }
  for (std::int64_t l = 0; i + l < n; ++l) {
    lanes[l] = __builtin_fmaf(x[i + l], y[i + l], lanes[l]);
  }
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

double sum_squares(const float* x, std::int64_t n) {
  constexpr std::int64_t kDoubles = 16;
  double lanes[kDoubles] = {};
  std::int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    for (std::int64_t l = 0; l < kDoubles; ++l) {
      const double v = x[i + l];
      lanes[l] = __builtin_fma(v, v, lanes[l]);
    }
  }
  for (std::int64_t l = 0; i + l < n; ++l) lanes[l] += double{x[i + l]} * x[i + l];
  for (std::int64_t half = kDoubles / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

std::int64_t add_and_count(const float* b, std::int64_t n, float least, float* u) {
  std::int32_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    u[i] += b[i];
    count += u[i] > least ? 1 : 0;
  }
  return count;
}

std::int64_t add_and_count(const float* b, std::int64_t n, const float* least, float* u) {
  std::int32_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    u[i] += b[i];
    count += u[i] > least[i] ? 1 : 0;
  }
  return count;
}

void collect_above(const float* u, std::int64_t n, float least, float bound,
                   std::vector<std::int32_t>& out) {
  std::int64_t i = 0;
#if defined(__AVX2__)
  const __m256 low = _mm256_set1_ps(least), limit = _mm256_set1_ps(bound);
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(u + i);
    const __m256 both =
        _mm256_and_ps(_mm256_cmp_ps(v, low, _CMP_GT_OQ), _mm256_cmp_ps(v, limit, _CMP_GE_OQ));
    for (auto mask = static_cast<unsigned>(_mm256_movemask_ps(both)); mask != 0; mask &= mask - 1) {
      out.push_back(static_cast<std::int32_t>(i + __builtin_ctz(mask)));
    }
  }
#endif
  for (; i < n; ++i) {
    if (u[i] > least && u[i] >= bound) out.push_back(static_cast<std::int32_t>(i));
  }
}

void group_maxima(const float* u, std::int64_t n, std::int64_t groups, float* maxima) {
  std::copy_n(u, groups, maxima);
  std::int64_t i = groups;
  for (; i + groups <= n; i += groups) {
    for (std::int64_t g = 0; g < groups; ++g) {
      maxima[g] = u[i + g] > maxima[g] ? u[i + g] : maxima[g];
    }
  }
  for (std::int64_t g = 0; i + g < n; ++g) maxima[g] = std::max(maxima[g], u[i + g]);
}

std::vector<double> column_sums(const float* x, std::int64_t rows, std::int64_t n) {
  const std::int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  std::vector<double> parts(size(blocks * n));
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < blocks; ++b) {
    double* part = parts.data() + b * n;
    for (std::int64_t r = b * kRowBlock; r < std::min(rows, (b + 1) * kRowBlock); ++r) {
      for (std::int64_t i = 0; i < n; ++i) part[i] += x[r * n + i];
    }
  }
  std::vector<double> sums(size(n));
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (std::int64_t i = 0; i < n; ++i) sums[size(i)] += parts[size(b * n + i)];
  }
  return sums;
}

void transpose(const float* x, std::int64_t ld, std::int64_t rows, std::int64_t n, float* out) {
  constexpr std::int64_t kTile = 32;
  const std::int64_t bands = (n + kTile - 1) / kTile;
#pragma omp parallel for schedule(static)
  for (std::int64_t band = 0; band < bands; ++band) {
    const std::int64_t i0 = band * kTile, i1 = std::min(n, i0 + kTile);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
      const std::int64_t r1 = std::min(rows, r0 + kTile);
      for (std::int64_t i = i0; i < i1; ++i) {
        for (std::int64_t r = r0; r < r1; ++r) out[i * rows + r] = x[r * ld + i];
      }
    }
  }
}

void AdamStep::apply(const float* gradient, std::int64_t n, float* value, float* mean,
                     float* square) const {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gradient[i];
    const float m = mean[i] + toward1 * (g - mean[i]);
    const float s = beta2 * square[i] + toward2 * (g * g);
    mean[i] = m;
    square[i] = s;
    value[i] -= rate * (m / (std::sqrt(s) / root_correction + epsilon));
  }
}

}  // namespace lamina::training
