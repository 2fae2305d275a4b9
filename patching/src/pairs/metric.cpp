#include "lamina/patching/metric.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// In the order of MetricKind.
constexpr std::array<std::string_view, 6> kNames = {"logit_diff", "prob_diff", "prob",
                                                    "logprob",    "nll",       "kl"};

double at(std::span<const float> logits, std::int32_t id) {
  return double{logits[static_cast<std::size_t>(id)]};
}

// log Σ exp over all logits; not finite if one of them is NaN or +infinity.
double log_sum(std::span<const float> logits) {
  double top = -std::numeric_limits<double>::infinity();
  for (float x : logits) {
    if (!std::isfinite(x)) return double{x} - double{x};  // NaN
    top = std::max(top, double{x});
  }
  double sum = 0;
  for (float x : logits) sum += std::exp(double{x} - top);
  return top + std::log(sum);
}

// log Σ exp over some logits, at least one.
double log_sum(std::span<const float> logits, std::span<const std::int32_t> ids) {
  double top = -std::numeric_limits<double>::infinity();
  for (std::int32_t id : ids) top = std::max(top, at(logits, id));
  double sum = 0;
  for (std::int32_t id : ids) sum += std::exp(at(logits, id) - top);
  return top + std::log(sum);
}

double mean(std::span<const float> logits, std::span<const std::int32_t> ids) {
  double sum = 0;
  for (std::int32_t id : ids) sum += at(logits, id);
  return sum / static_cast<double>(ids.size());
}

double probability(std::span<const float> logits, std::span<const std::int32_t> ids, double norm) {
  double sum = 0;
  for (std::int32_t id : ids) sum += std::exp(at(logits, id) - norm);
  return sum;
}

// Σ r (log r − log p): r from the reference logits, p from the row's.
double divergence(std::span<const float> reference, double reference_norm,
                  std::span<const float> logits, double norm) {
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double log_r = double{reference[i]} - reference_norm;
    sum += std::exp(log_r) * (log_r - (double{logits[i]} - norm));
  }
  return sum;
}

}  // namespace

std::string_view metric_name(MetricKind kind) {
  return kNames[static_cast<std::size_t>(kind)];
}

MetricKind parse_metric(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) {
    fail_usage("metric '{}' is not one of {}", name, fmt::join(kNames, ", "));
  }
  return static_cast<MetricKind>(found - kNames.begin());
}

Metric::Metric(MetricKind kind, std::span<const Pair> pairs, std::int64_t d_vocab)
    : kind_(kind), d_vocab_(d_vocab) {
  const bool needs_wrong = kind == MetricKind::logit_diff || kind == MetricKind::prob_diff;
  for (const Pair& pair : pairs) {
    if (kind != MetricKind::kl && pair.correct.empty()) {
      fail_usage("pair '{}': metric {} needs a correct answer, found none", pair.id,
                 metric_name(kind));
    }
    if (needs_wrong && pair.wrong.empty()) {
      fail_usage("pair '{}': metric {} needs a wrong answer, found none", pair.id,
                 metric_name(kind));
    }
    std::set<std::int32_t> seen;
    for (const auto* answers : {&pair.correct, &pair.wrong}) {
      for (std::int32_t id : *answers) {
        if (id < 0 || id >= d_vocab) {
          fail_usage("pair '{}': answer {} is outside the vocabulary (0 to {})", pair.id, id,
                     d_vocab - 1);
        }
        if (!seen.insert(id).second) {
          fail_usage("pair '{}': answer {} is given twice", pair.id, id);
        }
      }
    }
    ids_.push_back(pair.id);
    correct_.push_back(pair.correct);
    wrong_.push_back(pair.wrong);
  }
  if (kind == MetricKind::kl) reference_.resize(pairs.size());
}

void Metric::check(std::int64_t pair, std::span<const float> logits) const {
  if (pair < 0 || pair >= pairs()) fail_usage("pair {} of {} pairs", pair, pairs());
  if (static_cast<std::int64_t>(logits.size()) != d_vocab_) {
    fail_usage("pair '{}': {} logits expected, found {}", ids_[static_cast<std::size_t>(pair)],
               d_vocab_, logits.size());
  }
}

double Metric::finite(std::int64_t pair, double value) const {
  if (!std::isfinite(value)) {
    fail("pair '{}': the metric {} is not finite: {}", ids_[static_cast<std::size_t>(pair)],
         metric_name(kind_), value);
  }
  return value;
}

