#pragma once

#include <cstdint>
#include <span>

// Statistics of rows of logits: float in, sums in double over 16 fixed lanes, so the result depends
// on the numbers alone. All logarithms are natural (entropy in nats: divide by ln 2 for bits).

namespace lamina::math {

/// log Σ exp(x). −∞ for an empty row or one of −∞ only; NaN if any value is.
double log_sum_exp(std::span<const float> x);

/// −Σ p log p, p = exp(logits − log_sum) with log_sum = log_sum_exp(logits). Terms with p = 0 are
/// 0.
double entropy(std::span<const float> logits, double log_sum);

/// KL(p‖q) = Σ p (log p − log q) of two rows of logits of the same length with their log-sums.
/// Terms with p = 0 are 0; +∞ if somewhere q = 0 < p (q's logit −∞). Not clamped: rounding may
/// leave a value near −1e-16 where p = q up to rounding.
double kl_divergence(std::span<const float> p, double log_sum_p, std::span<const float> q,
                     double log_sum_q);

/// The ids.size() largest values, largest first, ties by the smaller id, NaN last. ids and values
/// have the same size, at most x.size(). Throws Error otherwise.
void top_k(std::span<const float> x, std::span<std::int32_t> ids, std::span<float> values);

}  // namespace lamina::math
