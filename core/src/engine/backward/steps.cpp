#include "engine/backward/steps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "engine/kernels.h"

namespace lamina::backward {

double dot(const float* a, const float* b, std::int64_t n) {
  std::array<double, 8> lanes{};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) {
      lanes[j] += static_cast<double>(a[i + static_cast<std::int64_t>(j)]) *
                  static_cast<double>(b[i + static_cast<std::int64_t>(j)]);
    }
  }
  for (std::size_t j = 0; i < n; ++i, ++j) {
    lanes[j] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

namespace {

double sum(const float* a, std::int64_t n) {
  std::array<double, 8> lanes{};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) lanes[j] += a[i + static_cast<std::int64_t>(j)];
  }
  for (std::size_t j = 0; i < n; ++i, ++j) lanes[j] += a[i];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

constexpr std::int64_t kFork = 40'000;  // values below which a fork costs more than it saves

}  // namespace

namespace {

// What the denominator divided, over it: ∂/∂scale and ∂scale/∂x are along this.
const std::vector<float>& computed(const Tape::Impl::Norm& kept) {
  return kept.computed.empty() ? kept.normalized : kept.computed;
}

}  // namespace

void scale_gradient(const Tape::Impl::Norm& kept, const float* gradient, std::int64_t rows,
                    std::int64_t d, float* out) {
#pragma omp parallel for if (rows * d > kFork)
  for (std::int64_t r = 0; r < rows; ++r) {
    const double all = dot(gradient + r * d, computed(kept).data() + r * d, d);
    out[r] = static_cast<float>(-all / kept.scale[static_cast<std::size_t>(r)]);
  }
}

void norm_input(NormKind kind, const Tape::Impl::Norm& kept, const float* gradient,
                const float* at_scale, std::int64_t rows, std::int64_t d, float* out) {
#pragma omp parallel for if (rows * d > kFork)
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* g = gradient + r * d;
    const float* n = computed(kept).data() + r * d;
    float* to = out + r * d;
    const double width = static_cast<double>(d);
    const auto mean = kind == NormKind::layer ? static_cast<float>(sum(g, d) / width) : 0.0f;
    const float scale = kept.scale[static_cast<std::size_t>(r)];
    // ∂scale/∂x_i = (x_i − mean)/(d·scale), for either norm; a hook may have written another scale.
    float pull = at_scale == nullptr ? 0.0f : static_cast<float>(at_scale[r] / width);
    if (!kept.computed_scale.empty())
      pull *= scale / kept.computed_scale[static_cast<std::size_t>(r)];
    for (std::int64_t i = 0; i < d; ++i) to[i] = (g[i] - mean) / scale + pull * n[i];
  }
}

void norm_weight(float* gradient, std::int64_t rows, std::int64_t d, const float* weight,
                 float offset) {
#pragma omp parallel for if (rows * d > kFork)
  for (std::int64_t r = 0; r < rows; ++r) {
    float* g = gradient + r * d;
    for (std::int64_t i = 0; i < d; ++i) g[i] *= offset + weight[i];
  }
}

namespace {

// act(x)/x, and what it tends to at 0. The activations but ReLU are x·s(x) with a smooth s.
void ratio(Activation act, const float* x, std::int64_t n, float* out) {
  kernels::activate(act, x, 1, n, out);
  const float at_zero = act == Activation::relu ? 0.0f : 0.5f;
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] == 0.0f ? at_zero : out[i] / x[i];
}

void ratio_factor(Activation act, const float* x, std::int64_t n, double stabiliser,
                  float* factor) {
  const auto shift = static_cast<float>(stabiliser);
  kernels::activate(act, x, 1, n, factor);
  for (std::int64_t i = 0; i < n; ++i) factor[i] /= x[i] + (x[i] < 0.0f ? -shift : shift);
}

void derivative(Activation act, const float* x, std::int64_t n, float* factor) {
  if (act == Activation::relu) {
    for (std::int64_t i = 0; i < n; ++i) factor[i] = x[i] > 0.0f ? 1.0f : 0.0f;
    return;
  }
  ratio(act, x, n, factor);  // s(x); the derivative is s + x·s′
  switch (act) {
    case Activation::silu:
    case Activation::quick_gelu: {
      const float slope = act == Activation::silu ? 1.0f : 1.702f;
      for (std::int64_t i = 0; i < n; ++i) {
        const float s = factor[i];
        factor[i] = s + slope * x[i] * s * (1.0f - s);
      }
      return;
    }
    case Activation::gelu_tanh: {
      // s = sigmoid(2u), u = √(2/π)·(x + 0.044715 x³)
      const float root = std::sqrt(2.0f / std::numbers::pi_v<float>);
      for (std::int64_t i = 0; i < n; ++i) {
        const float s = factor[i];
        const float inner = 2.0f * root * (1.0f + 3.0f * 0.044715f * x[i] * x[i]);
        factor[i] = s + x[i] * s * (1.0f - s) * inner;
      }
      return;
    }
    case Activation::gelu: {
      std::vector<float> density(static_cast<std::size_t>(n));
      for (std::int64_t i = 0; i < n; ++i) {
        density[static_cast<std::size_t>(i)] = -0.5f * x[i] * x[i];
      }
      kernels::exp_inplace(density.data(), n);
      const float norm = 1.0f / std::sqrt(2.0f * std::numbers::pi_v<float>);
      for (std::int64_t i = 0; i < n; ++i) {
        factor[i] += x[i] * density[static_cast<std::size_t>(i)] * norm;
      }
      return;
    }
    default:
      return;
  }
}

}  // namespace

void activation_factor(Activation act, const float* x, std::int64_t n, const BackwardRules& rules,
                       float* factor) {
  constexpr std::int64_t kPiece = 4096;
  const std::int64_t pieces = (n + kPiece - 1) / kPiece;
#pragma omp parallel for if (n > kFork)
  for (std::int64_t p = 0; p < pieces; ++p) {
    const std::int64_t first = p * kPiece, count = std::min(kPiece, n - first);
    if (rules.activation_ratio && act != Activation::relu) {
      ratio_factor(act, x + first, count, rules.stabiliser, factor + first);
    } else {
      derivative(act, x + first, count, factor + first);
    }
  }
}

void solu_input(const float* x, std::int64_t rows, std::int64_t d, const BackwardRules& rules,
                float* gradient) {
#pragma omp parallel for if (rows * d > kFork)
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * d;
    float* g = gradient + r * d;
    const float most = *std::max_element(row, row + d);
    std::vector<double> p(static_cast<std::size_t>(d));
    double total = 0.0, mixed = 0.0;
    for (std::int64_t i = 0; i < d; ++i) {
      p[static_cast<std::size_t>(i)] = std::exp(static_cast<double>(row[i]) - most);
      total += p[static_cast<std::size_t>(i)];
    }
    for (std::int64_t i = 0; i < d; ++i) {
      double& share = p[static_cast<std::size_t>(i)];
      share /= total;
      mixed += static_cast<double>(g[i]) * row[i] * share;
    }
    if (rules.activation_ratio) mixed = 0.0;
    for (std::int64_t i = 0; i < d; ++i) {
      const double share = p[static_cast<std::size_t>(i)];
      const double own = rules.activation_ratio ? 0.0 : static_cast<double>(g[i]) * row[i];
      g[i] = static_cast<float>(share * (g[i] + own - mixed));
    }
  }
}

}  // namespace lamina::backward