const Metric::Reference& Metric::reference(std::int64_t pair) const {
  const Reference& found = reference_[static_cast<std::size_t>(pair)];
  if (found.logits.empty()) {
    fail_usage("pair '{}': metric kl has no reference logits yet",
               ids_[static_cast<std::size_t>(pair)]);
  }
  return found;
}

void Metric::set_reference(std::int64_t pair, std::span<const float> logits) {
  check(pair, logits);
  if (kind_ != MetricKind::kl) {
    fail_usage("metric {} takes no reference logits", metric_name(kind_));
  }
  const double norm = finite(pair, log_sum(logits));
  reference_[static_cast<std::size_t>(pair)] = {{logits.begin(), logits.end()}, norm};
}

double Metric::value(std::int64_t pair, std::span<const float> logits) const {
  check(pair, logits);
  const auto& correct = correct_[static_cast<std::size_t>(pair)];
  const auto& wrong = wrong_[static_cast<std::size_t>(pair)];
  switch (kind_) {
    case MetricKind::logit_diff:
      return finite(pair, mean(logits, correct) - mean(logits, wrong));
    case MetricKind::prob_diff: {
      const double norm = finite(pair, log_sum(logits));
      return probability(logits, correct, norm) - probability(logits, wrong, norm);
    }
    case MetricKind::prob:
      return finite(pair, probability(logits, correct, log_sum(logits)));
    case MetricKind::logprob:
    case MetricKind::nll: {
      const double value = finite(pair, log_sum(logits, correct) - log_sum(logits));
      return kind_ == MetricKind::nll ? -value : value;
    }
    case MetricKind::kl: {
      const Reference& r = reference(pair);
      return finite(pair, divergence(r.logits, r.log_sum, logits, log_sum(logits)));
    }
  }
  fail_usage("metric {}", static_cast<int>(kind_));
}

double Metric::gradient(std::int64_t pair, std::span<const float> logits,
                        std::span<float> out) const {
  const double result = value(pair, logits);
  if (out.size() != logits.size()) {
    fail_usage("pair '{}': room for {} gradients expected, found {}",
               ids_[static_cast<std::size_t>(pair)], d_vocab_, out.size());
  }
  const auto& correct = correct_[static_cast<std::size_t>(pair)];
  const auto& wrong = wrong_[static_cast<std::size_t>(pair)];
  // Every entry is computed in double and rounded once: where an answer's probability is close to
  // 1, adding to a rounded value would leave nothing.
  const auto set = [&](std::int32_t id, double gradient) {
    out[static_cast<std::size_t>(id)] = static_cast<float>(gradient);
  };
  if (kind_ == MetricKind::logit_diff) {
    std::fill(out.begin(), out.end(), 0.0F);
    for (std::int32_t id : correct) set(id, 1.0 / static_cast<double>(correct.size()));
    for (std::int32_t id : wrong) set(id, -1.0 / static_cast<double>(wrong.size()));
    return result;
  }

  const double norm = log_sum(logits);
  const auto p = [&](std::int32_t id) { return std::exp(at(logits, id) - norm); };
  if (kind_ == MetricKind::kl) {
    const Reference& r = reference(pair);
    for (std::int32_t i = 0; i < d_vocab_; ++i) {
      set(i, p(i) - std::exp(at(r.logits, i) - r.log_sum));
    }
  } else if (kind_ == MetricKind::prob_diff || kind_ == MetricKind::prob) {
    // ∂(Σ s_a p_a)/∂x_i = p_i (s_i − Σ s_a p_a); s = 1 for correct answers, −1 for wrong ones.
    for (std::int32_t i = 0; i < d_vocab_; ++i) set(i, -p(i) * result);
    for (std::int32_t id : correct) set(id, p(id) * (1.0 - result));
    if (kind_ == MetricKind::prob_diff) {
      for (std::int32_t id : wrong) set(id, p(id) * (-1.0 - result));
    }
  } else {
    // ∂ log Σ_correct p_a/∂x_i = (share of i among the correct answers) − p_i
    const double sign = kind_ == MetricKind::nll ? -1.0 : 1.0;
    const double all = log_sum(logits, correct);
    for (std::int32_t i = 0; i < d_vocab_; ++i) set(i, -sign * p(i));
    for (std::int32_t id : correct) set(id, sign * (std::exp(at(logits, id) - all) - p(id)));
  }
  return result;
}

}  // namespace lamina
