#include "lamina/patching/output_distance.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"angular", "norm", "kl", "js"};

// Σ f(i) over fixed lanes: the order of the additions depends on nothing but n, and the compiler
// may use vector instructions.
template <class Term>
double lane_sum(std::size_t n, Term term) {
  constexpr std::size_t kLanes = 8;
  std::array<double, kLanes> lanes{};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  }
  for (std::size_t j = 0; i + j < n; ++j) lanes[j] += term(i + j);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// 2·atan2(‖u − v‖, ‖u + v‖) of the unit vectors: exact where acos of a cosine loses half the
// digits, near 0 and π.
double angle(std::span<const float> x, std::span<const float> y) {
  const double xx = lane_sum(x.size(), [&](std::size_t i) { return double{x[i]} * x[i]; });
  const double yy = lane_sum(x.size(), [&](std::size_t i) { return double{y[i]} * y[i]; });
  if (xx == 0 && yy == 0) return 0;
  const double a = xx > 0 ? 1 / std::sqrt(xx) : 0, b = yy > 0 ? 1 / std::sqrt(yy) : 0;
  const double difference = lane_sum(x.size(), [&](std::size_t i) {
    const double d = x[i] * a - y[i] * b;
    return d * d;
  });
  const double sum = lane_sum(x.size(), [&](std::size_t i) {
    const double s = x[i] * a + y[i] * b;
    return s * s;
  });
  return 2 * std::atan2(std::sqrt(difference), std::sqrt(sum));
}

double jensen_shannon(std::span<const float> x, std::span<const float> y) {
  const double log_x = math::log_sum_exp(x), log_y = math::log_sum_exp(y);
  return 0.5 * lane_sum(x.size(), [&](std::size_t i) {
           const double log_p = x[i] - log_x, log_q = y[i] - log_y;
           const double p = std::exp(log_p), q = std::exp(log_q);
           const double log_m = std::log(0.5 * (p + q));
           // 0·log 0 = 0; both probabilities may have underflowed.
           return (p > 0 ? p * (log_p - log_m) : 0) + (q > 0 ? q * (log_q - log_m) : 0);
         });
}

}  // namespace

std::string_view distance_name(DistanceKind kind) {
  return kNames[static_cast<std::size_t>(kind)];
}

std::string_view distance_units(DistanceKind kind) {
  constexpr std::array<std::string_view, 4> kUnits = {"radians", "logits", "nats", "nats"};
  return kUnits[static_cast<std::size_t>(kind)];
}

DistanceKind parse_distance(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<DistanceKind>(i);
  }
  fail_usage("unknown distance '{}'; expected angular, norm, kl or js", name);
}

double output_distance(DistanceKind kind, std::span<const float> x, std::span<const float> y) {
  if (x.size() != y.size() || x.empty()) {
    fail("output_distance: {} logits against {}", x.size(), y.size());
  }
  switch (kind) {
    case DistanceKind::angular:
      return angle(x, y);
    case DistanceKind::norm:
      return std::sqrt(lane_sum(x.size(), [&](std::size_t i) {
        const double d = double{x[i]} - y[i];
        return d * d;
      }));
    case DistanceKind::kl:
      return math::kl_divergence(x, math::log_sum_exp(x), y, math::log_sum_exp(y));
    case DistanceKind::js:
      // Where p and q agree m is not p exactly: log ((p + q)/2) may round.
      return std::ranges::equal(x, y) ? 0.0 : jensen_shannon(x, y);
  }
  return 0;
}

double total_distance(DistanceKind kind, std::span<const double> rows,
                      std::span<const std::int64_t> offsets) {
  double total = 0;
  if (kind != DistanceKind::norm) {
    for (const double row : rows) total += row;
    return rows.empty() ? 0 : total / static_cast<double>(rows.size());
  }
  for (std::size_t p = 0; p + 1 < offsets.size(); ++p) {
    double squares = 0;
    for (auto r = static_cast<std::size_t>(offsets[p]);
         r < static_cast<std::size_t>(offsets[p + 1]); ++r) {
      squares += rows[r] * rows[r];
    }
    total += std::sqrt(squares);
  }
  return offsets.size() < 2 ? 0 : total / static_cast<double>(offsets.size() - 1);
}

}  // namespace lamina
