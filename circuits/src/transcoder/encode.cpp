// Pre-activations and active features: the product x·W_encᵀ block by block on the engine's packed
// kernels, whose values depend neither on the other rows nor on the number of threads.

#include <algorithm>
#include <exception>
#include <numeric>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/error.h"
#include "lamina/internal/product.h"

namespace lamina {
namespace {

// A block is packed once and multiplied with many rows, and its products stay in the cache.
constexpr std::int64_t kRows = 512;
constexpr std::int64_t kFeatures = 256;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// One block of pre-activations.
struct Block {
  std::int64_t row, rows, feature, features;
  const float* u;  // [rows, features] with row stride kFeatures
};

std::vector<float> shifted(std::span<const float> x, std::span<const float> bias) {
  std::vector<float> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] - bias[i % bias.size()];
  return out;
}

// Calls use(index, block) for every block, blocks of the same rows side by side: block `index` is
// number index % per_row of row chunk index / per_row. Runs on all threads; `use` may throw.
template <class Use>
void for_each_block(const Transcoder& t, std::span<const float> x, const Use& use) {
  const std::int64_t d = t.config.d_in, f = t.config.features;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / d;
  std::vector<float> copy;
  if (t.config.subtract_decoder_bias) {
    copy = shifted(x, t.decoder_bias);
    x = copy;
  }
  const std::int64_t per_row = (f + kFeatures - 1) / kFeatures;
  const std::int64_t items = (rows + kRows - 1) / kRows * per_row;
  std::exception_ptr failure;
#pragma omp parallel
  {
    internal::Operand weights;
    std::vector<float> u;
    try {
      weights = internal::Operand(std::min(f, kFeatures), d);
      u.resize(size(std::min(rows, kRows) * kFeatures));
    } catch (...) {
#pragma omp critical(lamina_encode)
      failure = std::current_exception();
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t item = 0; item < items; ++item) {
      if (u.empty()) continue;
      try {
        const std::int64_t row = item / per_row * kRows, feature = item % per_row * kFeatures;
        const Block block{row, std::min(kRows, rows - row), feature,
                          std::min(kFeatures, f - feature), u.data()};
        weights.set(t.encoder.data() + feature * d, block.features);
        internal::product(x.data() + row * d, d, block.rows, weights, u.data(), kFeatures);
        for (std::int64_t r = 0; r < block.rows; ++r) {
          for (std::int64_t j = 0; j < block.features; ++j) {
            u[size(r * kFeatures + j)] += t.encoder_bias[size(feature + j)];
          }
        }
        use(item, block);
      } catch (...) {
#pragma omp critical(lamina_encode)
        failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Active features of one block, row after row.
struct Active {
  std::vector<std::int32_t> ends;  // [rows of the block]
  std::vector<std::int32_t> feature;
  std::vector<float> value;
};

// Leaves the k largest of entries first …, ties by the smaller id, ascending ids.
void keep_largest(Active& active, std::size_t first, std::int64_t k,
                  std::vector<std::int32_t>& order) {
  const std::size_t count = active.feature.size() - first;
  if (count <= size(k)) return;
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  const float* value = active.value.data() + first;
  std::nth_element(order.begin(), order.begin() + k, order.end(),
                   [&](std::int32_t a, std::int32_t b) {
                     return value[a] > value[b] || (value[a] == value[b] && a < b);
                   });
  order.resize(size(k));
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) {  // order[i] ≥ i: nothing is overwritten early
    active.feature[first + i] = active.feature[first + size(order[i])];
    active.value[first + i] = active.value[first + size(order[i])];
  }
  active.feature.resize(first + size(k));
  active.value.resize(first + size(k));
}

Active find_active(const Transcoder& t, const Block& block) {
  const bool topk = t.config.activation == FeatureActivation::topk;
  Active active;
  std::vector<std::int32_t> order;
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* u = block.u + r * kFeatures;
    const std::size_t first = active.feature.size();
    for (std::int64_t j = 0; j < block.features; ++j) {
      const float bound =
          t.threshold.empty() ? 0.0F : std::max(t.threshold[size(block.feature + j)], 0.0F);
      if (!(u[j] > bound)) continue;
      active.feature.push_back(static_cast<std::int32_t>(block.feature + j));
      active.value.push_back(u[j]);
    }
    if (topk) keep_largest(active, first, t.config.k, order);
    active.ends.push_back(static_cast<std::int32_t>(active.feature.size()));
  }
  return active;
}

std::int64_t checked_rows(const Transcoder& t, std::size_t values) {
  const std::int64_t d = t.config.d_in;
  if (d < 1 || values % size(d) != 0) {
    fail_usage("{}: {} values in, expected rows of {}", t.config.name, values, d);
  }
  return static_cast<std::int64_t>(values) / d;
}

}  // namespace

void Transcoder::pre_activations(std::span<const float> x, std::span<float> u) const {
  const std::int64_t rows = checked_rows(*this, x.size()), f = config.features;
  if (u.size() != size(rows * f)) {
    fail_usage("{}: {} values out, expected {} rows of {}", config.name, u.size(), rows, f);
  }
  for_each_block(*this, x, [&](std::int64_t, const Block& block) {
    for (std::int64_t r = 0; r < block.rows; ++r) {
      std::copy_n(block.u + r * kFeatures, block.features,
                  u.data() + (block.row + r) * f + block.feature);
    }
  });
}

SparseRows Transcoder::encode(std::span<const float> x) const {
  const std::int64_t rows = checked_rows(*this, x.size());
  const std::int64_t per_row = (config.features + kFeatures - 1) / kFeatures;
  std::vector<Active> blocks(size((rows + kRows - 1) / kRows * per_row));
  for_each_block(*this, x, [&](std::int64_t item, const Block& block) {
    blocks[size(item)] = find_active(*this, block);
  });
  const bool topk = config.activation == FeatureActivation::topk;
  Active all;
  std::vector<std::int32_t> order;
  SparseRows out;
  out.offsets.reserve(size(rows + 1));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t chunk = r / kRows * per_row;
    all.feature.clear();
    all.value.clear();
    for (std::int64_t b = chunk; b < chunk + per_row; ++b) {
      const Active& block = blocks[size(b)];
      const std::int64_t row = r % kRows;
      const std::int32_t first = row == 0 ? 0 : block.ends[size(row - 1)];
      const std::int32_t end = block.ends[size(row)];
      all.feature.insert(all.feature.end(), block.feature.begin() + first,
                         block.feature.begin() + end);
      all.value.insert(all.value.end(), block.value.begin() + first, block.value.begin() + end);
    }
    if (topk) keep_largest(all, 0, config.k, order);
    out.feature.insert(out.feature.end(), all.feature.begin(), all.feature.end());
    out.value.insert(out.value.end(), all.value.begin(), all.value.end());
    out.offsets.push_back(static_cast<std::int64_t>(out.feature.size()));
  }
  return out;
}

Transcoder Transcoder::without_subtraction() const {
  Transcoder out = *this;
  if (!config.subtract_decoder_bias) return out;
  out.config.subtract_decoder_bias = false;
  for (std::int64_t j = 0; j < config.features; ++j) {
    const float* w = encoder.data() + j * config.d_in;
    double sum = encoder_bias[size(j)];
    for (std::int64_t i = 0; i < config.d_in; ++i) sum -= double{w[i]} * decoder_bias[size(i)];
    out.encoder_bias[size(j)] = static_cast<float>(sum);
  }
  return out;
}

}  // namespace lamina
