#pragma once

// Numbers of one attention row, vectorised: sums run over fixed lanes in float for 256 values and
// then in double, so that a row's result depends on nothing but the row.

#include <cstdint>
#include <span>

namespace lamina::rows {

struct AttentionSummary {
  double entropy = 0;    // nats, within [0, log n]
  double total = 1;      // Σ p
  std::int64_t top = 0;  // index of the largest weight, the first of equals
  float score_max = 0;   // NaN without scores
  double score_sum = 0;
};

/// Of the visible scores and their softmax: H = −log p_top − Σ p (s − s_top), no logarithm but one.
/// NaN if a score is not finite.
AttentionSummary summarise_attention(std::span<const float> scores, std::span<const float> pattern);

/// Of the weights alone: H = −Σ p log p with 0 log 0 = 0. NaN for weights that are no numbers in
/// [0, 1].
AttentionSummary summarise_attention(std::span<const float> pattern);

/// to[i] += from[i].
void add_to(std::span<const float> from, float* to);

}  // namespace lamina::rows
