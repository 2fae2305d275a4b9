#include <omp.h>

#include <cmath>

#include "engine/kernels.h"
#include "engine/simd/table.h"

namespace lamina::kernels {
namespace {

constexpr std::int64_t kForkFloats = 40'000;  // less work than this is not worth a fork

bool fork(std::int64_t rows, std::int64_t d) {
  return rows * d > kForkFloats && !omp_in_parallel();
}

float row_mean(NormKind kind, const float* x, std::int64_t d) {
  if (kind != NormKind::layer) return 0.0f;
  return static_cast<float>(table().sum(x, d) / static_cast<double>(d));
}

}  // namespace

void norm_scale(NormKind kind, double eps, const float* x, std::int64_t ldx, std::int64_t rows,
                std::int64_t d, float* scale) {
  const KernelTable& t = table();
#pragma omp parallel for if (fork(rows, d))
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * ldx;
    const double squares = t.sum_squares(row, d, row_mean(kind, row, d));
    scale[r] = static_cast<float>(std::sqrt(squares / static_cast<double>(d) + eps));
  }
}

void norm_normalize(NormKind kind, const float* x, std::int64_t ldx, const float* scale,
                    std::int64_t rows, std::int64_t d, float* normalized, std::int64_t ldn) {
  const KernelTable& t = table();
#pragma omp parallel for if (fork(rows, d))
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * ldx;
    t.normalize(row, d, row_mean(kind, row, d), scale[r], normalized + r * ldn);
  }
}

void norm_affine(const float* normalized, std::int64_t ldn, std::int64_t rows, std::int64_t d,
                 const float* weight, float offset, const float* bias, float* y, std::int64_t ldy) {
#pragma omp parallel for if (fork(rows, d))
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* in = normalized + r * ldn;
    float* out = y + r * ldy;
    if (bias == nullptr) {
      for (std::int64_t i = 0; i < d; ++i) out[i] = in[i] * (offset + weight[i]);
    } else {
      for (std::int64_t i = 0; i < d; ++i) out[i] = in[i] * (offset + weight[i]) + bias[i];
    }
  }
}

}  // namespace lamina::kernels
