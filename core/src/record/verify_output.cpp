#include "record/verify_output.h"

#include <cmath>

namespace lamina::record {
namespace {

// Relative error bound of an fp32 dot product of n terms, however it is summed.
double product_rounding(std::int64_t n) {
  return static_cast<double>(n + 2) * 0x1p-24;
}

}  // namespace

Expected OutputCheck::from_z(std::int32_t layer, std::span<const float> z) const {
  Expected expected = projected(layer, z);
  finish(layer, expected);
  return expected;
}

Expected OutputCheck::projected(std::int32_t layer, std::span<const float> z) const {
  const LayerWeights& w = weights.layers[static_cast<std::size_t>(layer)];
  const std::int64_t n = config.d_attn(), d = config.d_model;
  const auto tokens = static_cast<std::int64_t>(z.size()) / n;
  Expected expected{std::vector<double>(static_cast<std::size_t>(tokens * d)),
                    std::vector<double>(static_cast<std::size_t>(tokens * d))};
  const double relative = rounding + product_rounding(n);
#pragma omp parallel
  {
    std::vector<float> row(static_cast<std::size_t>(n));
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < d; ++i) {
      w.o.weight.copy_row(i, row.data());
      for (std::int64_t t = 0; t < tokens; ++t) {
        const float* in = z.data() + t * n;
        double total = 0, magnitude = 0, weight = 0;
        for (std::int64_t k = 0; k < n; ++k) {
          const double term = static_cast<double>(row[static_cast<std::size_t>(k)]) * in[k];
          total += term;
          magnitude += std::abs(term);
          weight += std::abs(row[static_cast<std::size_t>(k)]);
        }
        const auto at = static_cast<std::size_t>(t * d + i);
        expected.value[at] = total;
        expected.allowed[at] = magnitude * relative + weight * floor;
      }
    }
  }
  return expected;
}

Expected OutputCheck::from_results(std::int32_t layer, std::span<const float> result,
                                   std::span<const float> z) const {
  const std::int64_t heads = config.n_heads, d = config.d_model;
  // The forward pass never forms the sum over heads: it multiplies all heads at once. Both round
  // their products, by no more than this.
  Expected expected = projected(layer, z);
  for (std::size_t at = 0; at < expected.value.size(); ++at) {
    const auto token = static_cast<std::int64_t>(at) / d, i = static_cast<std::int64_t>(at) % d;
    double total = 0, magnitude = 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      const double term = result[static_cast<std::size_t>((token * heads + h) * d + i)];
      total += term;
      magnitude += std::abs(term);
    }
    expected.value[at] = total;
    expected.allowed[at] =
        2 * expected.allowed[at] + magnitude * rounding + static_cast<double>(heads) * floor;
  }
  finish(layer, expected);
  return expected;
}

// Bias, and the norm that stands on a sublayer's output in sandwich models.
void OutputCheck::finish(std::int32_t layer, Expected& expected) const {
  const LayerWeights& w = weights.layers[static_cast<std::size_t>(layer)];
  const auto d = static_cast<std::size_t>(config.d_model);
  const bool normed = config.norm != NormKind::none && config.norm_place == NormPlace::sandwich;
  for (std::size_t first = 0; first < expected.value.size(); first += d) {
    double* value = expected.value.data() + first;
    double* allowed = expected.allowed.data() + first;
    double mean = 0, squares = 0, slack = 0;
    for (std::size_t i = 0; i < d; ++i) {
      if (!w.o.bias.empty()) {
        value[i] += w.o.bias[i];
        allowed[i] += std::abs(w.o.bias[i]) * 0x1p-23;
      }
      allowed[i] += std::abs(value[i]) * 0x1p-23;
      mean += value[i];
    }
    if (!normed) continue;
    mean = config.norm == NormKind::layer ? mean / static_cast<double>(d) : 0.0;
    for (std::size_t i = 0; i < d; ++i) {
      value[i] -= mean;
      squares += value[i] * value[i];
      slack += allowed[i] * allowed[i];
    }
    const double scale = std::sqrt(squares / static_cast<double>(d) + config.norm_eps);
    // How far the scale itself, and the mean, may be off.
    const double scale_slack = std::sqrt(slack / static_cast<double>(d)) / scale;
    for (std::size_t i = 0; i < d; ++i) {
      const double factor =
          w.ln1_post.weight.empty() ? 1.0 : config.norm_offset + w.ln1_post.weight[i];
      const double bias = w.ln1_post.bias.empty() ? 0.0 : w.ln1_post.bias[i];
      const double normalized = value[i] / scale;
      value[i] = normalized * factor + bias;
      allowed[i] =
          std::abs(factor) * (allowed[i] / scale + scale_slack * (std::abs(normalized) + 1)) +
          (std::abs(normalized * factor) + std::abs(bias)) * 0x1p-20;
    }
  }
}

}  // namespace lamina::record
