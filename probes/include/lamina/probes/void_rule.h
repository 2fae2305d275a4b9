#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"

namespace lamina {

/// When a layer counts as void for a token. δ_l = ‖stream leaving block l‖ − ‖stream entering it‖,
/// λ_l = α · (max δ − min δ over the earlier layers), λ_0 = 0.
enum class VoidRule : std::uint8_t {
  /// Void iff δ_l < λ_l. "Void in Language Models" (Shemiranifar 2025), as its code decides for one
  /// prompt at a time (in a batch of several the release makes λ_0 depend on the other prompts).
  l2,
  /// L2 adaptive computation, the earlier form: a token halts at the first layer with
  /// |δ_l| < λ_l; that layer and all later ones are void.
  lac,
};
std::string_view void_rule_name(VoidRule rule);
/// UsageError for anything but "l2" and "lac".
VoidRule parse_void_rule(std::string_view name);

/// Euclidean norm of a row: squares summed in double over eight fixed lanes.
double row_norm(std::span<const float> row);

/// Decides for one token, layer after layer.
class VoidDetector {
 public:
  explicit VoidDetector(double alpha, VoidRule rule = VoidRule::l2) : alpha_(alpha), rule_(rule) {}

  /// λ of the next layer.
  double threshold() const { return seen_ ? alpha_ * (max_ - min_) : 0.0; }
  /// Whether the next layer, which changes the norm by `delta`, is active (not void).
  bool active(double delta);

 private:
  double alpha_;
  VoidRule rule_;
  double max_ = 0, min_ = 0;
  bool seen_ = false, halted_ = false;
};

/// UsageError for models that normalise after each addition: their blocks do not add to one stream,
/// and the norm of what leaves a block says little.
void check_voids_make_sense(const ModelConfig& config);

/// Throws UsageError unless there is an α, all are finite and ≥ 0, and none stands twice.
void check_alphas(std::span<const double> alphas);

}  // namespace lamina
