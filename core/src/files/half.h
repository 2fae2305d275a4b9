#pragma once

#include <bit>
#include <cstdint>

namespace lamina::files {

// Branch-free 16-bit float conversions, inline so that loops over them become vector code.

/// IEEE binary16 → binary32, exact for every pattern (subnormals, infinities, NaN payloads).
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  // A normal number only needs its exponent bias moved from 15 to 127.
  const std::uint32_t normal = magnitude + (112u << 23);
  // A subnormal m·2⁻²⁴ is (2⁻¹⁴ + m·2⁻²⁴) − 2⁻¹⁴: both terms are normal in fp32, so this holds even
  // when the CPU flushes subnormals to zero.
  const float subnormal = std::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  std::uint32_t bits = magnitude < (1u << 23) ? std::bit_cast<std::uint32_t>(subnormal) : normal;
  bits = magnitude >= (31u << 23) ? magnitude | 0x7f800000u : bits;
  return std::bit_cast<float>(bits | sign);
}

/// binary32 → IEEE binary16, to nearest, ties to even; too large gives infinity, NaN stays a quiet
/// NaN with the top bits of its payload.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t all = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = all >> 16 & 0x8000;
  const std::uint32_t bits = all & 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00 | (bits >> 13 & 0x1ff));
  if (bits >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7c00);  // ≥ 2¹⁶
  if (bits < 0x38800000) {
    // Below 2⁻¹⁴ the result counts units of 2⁻²⁴, which is the last bit of a float in [0.5, 1): the
    // addition itself rounds to nearest even.
    const float counted = std::bit_cast<float>(bits) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(counted) - 0x3f000000));
  }
  // A carry out of the mantissa moves to the next exponent, and from the largest one to infinity.
  const std::uint32_t rounded = bits - (112u << 23) + 0xfff + (bits >> 13 & 1);
  return static_cast<std::uint16_t>(sign | rounded >> 13);
}

/// bfloat16 → binary32, exact.
inline float bfloat_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// binary32 → bfloat16, to nearest, ties to even; NaN stays a quiet NaN.
inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace lamina::files
