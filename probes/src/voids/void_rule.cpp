#include "lamina/probes/void_rule.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lamina/core/error.h"

namespace lamina {

std::string_view void_rule_name(VoidRule rule) {
  return rule == VoidRule::l2 ? "l2" : "lac";
}

VoidRule parse_void_rule(std::string_view name) {
  if (name == "l2") return VoidRule::l2;
  if (name == "lac") return VoidRule::lac;
  fail_usage("rule '{}': expected l2 or lac", name);
}

double row_norm(std::span<const float> row) {
  constexpr std::size_t kLanes = 8;
  std::array<double, kLanes> lanes{};
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += double{row[i + lane]} * row[i + lane];
    }
  }
  double rest = 0;
  for (; i < row.size(); ++i) rest += double{row[i]} * row[i];
  for (double lane : lanes) rest += lane;
  return std::sqrt(rest);
}

bool VoidDetector::active(double delta) {
  const double lambda = threshold();
  max_ = seen_ ? std::max(max_, delta) : delta;
  min_ = seen_ ? std::min(min_, delta) : delta;
  seen_ = true;
  if (rule_ == VoidRule::l2) return !(delta < lambda);
  halted_ = halted_ || std::abs(delta) < lambda;
  return !halted_;
}

void check_voids_make_sense(const ModelConfig& config) {
  if (config.n_layers < 1) fail_usage("voids: the model has no layers");
  if (config.norm_place == NormPlace::post) {
    fail_usage(
        "voids: {} models normalise after each addition, their blocks add to no common stream",
        config.family);
  }
}

void check_alphas(std::span<const double> alphas) {
  if (alphas.empty()) fail_usage("no α was given");
  for (std::size_t i = 0; i < alphas.size(); ++i) {
    if (!std::isfinite(alphas[i]) || alphas[i] < 0) {
      fail_usage("α must be a number of 0 or more, got {}", alphas[i]);
    }
    if (std::find(alphas.begin(), alphas.begin() + static_cast<std::ptrdiff_t>(i), alphas[i]) !=
        alphas.begin() + static_cast<std::ptrdiff_t>(i)) {
      fail_usage("α {} was given twice", alphas[i]);
    }
  }
}

}  // namespace lamina
