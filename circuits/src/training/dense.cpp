// The passes of batches that activate many features, as at the start of training with ReLU: dense
// products on the engine's kernels.

#include <algorithm>
#include <cmath>

#include "impl.h"

namespace lamina {

using training::size;

namespace {

constexpr std::int64_t kSlice = 512;  // features whose gradients are held at a time

}  // namespace

void TranscoderTrainer::Impl::forward_dense(const Batch& b) {
  training::Workspace& w = *work;
  const std::int64_t d = config.d_out, f = config.features;
  const bool jump = config.activation == FeatureActivation::jump_relu;
  float* z = w.u.data();
  if (jump) {  // u is needed again
    w.z.resize(w.u.size());
    z = w.z.data();
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < b.rows; ++r) {
    double sum = 0;
    std::int64_t active = 0;
    for (std::int64_t j = 0; j < f; ++j) {
      const float u = w.u[size(r * f + j)];
      const float value = u > (jump ? b.threshold[size(j)] : 0.0F) ? u : 0.0F;
      z[r * f + j] = value;
      if (value == 0) continue;
      ++active;
      if (options.penalty != SparsityPenalty::none) sum += penalty(value);
    }
    w.penalty[size(r)] = sum;
    w.active[size(r)] = active;
  }
  std::vector<float> decoder_t(size(d * f));
  training::transpose(decoder.value.data(), d, f, d, decoder_t.data());
  internal::Operand features(d, f);
  features.set(decoder_t.data(), d);
  std::vector<float> sums(size(b.rows * d));
  internal::product(z, f, b.rows, features, sums.data(), d);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < b.rows; ++r) {
    for (std::int64_t i = 0; i < d; ++i) w.rebuilt[size(r * d + i)] += sums[size(r * d + i)];
    finish_row(b, r);
  }
}

void TranscoderTrainer::Impl::update_dense(const Batch& b, const training::AdamStep& adam,
                                           std::vector<double>& bias_slope) {
  training::Workspace& w = *work;
  const std::int64_t d_in = config.d_in, d = config.d_out, f = config.features, n = b.rows;
  const bool jump = config.activation == FeatureActivation::jump_relu;
  const auto width = static_cast<float>(options.bandwidth);
  const double count_slope =
      options.penalty == SparsityPenalty::l0 ? b.lambda / static_cast<double>(n) : 0;
  const float constant_slope = penalty_slope(0.0F, b);  // of all penalties but tanh
  const bool varies = options.penalty == SparsityPenalty::tanh;

  const auto operand_of_columns = [n](const float* x, std::int64_t columns) {
    std::vector<float> x_t(size(columns * n));
    training::transpose(x, columns, n, columns, x_t.data());
    internal::Operand operand(columns, n);
    operand.set(x_t.data(), columns);
    return operand;
  };
  const internal::Operand slopes = operand_of_columns(w.slope.data(), d);
  const internal::Operand inputs = operand_of_columns(b.xc, d_in);
  std::vector<float> by_z(size(n * kSlice)), z_t(size(n * kSlice)), slope_t(size(n * kSlice));
  std::vector<float> encoder_slope(size(kSlice * d_in)), decoder_slope(size(kSlice * d));
  std::vector<DenseGradient> gradients(size(kSlice));
  for (std::int64_t first = 0; first < f; first += kSlice) {
    const std::int64_t count = std::min(kSlice, f - first);
    internal::Operand rows(count, d);
    rows.set(decoder.value.data() + first * d, count);
    internal::product(w.slope.data(), d, n, rows, by_z.data(), count);
    training::transpose(by_z.data(), count, n, count, slope_t.data());
    training::transpose(w.u.data() + first, f, n, count, z_t.data());
#pragma omp parallel for schedule(static)
    for (std::int64_t j = 0; j < count; ++j) {
      const float limit = jump ? b.threshold[size(first + j)] : 0.0F;
      float *z = z_t.data() + j * n, *slope = slope_t.data() + j * n;
      double bias = 0, by_limit = 0;
      bool active = false;
      for (std::int64_t r = 0; r < n; ++r) {
        const float u = z[r];
        z[r] = u > limit ? u : 0.0F;
        const float all = slope[r] + (varies ? penalty_slope(z[r], b) : constant_slope);
        if (jump) {
          const float distance = (u - limit) / width;
          if (distance > -0.5F && distance < 0.5F) {
            by_limit -= (double{limit} * all + count_slope) / width;
          }
        }
        slope[r] = u > limit ? all : 0.0F;
        bias += slope[r];
        active = active || u > limit;
      }
      gradients[size(j)] = {encoder_slope.data() + j * d_in, decoder_slope.data() + j * d,
                            static_cast<float>(bias), static_cast<float>(by_limit)};
      if (active) last_active[size(first + j)] = static_cast<float>(steps + 1);
    }
    internal::product(z_t.data(), n, count, slopes, decoder_slope.data(), d);
    internal::product(slope_t.data(), n, count, inputs, encoder_slope.data(), d_in);

    constexpr std::int64_t kBlock = 64;
    const std::int64_t blocks = (count + kBlock - 1) / kBlock;
    std::vector<float> parts(bias_slope.empty() ? 0 : size(blocks * d_in));
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < blocks; ++i) {
      update_features(b, adam, first + i * kBlock, first + std::min(count, (i + 1) * kBlock),
                      gradients.data() + i * kBlock,
                      parts.empty() ? nullptr : parts.data() + i * d_in);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) bias_slope[i % size(d_in)] += parts[i];
  }
}

}  // namespace lamina
