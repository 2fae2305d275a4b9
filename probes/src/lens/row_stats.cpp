#include "lens/row_stats.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace lamina::rows {
namespace {

constexpr std::int64_t kLanes = 8;
// exp() of less is subnormal. Shifted logits stop here, where exp() is 3e-308: nothing in any sum.
constexpr double kFloor = -708.0;

// exp(x) for kFloor ≤ x ≤ 0. Branch-free, so that loops over it become vector instructions. Range
// reduction x = n·ln 2 + r with |r| ≤ ln 2 / 2, then the Taylor series of degree 13 (remainder <
// 5e-18 there), then 2ⁿ through the exponent bits.
inline double exp_lane(double x) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2Hi = 0.69314718036912382;  // 32 bits: n·hi is exact
  constexpr double kLn2Lo = 1.9082149292705877e-10;
  constexpr double kShift = 6755399441055744.0;  // 1.5·2⁵²: adding it rounds to an integer
  const double shifted = x * kLog2E + kShift;
  const double n = shifted - kShift;
  const double r = (x - n * kLn2Hi) - n * kLn2Lo;
  double y = 1.0 / 6227020800.0;
  y = y * r + 1.0 / 479001600.0;
  y = y * r + 1.0 / 39916800.0;
  y = y * r + 1.0 / 3628800.0;
  y = y * r + 1.0 / 362880.0;
  y = y * r + 1.0 / 40320.0;
  y = y * r + 1.0 / 5040.0;
  y = y * r + 1.0 / 720.0;
  y = y * r + 1.0 / 120.0;
  y = y * r + 1.0 / 24.0;
  y = y * r + 1.0 / 6.0;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(shifted);
  const double scale = std::bit_cast<double>((bits + 1023) << 52);
  return y * scale;
}

using Lanes = std::array<double, kLanes>;

double add_up(const Lanes& a) {
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

// The largest value; NaN if any is NaN (std::max would lose it).
float largest(std::span<const float> x) {
  std::array<float, 16> lane;
  lane.fill(-std::numeric_limits<float>::infinity());
  const auto n = static_cast<std::int64_t>(x.size());
  bool ordered = true;
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (std::int64_t j = 0; j < 16; ++j) {
      ordered &= x[i + j] == x[i + j];
      lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    }
  }
  for (; i < n; ++i) {
    ordered &= x[i] == x[i];
    lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  }
  if (!ordered) return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(lane.begin(), lane.end());
}

// Logits are handled this many at a time: long enough for vector instructions, short enough for the
// first-level cache. A multiple of the lanes, so that a lane's terms do not depend on it.
constexpr std::int64_t kChunk = 512;

// Lane j adds terms j, j + 8, j + 16 …
void accumulate(const double* terms, std::int64_t n, Lanes& lanes) {
  Lanes sum = lanes;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) sum[j] += terms[i + j];
  }
  for (std::int64_t j = 0; i + j < n; ++j) sum[j] += terms[i + j];
  lanes = sum;
}

void exp_chunk(const double* d, std::int64_t n, double* e) {
  for (std::int64_t i = 0; i < n; ++i) e[i] = exp_lane(d[i]);
}

inline double shifted_logit(float x, double max) {
  const double d = static_cast<double>(x) - max;
  return d < kFloor ? kFloor : d;  // keeps 0·(−infinity) out of the sums
}

}  // namespace

double exp_nonpositive(double x) {
  return x < kFloor ? 0.0 : exp_lane(x);
}

double Softmax::entropy_bits() const {
  constexpr double kBitsPerNat = 1.4426950408889634;
  return std::max(0.0, (log_sum - mean) * kBitsPerNat);
}

bool Softmax::valid() const {
  return std::isfinite(max) && std::isfinite(log_sum);
}

Softmax softmax(std::span<const float> logits) {
  Softmax s;
  s.max = largest(logits);
  const double max = s.max;
  Lanes sum{}, weighted{};
  double d[kChunk], e[kChunk];
  const auto size = static_cast<std::int64_t>(logits.size());
  for (std::int64_t at = 0; at < size; at += kChunk) {
    const std::int64_t n = std::min(kChunk, size - at);
    const float* x = logits.data() + at;
    for (std::int64_t i = 0; i < n; ++i) d[i] = shifted_logit(x[i], max);
    exp_chunk(d, n, e);
    accumulate(e, n, sum);
    for (std::int64_t i = 0; i < n; ++i) d[i] *= e[i];
    accumulate(d, n, weighted);
  }
  s.sum = add_up(sum);
  s.log_sum = std::log(s.sum);
  s.mean = add_up(weighted) / s.sum;
  return s;
}

