#pragma once

#include <span>
#include <vector>

#include "engine/weights.h"
#include "lamina/core/config.h"

namespace lamina::record {

/// Values that a site should hold, and how far rounding may have taken them: [token, d_model] each.
struct Expected {
  std::vector<double> value;
  std::vector<double> allowed;
};

/// What attention adds to the stream, computed in double from what a recording holds: plain loops
/// that share no code with the forward pass.
struct OutputCheck {
  const Weights& weights;
  const ModelConfig& config;
  double rounding;  // relative, of a stored value
  double floor;     // absolute, of a stored value

  /// W_O z + b_O, then the norm on the output if the model has one. z: [token, head, d_head].
  Expected from_z(std::int32_t layer, std::span<const float> z) const;
  /// Σ over heads of the results + b_O, then that norm. result: [token, head, d_model]; z is where
  /// the size of the rounding errors shows.
  Expected from_results(std::int32_t layer, std::span<const float> result,
                        std::span<const float> z) const;

 private:
  Expected projected(std::int32_t layer, std::span<const float> z) const;
  void finish(std::int32_t layer, Expected& expected) const;
};

}  // namespace lamina::record
