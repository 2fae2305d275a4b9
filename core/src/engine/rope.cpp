#include "engine/rope.h"

#include <cmath>
#include <numbers>

namespace lamina {
namespace {

// Llama 3.1's stretching of low frequencies (transformers, modeling_rope_utils; Meta's reference).
float llama3_scaled(float frequency, const Rope& rope) {
  const auto old_ctx = static_cast<double>(rope.original_ctx);
  const double low_wavelength = old_ctx / rope.low_freq_factor;
  const double high_wavelength = old_ctx / rope.high_freq_factor;
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < high_wavelength) return frequency;
  if (wavelength > low_wavelength) return static_cast<float>(frequency / rope.factor);
  const double smooth = (old_ctx / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return static_cast<float>((1.0 - smooth) * frequency / rope.factor + smooth * frequency);
}

}  // namespace

RopeTable::RopeTable(const Rope& rope, std::int64_t rotary) {
  for (std::int64_t i = 0; i < rotary / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary);
    float frequency = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
    switch (rope.scaling) {
      case RopeScaling::none:
        break;
      case RopeScaling::linear:
        frequency /= static_cast<float>(rope.factor);
        break;
      case RopeScaling::llama3:
        frequency = llama3_scaled(frequency, rope);
        break;
    }
    if (!rope.frequency_divisors.empty()) {
      frequency /= rope.frequency_divisors[static_cast<std::size_t>(i)];
    }
    frequencies_.push_back(frequency);
  }
}

void RopeTable::grow(std::int64_t positions) {
  if (positions <= positions_) return;
  const std::size_t half = frequencies_.size();
  cos_.resize(static_cast<std::size_t>(positions) * half);
  sin_.resize(static_cast<std::size_t>(positions) * half);
  for (std::int64_t p = positions_; p < positions; ++p) {
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * frequencies_[i];
      const std::size_t at = static_cast<std::size_t>(p) * half + i;
      cos_[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin_[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  positions_ = positions;
}

}  // namespace lamina
