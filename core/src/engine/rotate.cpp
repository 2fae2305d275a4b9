#include <omp.h>

#include <algorithm>
#include <cmath>

#include "engine/kernels.h"

namespace lamina::kernels {
namespace {

// One pair turned. The first product is rounded, the second is not: fixed here, so that no compiler
// decides it.
struct Pair {
  float a, b;
};
inline Pair turn(float a, float b, float cos, float sin) {
  return {std::fma(a, cos, -(b * sin)), std::fma(b, cos, a * sin)};
}

void rotate_head(RopeStyle style, const float* x, std::int64_t d_head, std::int64_t rotary,
                 const float* cos, const float* sin, float* y) {
  const std::int64_t half = rotary / 2;
  if (style == RopeStyle::half) {
    for (std::int64_t i = 0; i < half; ++i) {
      const Pair p = turn(x[i], x[i + half], cos[i], sin[i]);
      y[i] = p.a;
      y[i + half] = p.b;
    }
  } else {
    for (std::int64_t i = 0; i < half; ++i) {
      const Pair p = turn(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
      y[2 * i] = p.a;
      y[2 * i + 1] = p.b;
    }
  }
  if (y != x) std::copy(x + rotary, x + d_head, y + rotary);
}

}  // namespace

void rotate(RopeStyle style, const float* x, std::int64_t rows, std::int64_t heads,
            std::int64_t d_head, std::int64_t rotary, const float* cos, const float* sin,
            const std::int32_t* positions, float* y) {
  const std::int64_t half = rotary / 2;
#pragma omp parallel for if (rows * heads * d_head > 40'000 && !omp_in_parallel())
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* c = cos + positions[r] * half;
    const float* s = sin + positions[r] * half;
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t at = (r * heads + h) * d_head;
      rotate_head(style, x + at, d_head, rotary, c, s, y + at);
    }
  }
}

}  // namespace lamina::kernels
