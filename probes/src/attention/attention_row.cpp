#include "attention/attention_row.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

namespace lamina::rows {
namespace {

constexpr std::size_t kChunk = 256;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Values = Eigen::Map<const Eigen::ArrayXf>;

Values view(std::span<const float> x, std::size_t at) {
  return {x.data() + at, static_cast<Eigen::Index>(std::min(kChunk, x.size() - at))};
}

// Sum over 16 lanes. (Eigen's sum of values in memory begins where they are aligned: its bits
// depend on the address. Of an expression, as below, they do not.)
double sum(std::span<const float> x, std::size_t at) {
  constexpr std::size_t kLanes = 16;
  const std::span<const float> values = x.subspan(at, std::min(kChunk, x.size() - at));
  float lane[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lane[j] += values[i + j];
  }
  for (std::size_t j = 0; i + j < values.size(); ++j) lane[j] += values[i + j];
  double total = 0;
  for (const float part : lane) total += double{part};
  return total;
}

// The largest value and where it first stands. NaNs are passed over.
std::size_t argmax(std::span<const float> x) {
  float top = -std::numeric_limits<float>::infinity();
  std::size_t chunk = 0;
  for (std::size_t at = 0; at < x.size(); at += kChunk) {
    const float here = view(x, at).maxCoeff();
    if (here > top) {
      top = here;
      chunk = at;
    }
  }
  for (std::size_t i = chunk; i < x.size(); ++i) {
    if (x[i] == top) return i;
  }
  return 0;
}

double within(double entropy, std::size_t n) {
  return std::isnan(entropy) ? entropy : std::clamp(entropy, 0.0, std::log(static_cast<double>(n)));
}

}  // namespace

AttentionSummary summarise_attention(std::span<const float> scores,
                                     std::span<const float> pattern) {
  AttentionSummary out;
  const std::size_t top = argmax(scores);
  const float score = scores[top];
  double distance = 0;
  for (std::size_t at = 0; at < scores.size(); at += kChunk) {
    const Values s = view(scores, at), p = view(pattern, at);
    out.score_sum += sum(scores, at);
    distance += static_cast<double>((p * (score - s)).sum());
  }
  out.top = static_cast<std::int64_t>(top);
  out.score_max = score;
  out.entropy = within(distance - std::log(static_cast<double>(pattern[top])), scores.size());
  if (!std::isfinite(out.score_sum)) out.entropy = kNan;
  return out;
}

AttentionSummary summarise_attention(std::span<const float> pattern) {
  constexpr float kTiny = std::numeric_limits<float>::min();
  AttentionSummary out;
  out.total = 0;
  bool valid = true;
  double entropy = 0;
  for (std::size_t at = 0; at < pattern.size(); at += kChunk) {
    const Values p = view(pattern, at);
    valid = valid && (p >= 0.0F && p <= 1.0F).all();
    out.total += sum(pattern, at);
    // Subnormal weights would add less than 1e-36.
    entropy -= static_cast<double>((p * p.max(kTiny).log()).sum());
  }
  out.top = static_cast<std::int64_t>(argmax(pattern));
  out.score_max = kNaN;
  out.score_sum = kNan;
  out.entropy = valid ? within(entropy, pattern.size()) : kNan;
  return out;
}

void add_to(std::span<const float> from, float* to) {
  const auto n = static_cast<Eigen::Index>(from.size());
  Eigen::Map<Eigen::ArrayXf>(to, n) += Values(from.data(), n);
}

}  // namespace lamina::rows