void to_probabilities(std::span<float> row) {
  const double max = largest(row);
  Lanes sum{};
  double d[kChunk], e[kChunk];
  const auto size = static_cast<std::int64_t>(row.size());
  for (std::int64_t at = 0; at < size; at += kChunk) {
    const std::int64_t n = std::min(kChunk, size - at);
    float* x = row.data() + at;
    for (std::int64_t i = 0; i < n; ++i) d[i] = shifted_logit(x[i], max);
    exp_chunk(d, n, e);
    accumulate(e, n, sum);
    for (std::int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(e[i]);
  }
  const auto scale = static_cast<float>(1.0 / add_up(sum));
  for (float& p : row) p *= scale;
}

double distance(std::span<const float> a, std::span<const float> b) {
  Lanes sum{};
  double squares[kChunk];
  const auto size = static_cast<std::int64_t>(a.size());
  for (std::int64_t at = 0; at < size; at += kChunk) {
    const std::int64_t n = std::min(kChunk, size - at);
    for (std::int64_t i = 0; i < n; ++i) {
      const double difference = static_cast<double>(a[at + i]) - b[at + i];
      squares[i] = difference * difference;
    }
    accumulate(squares, n, sum);
  }
  return std::sqrt(add_up(sum));
}

Reference reference(std::span<const float> logits, std::int64_t top) {
  Reference r;
  r.logits = logits;
  r.softmax = softmax(logits);
  r.p.resize(logits.size());
  const double max = r.softmax.max, sum = r.softmax.sum;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    r.p[i] = exp_lane(shifted_logit(logits[i], max)) / sum;
  }
  r.top.resize(static_cast<std::size_t>(
      std::min<std::int64_t>(top, static_cast<std::int64_t>(logits.size()))));
  if (r.softmax.valid()) top_k(logits, r.top);
  return r;
}

Comparison compare(std::span<const float> logits, const Reference& reference) {
  Comparison c;
  Softmax& s = c.softmax;
  s.max = largest(logits);
  const double max = s.max, ref_max = reference.softmax.max;
  const std::span<const float> ref = reference.logits;
  const std::vector<double>& p = reference.p;
  Lanes sum{}, own{}, other{}, cross{};
  double d[kChunk], e[kChunk], r[kChunk], t[kChunk];
  const auto size = static_cast<std::int64_t>(logits.size());
  for (std::int64_t at = 0; at < size; at += kChunk) {
    const std::int64_t n = std::min(kChunk, size - at);
    const float *x = logits.data() + at, *y = ref.data() + at;
    const double* q = p.data() + at;
    for (std::int64_t i = 0; i < n; ++i) d[i] = shifted_logit(x[i], max);
    for (std::int64_t i = 0; i < n; ++i) r[i] = d[i] - shifted_logit(y[i], ref_max);
    exp_chunk(d, n, e);
    accumulate(e, n, sum);
    for (std::int64_t i = 0; i < n; ++i) t[i] = e[i] * d[i];
    accumulate(t, n, own);
    for (std::int64_t i = 0; i < n; ++i) t[i] = e[i] * r[i];
    accumulate(t, n, other);
    for (std::int64_t i = 0; i < n; ++i) t[i] = -(q[i] * r[i]);
    accumulate(t, n, cross);
  }
  s.sum = add_up(sum);
  s.log_sum = std::log(s.sum);
  s.mean = add_up(own) / s.sum;
  const double log_ratio = reference.softmax.log_sum - s.log_sum;
  c.kl_to = std::max(0.0, add_up(other) / s.sum + log_ratio);
  c.kl_from = std::max(0.0, add_up(cross) - log_ratio);
  return c;
}

void top_k(std::span<const float> logits, std::span<std::int32_t> out) {
  // A sorted list of the best so far: k is small, and after the first few thousand logits hardly
  // anything passes the first comparison.
  const std::size_t k = out.size();
  if (k == 0) return;
  std::size_t held = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (held == k && !(logits[i] > logits[out[k - 1]])) continue;
    std::size_t at = held < k ? held++ : k - 1;
    while (at > 0 && logits[i] > logits[out[at - 1]]) {
      out[at] = out[at - 1];
      --at;
    }
    out[at] = static_cast<std::int32_t>(i);
  }
}

std::int32_t rank(std::span<const float> logits, std::int32_t id) {
  const float x = logits[id];
  std::int32_t before = 0;
  for (std::int32_t i = 0; i < id; ++i) before += logits[i] >= x;
  for (std::size_t i = static_cast<std::size_t>(id) + 1; i < logits.size(); ++i) {
    before += logits[i] > x;
  }
  return before + 1;
}

}  // namespace lamina::rows
