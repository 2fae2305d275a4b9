#pragma once

// Statistics of distributions given by logits. Sums run in double over eight fixed lanes that are
// added in a fixed order, so a row's result depends on nothing but the row.

#include <cstdint>
#include <span>
#include <vector>

namespace lamina::rows {

/// A softmax: p_i = exp(x_i − max) / sum.
struct Softmax {
  float max = 0;
  double sum = 0;      // Σ exp(x_i − max)
  double log_sum = 0;  // log of it
  double mean = 0;     // Σ p_i (x_i − max)

  /// log p_i, nats.
  double logprob(float x) const { return static_cast<double>(x) - max - log_sum; }
  /// −Σ p log p in bits, with 0·log 0 = 0.
  double entropy_bits() const;
  /// No logit was NaN or +infinity, and not all were −infinity.
  bool valid() const;
};

Softmax softmax(std::span<const float> logits);

/// The distribution that others are compared with.
struct Reference {
  std::span<const float> logits;
  Softmax softmax;
  std::vector<double> p;          // [V]
  std::vector<std::int32_t> top;  // its first entries
};
Reference reference(std::span<const float> logits, std::int64_t top);

struct Comparison {
  Softmax softmax;     // of the row itself
  double kl_to = 0;    // KL(row ‖ reference), nats
  double kl_from = 0;  // KL(reference ‖ row), nats
};
Comparison compare(std::span<const float> logits, const Reference& reference);

/// Ids of the `out.size()` largest logits, falling; ties by smaller id.
void top_k(std::span<const float> logits, std::span<std::int32_t> out);

/// 1 + number of ids before `id` in the order of top_k.
std::int32_t rank(std::span<const float> logits, std::int32_t id);

/// Replaces a row of logits by its probabilities.
void to_probabilities(std::span<float> row);

/// ‖a − b‖ of two rows of the same length.
double distance(std::span<const float> a, std::span<const float> b);

/// exp(x) for x ≤ 0, within 1e-15 relative; 0 below −708.
double exp_nonpositive(double x);

}  // namespace lamina::rows
