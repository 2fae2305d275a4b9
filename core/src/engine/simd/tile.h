#pragma once

// The one place where matrix products are computed: rows × 32 columns of c = a·b, each element one
// chain of fused multiply-adds over the inner index in increasing order. How many rows share a call
// decides the speed, never a value.

#include "engine/simd/vec.h"

namespace lamina::kernels::LAMINA_SIMD_NS {

#if LAMINA_SIMD_WIDTH == 512
inline constexpr int kTileRows = 14;  // 28 accumulators, 2 columns of b, 1 value of a
inline constexpr int kTileVectors = 2;
#elif LAMINA_SIMD_WIDTH == 256
inline constexpr int kTileRows = 6;  // 12 accumulators of 8 floats
inline constexpr int kTileVectors = 1;
#else
inline constexpr int kTileRows = 4;
inline constexpr int kTileVectors = 1;
#endif

template <int rows, int vectors>
inline void step(const float* a, const float* b, F (&acc)[rows][vectors]) {
  F column[vectors];
  for (int j = 0; j < vectors; ++j) column[j] = load(b + 16 * j);
  for (int r = 0; r < rows; ++r) {
    const F value = set1(a[16 * r]);
    for (int j = 0; j < vectors; ++j) acc[r][j] = fma(value, column[j], acc[r][j]);
  }
}

template <int rows, int vectors>
void tile_columns(const float* a, const float* b, std::int64_t ldb, std::int64_t k, float* c,
                  std::int64_t ldc, const float* bias, bool accumulate) {
  F acc[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vectors; ++j) acc[r][j] = set1(0.0f);
  }
  if (accumulate) {
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < vectors; ++j) acc[r][j] = load(c + r * ldc + 16 * j);
    }
  }
  constexpr int kAhead = 32;  // steps of b fetched in advance
  std::int64_t left = k;
  for (; left >= 16; left -= 16) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < vectors; ++j) __builtin_prefetch(b + kAhead * ldb + 16 * j);
      step<rows, vectors>(a + i, b, acc);
      b += ldb;
    }
    a += 16 * rows;
  }
  for (int i = 0; i < left; ++i) {
    step<rows, vectors>(a + i, b, acc);
    b += ldb;
  }
  if (bias != nullptr) {
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < vectors; ++j) acc[r][j] = add(acc[r][j], load(bias + 16 * j));
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vectors; ++j) store(c + r * ldc + 16 * j, acc[r][j]);
  }
}

template <int rows>
void tile_rows(const float* a, const float* b, std::int64_t ldb, std::int64_t k, float* c,
               std::int64_t ldc, const float* bias, bool accumulate) {
  for (int j = 0; j < 2; j += kTileVectors) {
    tile_columns<rows, kTileVectors>(a, b + 16 * j, ldb, k, c + 16 * j, ldc,
                                     bias == nullptr ? nullptr : bias + 16 * j, accumulate);
  }
}

using TileRows = void (*)(const float*, const float*, std::int64_t, std::int64_t, float*,
                          std::int64_t, const float*, bool);
template <int n, int... r>
struct TileSizes : TileSizes<n - 1, n, r...> {};
template <int... r>
struct TileSizes<0, r...> {
  static constexpr TileRows functions[] = {&tile_rows<r>...};  // by rows − 1
};

void tile(int rows, const float* a, const float* b, std::int64_t ldb, std::int64_t k, float* c,
          std::int64_t ldc, const float* bias, bool accumulate) {
  TileSizes<kTileRows>::functions[rows - 1](a, b, ldb, k, c, ldc, bias, accumulate);
}

}  // namespace lamina::kernels::LAMINA_SIMD_NS
