#include <omp.h>

#include <algorithm>

#include "engine/kernels.h"
#include "engine/simd/table.h"

namespace lamina::kernels {
namespace {

constexpr std::int64_t kPiece = 4096;  // a multiple of 16, so pieces do not move lanes

/// f(first, count) over pieces of n values, in parallel.
template <class Function>
void pieces(std::int64_t n, Function f) {
  const std::int64_t count = (n + kPiece - 1) / kPiece;
#pragma omp parallel for if (count > 4 && !omp_in_parallel())
  for (std::int64_t i = 0; i < count; ++i) f(i * kPiece, std::min(kPiece, n - i * kPiece));
}

}  // namespace

void activate(Activation act, const float* x, std::int64_t rows, std::int64_t d, float* y) {
  const KernelTable& t = table();
  if (act == Activation::solu || act == Activation::solu_ln) {
#pragma omp parallel for if (rows * d > kPiece && !omp_in_parallel())
    for (std::int64_t r = 0; r < rows; ++r) t.activate(act, x + r * d, d, y + r * d);
    return;
  }
  pieces(rows * d, [&](std::int64_t first, std::int64_t count) {
    t.activate(act, x + first, count, y + first);
  });
}

void activate_gated(Activation act, const float* gate, const float* up, std::int64_t rows,
                    std::int64_t d, float* y) {
  const KernelTable& t = table();
  if (act == Activation::solu || act == Activation::solu_ln) {
    activate(act, gate, rows, d, y);  // no known model gates so; y may be gate, not up
    pieces(rows * d, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t i = first; i < first + count; ++i) y[i] *= up[i];
    });
    return;
  }
  pieces(rows * d, [&](std::int64_t first, std::int64_t count) {
    t.activate_gated(act, gate + first, up + first, count, y + first);
  });
}

void add(float* x, const float* y, std::int64_t n) {
  pieces(n, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t i = first; i < first + count; ++i) x[i] += y[i];
  });
}

void softcap(float* x, std::int64_t n, float cap) {
  const KernelTable& t = table();
  pieces(n, [&](std::int64_t first, std::int64_t count) { t.softcap(x + first, count, cap); });
}

void exp_inplace(float* x, std::int64_t n) {
  const KernelTable& t = table();
  pieces(n, [&](std::int64_t first, std::int64_t count) { t.exp(x + first, count); });
}

}  // namespace lamina::kernels
