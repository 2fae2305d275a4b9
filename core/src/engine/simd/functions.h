#pragma once

// exp, tanh, erf and what is made of them, sixteen lanes at once. Coefficients:
// fit_coefficients.py. Errors against double, over all floats of the range, are asserted in
// tests/kernels: exp 1 ulp, tanh and sigmoid 3 ulp, erf 2 ulp.

#include "engine/simd/vec.h"

namespace lamina::kernels::LAMINA_SIMD_NS {

/// e^x; 0 below −103.98, infinity above 88.73, subnormal results rounded properly, NaN kept.
inline F exp(F x) {
  // Clamped so that the exponent arithmetic stays in range. x second: NaN passes through.
  x = max(set1(-104.0f), x);
  x = min(set1(89.0f), x);
  const F magic = set1(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer
  const F shifted = fma(x, set1(0x1.715476p+0f), magic);
  const F n = sub(shifted, magic);
  F r = fma(n, set1(-0x1.62e400p-1f), x);  // ln 2 in two parts, the first exact times any n here
  r = fma(n, set1(-0x1.7f7d1cp-20f), r);
  F p = fma(set1(0x1.6a628ep-10f), r, set1(0x1.123ac8p-7f));
  p = fma(p, r, set1(0x1.55589ep-5f));
  p = fma(p, r, set1(0x1.555490p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  p = fma(mul(p, r), r, r);
  p = add(p, set1(1.0f));
  // Times 2ⁿ in two steps: one step's factor would not be a normal float at either end.
  const I exponent = sub(bits(shifted), set1_i(0x4b400000));
  const I half = shift_right_signed<1>(exponent);
  const I rest = sub(exponent, half);
  const F scale1 = floats(shift_left<23>(add(half, set1_i(127))));
  const F scale2 = floats(shift_left<23>(add(rest, set1_i(127))));
  return mul(mul(p, scale1), scale2);
}

inline F abs(F x) {
  return floats(bit_and(bits(x), set1_i(0x7fffffff)));
}
inline F copy_sign(F magnitude, F sign) {
  return floats(bit_or(bit_and(bits(magnitude), set1_i(0x7fffffff)),
                       bit_and(bits(sign), set1_i(static_cast<std::int32_t>(0x80000000u)))));
}
inline F negate(F x) {
  return sub(set1(-0.0f), x);
}

inline F tanh(F x) {
  const F t = abs(x);
  const F s = mul(x, x);
  F p = fma(set1(0x1.1ace3ep-9f), s, set1(-0x1.0c895ep-7f));
  p = fma(p, s, set1(0x1.63ad18p-6f));
  p = fma(p, s, set1(-0x1.b9f220p-5f));
  p = fma(p, s, set1(0x1.11107cp-3f));
  p = fma(p, s, set1(-0x1.555554p-2f));
  const F small = fma(mul(p, s), x, x);
  const F large = sub(set1(1.0f), div(set1(2.0f), add(exp(add(t, t)), set1(1.0f))));
  return select_gt(t, set1(0.625f), copy_sign(large, x), small);
}

/// erfc(t) for t ≥ 0.92 up to where it is below half an ulp of 1 (a little wrong beyond).
inline F erfc_tail(F t) {
  t = min(set1(3.95f), t);
  F r = fma(set1(-0x1.61f302p-16f), t, set1(0x1.c794cep-12f));
  r = fma(r, t, set1(-0x1.115b62p-8f));
  r = fma(r, t, set1(0x1.9b8ea6p-6f));
  r = fma(r, t, set1(-0x1.bb83e8p-4f));
  r = fma(r, t, set1(-0x1.44460cp-1f));
  r = fma(r, t, set1(-0x1.2127e4p+0f));
  r = fma(r, t, set1(0x1.6e5916p-13f));
  return exp(r);
}

/// erf(x) for |x| ≤ 0.93.
inline F erf_centre(F x) {
  const F s = mul(x, x);
  F p = fma(set1(-0x1.398da8p-11f), s, set1(0x1.4724f4p-8f));
  p = fma(p, s, set1(-0x1.b689e0p-6f));
  p = fma(p, s, set1(0x1.ce1a8ap-4f));
  p = fma(p, s, set1(-0x1.8126e8p-2f));
  p = fma(p, s, set1(0x1.06eba6p-3f));
  return fma(p, x, x);
}

inline F erf(F x) {
  const F t = abs(x);
  const F large = copy_sign(sub(set1(1.0f), erfc_tail(t)), x);
  return select_gt(t, set1(0.925f), large, erf_centre(x));
}

/// x / (1 + e^(−u)): x·sigmoid(u) with one rounding less.
inline F times_sigmoid(F x, F u) {
  return div(x, add(set1(1.0f), exp(negate(u))));
}

inline F silu(F x) {
  return times_sigmoid(x, x);
}
inline F quick_gelu(F x) {
  return times_sigmoid(x, mul(set1(1.702f), x));
}
/// ½x(1 + tanh u) = x·sigmoid(2u), u = √(2/π)(x + 0.044715 x³); no cancellation for negative x.
inline F gelu_tanh(F x) {
  const F cubic = fma(mul(set1(0.044715f), mul(x, x)), x, x);
  return times_sigmoid(x, mul(set1(1.59576912f), cubic));
}
/// ½x(1 + erf(x/√2)); the bracket is taken as erfc or 2 − erfc outside the centre, so that small
/// values for negative x keep their digits (down to x = −5.5; below, the true value is under 1e-7).
inline F gelu(F x) {
  const F u = mul(x, set1(0.707106781f)), t = abs(u);
  const F tail = erfc_tail(t);
  const F outside = select_gt(u, set1(0.0f), sub(set1(2.0f), tail), tail);
  const F bracket = select_gt(t, set1(0.925f), outside, add(set1(1.0f), erf_centre(u)));
  return mul(mul(set1(0.5f), x), bracket);
}
inline F relu(F x) {
  return max(set1(0.0f), x);
}

}  // namespace lamina::kernels::LAMINA_SIMD_NS
