#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "lamina/core/error.h"

namespace lamina::kernels {

using Floats = std::vector<float>;

inline Floats random_floats(std::size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Floats out(n);
  for (float& x : out) x = normal(generator);
  return out;
}

/// The instruction sets this processor has; the generic one is always among them.
inline std::vector<std::string> isas() {
  std::vector<std::string> out;
  for (const char* name : {"generic", "avx2", "avx512"}) {
    try {
      select_isa(name);
      out.push_back(name);
    } catch (const UsageError&) {
    }
  }
  select_isa("");
  return out;
}

/// Bit for bit, but any NaN equals any NaN: processors are free to choose the payload.
inline bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

inline ::testing::AssertionResult same_bits(const Floats& a, const Floats& b) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << "sizes " << a.size() << " and " << b.size();
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) {
      return ::testing::AssertionFailure() << "at " << i << " of " << a.size() << ": "
                                           << std::hexfloat << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// Runs `compute` (→ Floats) with every instruction set and with one and two threads and expects
/// the same bits each time; returns them.
template <class Compute>
Floats everywhere_the_same(Compute compute) {
  Floats first;
  const int threads_before = omp_get_max_threads();
  for (const std::string& name : isas()) {
    for (int threads : {1, 2, 3}) {
      select_isa(name.c_str());
      omp_set_num_threads(threads);
      const Floats result = compute();
      if (first.empty()) {
        first = result;
      } else {
        EXPECT_TRUE(same_bits(first, result)) << name << ", " << threads << " threads";
      }
    }
  }
  select_isa("");
  omp_set_num_threads(threads_before);
  return first;
}

/// Distance in units in the last place of the float nearest `exact`.
inline double ulps(float value, double exact) {
  const auto nearest = static_cast<float>(exact);
  if (std::isinf(nearest) || std::isnan(nearest)) return same_bits(value, nearest) ? 0 : 1e30;
  if (std::isnan(value) || std::isinf(value)) return 1e30;
  const float size = std::max(std::fabs(nearest), 0x1p-126f);
  const double unit = std::ldexp(1.0, std::ilogb(size) - 23);
  return std::fabs(static_cast<double>(value) - exact) / unit;
}

}  // namespace lamina::kernels
