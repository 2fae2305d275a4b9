#pragma once

// The one place where matrix products are computed: rows × 32 columns of c = a·b, each element one
// chain of fused multiply-adds over the inner index in increasing order. How many rows share a call
// decides the speed, never a value.

#include "engine/simd/table.h"
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
void tile_columns(const TileArgs& t, int column) {
  const float* a = t.a;
  const float* b = t.b + column;
  float* c = t.c + column;
  const std::int64_t ldb = t.ldb, ldc = t.ldc;
  F acc[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vectors; ++j) acc[r][j] = set1(0.0f);
  }
  if (t.accumulate) {
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < vectors; ++j) acc[r][j] = load(c + r * ldc + 16 * j);
    }
  }
  const float* ahead = t.ahead + column;
  std::int64_t left = t.k;
  for (; left >= 16; left -= 16) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < vectors; ++j) __builtin_prefetch(ahead + 16 * j);
      step<rows, vectors>(a + i, b, acc);
      b += ldb;
      ahead += t.ahead_step;
    }
    a += 16 * rows;
  }
  for (int i = 0; i < left; ++i) {
    step<rows, vectors>(a + i, b, acc);
    b += ldb;
  }
  if (t.bias != nullptr) {
    const float* bias = t.bias + column;
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < vectors; ++j) acc[r][j] = add(acc[r][j], load(bias + 16 * j));
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vectors; ++j) store(c + r * ldc + 16 * j, acc[r][j]);
  }
}

template <int rows>
void tile_rows(const TileArgs& t) {
  for (int column = 0; column < 32; column += 16 * kTileVectors) {
    tile_columns<rows, kTileVectors>(t, column);
  }
}

using TileRows = void (*)(const TileArgs&);
template <int n, int... r>
struct TileSizes : TileSizes<n - 1, n, r...> {};
template <int... r>
struct TileSizes<0, r...> {
  static constexpr TileRows functions[] = {&tile_rows<r>...};  // by rows − 1
};

void tile(int rows, const TileArgs& t) {
  TileSizes<kTileRows>::functions[rows - 1](t);
}

}  // namespace lamina::kernels::LAMINA_SIMD_NS
