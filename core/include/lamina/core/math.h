#pragma once

#include <cstdint>

namespace lamina::math {

// Row statistics of logits. All are deterministic: sums run over 16 fixed lanes, in double.

/// log Σ exp(x[i]) over n values (natural logarithm).
double log_sum_exp(const float* x, std::int64_t n);

/// Shannon entropy in nats of softmax(x); `log_norm` is log_sum_exp(x, n). 0·log 0 = 0.
double entropy(const float* x, std::int64_t n, double log_norm);

/// KL(softmax(p) ‖ softmax(q)) in nats.
double kl_divergence(const float* p, double p_log_norm, const float* q, double q_log_norm,
                     std::int64_t n);

/// The k largest of n values, in descending order; ties by smaller index. ids, values: [k], k ≤ n.
void top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values);

}  // namespace lamina::math
