#pragma once

#include <cstdint>
#include <vector>

#include "lamina/core/config.h"

namespace lamina {

/// cos and sin of every position and frequency, [positions, rotary / 2], grown on demand.
/// Angles are formed in fp32 as the reference implementations do, so that they agree at long range.
class RopeTable {
 public:
  RopeTable(const Rope& rope, std::int64_t rotary);
  void grow(std::int64_t positions);
  const float* cos() const { return cos_.data(); }
  const float* sin() const { return sin_.data(); }

 private:
  std::vector<float> frequencies_;  // [rotary / 2]
  std::int64_t positions_ = 0;
  std::vector<float> cos_, sin_;
};

}  // namespace lamina
