#pragma once

#include <cstdint>
#include <cstring>

namespace lamina::kernels {

/// Puts row r of a tile of `rows` into the order KernelTable::tile wants: groups of 16 inner
/// indices, row by row within a group. `out` has room for rows × (k rounded up to 16).
inline void pack_tile_row(const float* x, std::int64_t k, int rows, int r, float* out) {
  out += 16 * r;
  std::int64_t i = 0;
  for (; i + 16 <= k; i += 16, out += 16 * rows) std::memcpy(out, x + i, 16 * sizeof(float));
  if (i < k) std::memcpy(out, x + i, static_cast<std::size_t>(k - i) * sizeof(float));
}

inline std::int64_t round_up(std::int64_t x, std::int64_t to) {
  return (x + to - 1) / to * to;
}

}  // namespace lamina::kernels
