#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/circuits/transcoder.h"

namespace lamina::training {

/// Features that matter for the rows of a batch, ascending within a row.
struct Entries {
  std::vector<std::int64_t> offsets;  // [N + 1]
  std::vector<std::int32_t> feature;
  std::vector<float> value;            // z; 0: inactive, but within the kernel of jump_relu
  std::vector<std::uint8_t> near;      // jump_relu: within the kernel; else empty
  std::vector<float> slope;            // ∂L/∂u, filled by the backward pass
  std::vector<float> threshold_slope;  // jump_relu: ∂L/∂θ of the entry

  std::int64_t count() const { return static_cast<std::int64_t>(feature.size()); }
};

/// The same by feature, rows ascending.
struct ByFeature {
  std::vector<std::int64_t> offsets;  // [F + 1]
  std::vector<std::int32_t> row;
  std::vector<float> value, slope, threshold_slope;

  void build(const Entries& entries, std::int64_t features);
};

struct Selection {
  bool dense = false;  // too many for sparse work: entries is empty, everything is in u
  Entries entries;
  float least = 0;  // batch_topk: the least value kept; 0 if none
};

/// What the activation keeps of u [N, F] (biases are added to u first). θ [F] and ε of jump_relu.
void select_features(const TranscoderConfig& config, std::span<const float> bias,
                     std::span<const float> threshold, float bandwidth, std::int64_t rows, float* u,
                     Selection& out);

/// The k largest values above 0 of every row among `candidates` (ascending ids).
void select_among(std::span<const std::int32_t> candidates, std::int64_t k, const float* u,
                  std::int64_t rows, std::int64_t features, Entries& out);

/// Share of all values above which dense products are faster than work on single entries.
inline constexpr double kDenseShare = 0.15;

}  // namespace lamina::training
