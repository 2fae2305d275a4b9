#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace math {

double log_sum_exp(std::span<const float> x) {
  const auto n = static_cast<std::int64_t>(x.size());
  float maximum = 0;
  const double sum = kernels::table().sum_exp(x.data(), n, &maximum);
  if (std::isinf(maximum)) {
    // All −∞ (or nothing): log 0. Some +∞: +∞. Unless there is a NaN, which the sum cannot tell.
    for (float v : x) {
      if (std::isnan(v)) return std::numeric_limits<double>::quiet_NaN();
    }
    return maximum;
  }
  return static_cast<double>(maximum) + std::log(sum);
}

double entropy(std::span<const float> logits, double log_sum) {
  return kernels::table().entropy(logits.data(), static_cast<std::int64_t>(logits.size()), log_sum);
}

double kl_divergence(std::span<const float> p, double log_sum_p, std::span<const float> q,
                     double log_sum_q) {
  if (p.size() != q.size()) {
    fail("kl_divergence: {} logits against {}", p.size(), q.size());
  }
  return kernels::table().kl(p.data(), log_sum_p, q.data(), log_sum_q,
                             static_cast<std::int64_t>(p.size()));
}

void top_k(std::span<const float> x, std::span<std::int32_t> ids, std::span<float> values) {
  if (ids.size() != values.size() || ids.size() > x.size()) {
    fail("top_k: {} ids and {} values of {} numbers", ids.size(), values.size(), x.size());
  }
  kernels::top_k(x.data(), static_cast<std::int64_t>(x.size()),
                 static_cast<std::int64_t>(ids.size()), ids.data(), values.data());
}

}  // namespace math

namespace kernels {

void log_sum_exp(const float* x, std::int64_t ld, std::int64_t rows, std::int64_t n, float* out) {
  table();  // may throw the first time: not inside the parallel region
#pragma omp parallel for if (rows > 1 && rows * n > 20'000 && !omp_in_parallel())
  for (std::int64_t r = 0; r < rows; ++r) {
    out[r] = static_cast<float>(math::log_sum_exp({x + r * ld, static_cast<std::size_t>(n)}));
  }
}

void top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values) {
  if (k <= 0) return;
  // NaN stands below −∞: comparisons below are written so that it never moves up.
  const auto before = [&](std::int32_t a, std::int32_t b) {
    if (std::isnan(x[a]) || std::isnan(x[b])) {
      return std::isnan(x[a]) == std::isnan(x[b]) ? a < b : std::isnan(x[b]);
    }
    return x[a] > x[b] || (x[a] == x[b] && a < b);
  };
  // A heap with the worst of the kept ids on top.
  for (std::int64_t i = 0; i < k; ++i) ids[i] = static_cast<std::int32_t>(i);
  std::make_heap(ids, ids + k, before);
  const auto offer = [&](std::int64_t i) {
    const auto id = static_cast<std::int32_t>(i);
    if (!before(id, ids[0])) return;
    std::pop_heap(ids, ids + k, before);
    ids[k - 1] = id;
    std::push_heap(ids, ids + k, before);
  };
  constexpr std::int64_t kBlock = 64;
  std::int64_t i = k;
  for (; i + kBlock <= n; i += kBlock) {
    // Most blocks hold nothing of interest; the test is one vector comparison per few values.
    const float worst = x[ids[0]];
    int some = std::isnan(worst) ? 1 : 0;
    for (std::int64_t j = 0; j < kBlock; ++j) some |= x[i + j] > worst ? 1 : 0;
    if (some == 0) continue;
    for (std::int64_t j = 0; j < kBlock; ++j) offer(i + j);
  }
  for (; i < n; ++i) offer(i);
  std::sort_heap(ids, ids + k, before);
  for (std::int64_t j = 0; j < k; ++j) values[j] = x[ids[j]];
}

}  // namespace kernels
}  // namespace lamina
