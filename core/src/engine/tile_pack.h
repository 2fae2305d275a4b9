#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace lamina::kernels {

/// Puts row r of a tile of `rows` into the order KernelTable::tile wants: groups of 16 inner
/// indices, row by row within a group. `out` has room for rows × (k rounded up to 16).
inline void pack_tile_row(const float* x, std::int64_t k, int rows, int r, float* out) {
  out += 16 * r;
  std::int64_t i = 0;
  for (; i + 16 <= k; i += 16, out += 16 * rows) std::memcpy(out, x + i, 16 * sizeof(float));
  if (i < k) std::memcpy(out, x + i, static_cast<std::size_t>(k - i) * sizeof(float));
}

/// Transposes rows of `in` [count, k] with row stride `stride` into columns of out [k, 32], from
/// the column `out` points at on. Moves numbers only, so how it is done cannot be seen in the
/// results.
inline void transpose_to_panel(const float* in, std::int64_t stride, std::int64_t count,
                               std::int64_t k, float* out) {
  constexpr std::int64_t kPanel = 32;
  std::int64_t r = 0;
#if defined(__SSE__)
  for (; r + 4 <= count; r += 4) {
    const float* p = in + r * stride;
    std::int64_t i = 0;
    for (; i + 4 <= k; i += 4) {
      __m128 a = _mm_loadu_ps(p + i), b = _mm_loadu_ps(p + stride + i);
      __m128 c = _mm_loadu_ps(p + 2 * stride + i), d = _mm_loadu_ps(p + 3 * stride + i);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      _mm_storeu_ps(out + i * kPanel + r, a);
      _mm_storeu_ps(out + (i + 1) * kPanel + r, b);
      _mm_storeu_ps(out + (i + 2) * kPanel + r, c);
      _mm_storeu_ps(out + (i + 3) * kPanel + r, d);
    }
    for (; i < k; ++i) {
      for (std::int64_t j = 0; j < 4; ++j) out[i * kPanel + r + j] = p[j * stride + i];
    }
  }
#endif
  for (; r < count; ++r) {
    for (std::int64_t i = 0; i < k; ++i) out[i * kPanel + r] = in[r * stride + i];
  }
}

inline std::int64_t round_up(std::int64_t x, std::int64_t to) {
  return (x + to - 1) / to * to;
}

}  // namespace lamina::kernels
