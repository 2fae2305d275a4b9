#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/patching/pairs.h"

namespace lamina {

/// What is measured at the last position of a prompt.
///   logit_diff  mean logit of the correct answers − mean logit of the wrong ones
///   prob_diff   Σ p(correct) − Σ p(wrong)
///   prob        Σ p(correct)
///   logprob     log Σ p(correct)
///   nll         −log Σ p(correct)
///   kl          KL(reference ‖ model), the reference set per pair (natural logarithm)
enum class MetricKind : std::uint8_t { logit_diff, prob_diff, prob, logprob, nll, kl };

std::string_view metric_name(MetricKind kind);
/// UsageError that lists the names.
MetricKind parse_metric(std::string_view name);

/// A metric over the pairs of a file: value and gradient from one row of logits, computed in
/// double.
class Metric {
 public:
  /// Throws UsageError if the kind needs wrong answers (logit_diff, prob_diff) and a pair has none,
  /// if a pair has no correct answer (all kinds but kl), and for answers outside the vocabulary or
  /// given twice.
  Metric(MetricKind kind, std::span<const Pair> pairs, std::int64_t d_vocab);

  MetricKind kind() const { return kind_; }
  std::int64_t pairs() const { return static_cast<std::int64_t>(correct_.size()); }
  /// For kl: the logits every later row of this pair is compared with, [d_vocab]. Error (naming the
  /// pair) if one is not finite; UsageError for other kinds.
  void set_reference(std::int64_t pair, std::span<const float> logits);

  /// logits [d_vocab] of the pair's last position. Throws Error (naming the pair) if the value is
  /// not finite, UsageError for kl without a reference. Const calls may run at the same time.
  double value(std::int64_t pair, std::span<const float> logits) const;
  /// ∂value/∂logits → out [d_vocab], every entry written. Returns the value. kl's is exact at the
  /// reference too: 0.
  double gradient(std::int64_t pair, std::span<const float> logits, std::span<float> out) const;

 private:
  struct Reference {
    std::vector<float> logits;  // [d_vocab]
    double log_sum = 0;         // log Σ exp(logits)
  };
  void check(std::int64_t pair, std::span<const float> logits) const;
  double finite(std::int64_t pair, double value) const;
  const Reference& reference(std::int64_t pair) const;

  MetricKind kind_;
  std::int64_t d_vocab_;
  std::vector<std::string> ids_;
  std::vector<std::vector<std::int32_t>> correct_, wrong_;
  std::vector<Reference> reference_;  // kl only
};

}  // namespace lamina
