// The passes that visit active features only.

#include <algorithm>
#include <cmath>

#include "impl.h"

namespace lamina {

using training::size;

void TranscoderTrainer::Impl::forward_sparse(const Batch& b) {
  training::Workspace& w = *work;
  training::Entries& e = w.selection.entries;
  const std::int64_t d = config.d_out;
  const bool jump = config.activation == FeatureActivation::jump_relu;
  const auto width = static_cast<float>(options.bandwidth);
  const double count_slope =
      options.penalty == SparsityPenalty::l0 ? b.lambda / static_cast<double>(b.rows) : 0;
  e.slope.resize(e.feature.size());
  e.threshold_slope.resize(jump ? e.feature.size() : 0);
#pragma omp parallel for schedule(dynamic, 16)
  for (std::int64_t r = 0; r < b.rows; ++r) {
    const std::int64_t begin = e.offsets[size(r)], end = e.offsets[size(r + 1)];
    float* rebuilt = w.rebuilt.data() + r * d;
    for (std::int64_t i = begin; i < end; ++i) {
      const float z = e.value[size(i)];
      if (z == 0) continue;
      training::add_scaled(z, decoder.value.data() + e.feature[size(i)] * d, d, rebuilt);
      w.penalty[size(r)] += penalty(z);
      ++w.active[size(r)];
    }
    finish_row(b, r);
    const float* slope = w.slope.data() + r * d;
    for (std::int64_t i = begin; i < end; ++i) {
      const float z = e.value[size(i)];
      const float by_z = training::dot(decoder.value.data() + e.feature[size(i)] * d, slope, d) +
                         penalty_slope(z, b);
      e.slope[size(i)] = z > 0 ? by_z : 0;
      if (!jump) continue;
      const float limit = b.threshold[size(e.feature[size(i)])];
      const double both = double{limit} * by_z + count_slope;
      e.threshold_slope[size(i)] = e.near[size(i)] != 0 ? static_cast<float>(-both / width) : 0;
    }
  }
}

// The dead features' share in the error that the others left.
void TranscoderTrainer::Impl::auxiliary(const Batch& b) {
  training::Workspace& w = *work;
  const std::int64_t d = config.d_out;
  training::Entries& e = w.aux;
  select_among(b.dead, options.auxk, w.u.data(), b.rows, config.features, e);
  e.slope.resize(e.feature.size());
  w.aux_slope.resize(size(b.rows * d));
  const auto alpha = static_cast<float>(options.auxk_weight);
#pragma omp parallel for schedule(dynamic, 16)
  for (std::int64_t r = 0; r < b.rows; ++r) {
    float* difference = w.aux_slope.data() + r * d;  // what dead features rebuild − what was left
    const float* slope = w.slope.data() + r * d;
    const float factor = w.weight[size(r)];
    for (std::int64_t i = 0; i < d; ++i) difference[i] = slope[i] / factor;
    for (std::int64_t i = e.offsets[size(r)]; i < e.offsets[size(r + 1)]; ++i) {
      training::add_scaled(e.value[size(i)], decoder.value.data() + e.feature[size(i)] * d, d,
                           difference);
    }
    w.auxiliary[size(r)] =
        training::sum_squares(difference, d) * factor / 2 * static_cast<double>(b.rows);
    for (std::int64_t i = 0; i < d; ++i) difference[i] *= alpha * factor;
    for (std::int64_t i = e.offsets[size(r)]; i < e.offsets[size(r + 1)]; ++i) {
      e.slope[size(i)] =
          training::dot(decoder.value.data() + e.feature[size(i)] * d, difference, d);
    }
  }
}

}  // namespace lamina
