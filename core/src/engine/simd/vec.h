#pragma once

// Sixteen floats (F), sixteen doubles (D) and sixteen 32-bit integers (I) as one value: one 512-bit
// register, two 256-bit registers or an array, by the instruction set this file is compiled for.
// Every operation is IEEE-exact lane by lane, so the three give the same bits.
//
// Included by one translation unit per instruction set, which defines LAMINA_SIMD_NS (its
// namespace) and LAMINA_SIMD_WIDTH (512, 256 or 0). Nothing here may have a name outside that
// namespace and no inline function of the standard library is called: the linker could otherwise
// keep the AVX-512 copy of a shared inline function for a processor without it.

#include <cstdint>

#if LAMINA_SIMD_WIDTH > 0
#include <immintrin.h>
#endif

namespace lamina::kernels::LAMINA_SIMD_NS {

#if LAMINA_SIMD_WIDTH == 512

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct D {
  __m512d lo, hi;
};

inline F load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, F a) {
  _mm512_storeu_ps(p, a.v);
}
inline F load_first(const float* p, int n, float fill) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << n) - 1u), p)};
}
inline void store_first(float* p, int n, F a) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), a.v);
}
inline F set1(float x) {
  return {_mm512_set1_ps(x)};
}
inline F add(F a, F b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F sub(F a, F b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F mul(F a, F b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F div(F a, F b) {
  return {_mm512_div_ps(a.v, b.v)};
}
/// a·b + c, rounded once.
inline F fma(F a, F b, F c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
/// a > b ? a : b: the second operand if either is NaN.
inline F max(F a, F b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline F min(F a, F b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline F select_gt(F a, F b, F yes, F no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline F select_eq(F a, F b, F yes, F no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), no.v, yes.v)};
}
inline I bits(F a) {
  return {_mm512_castps_si512(a.v)};
}
inline F floats(I a) {
  return {_mm512_castsi512_ps(a.v)};
}
inline I set1_i(std::int32_t x) {
  return {_mm512_set1_epi32(x)};
}
inline I add(I a, I b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
inline I sub(I a, I b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
inline I bit_and(I a, I b) {
  return {_mm512_and_si512(a.v, b.v)};
}
inline I bit_or(I a, I b) {
  return {_mm512_or_si512(a.v, b.v)};
}
template <int n>
inline I shift_left(I a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
inline I shift_right_signed(I a) {
  return {_mm512_srai_epi32(a.v, n)};
}

inline D set1_d(double x) {
  return {_mm512_set1_pd(x), _mm512_set1_pd(x)};
}
inline D widen(F a) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))};
}
inline F narrow(D a) {
  return {
      _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.lo)), _mm512_cvtpd_ps(a.hi), 1)};
}
inline D add(D a, D b) {
  return {_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)};
}
inline D sub(D a, D b) {
  return {_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)};
}
inline D mul(D a, D b) {
  return {_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)};
}
inline D fma(D a, D b, D c) {
  return {_mm512_fmadd_pd(a.lo, b.lo, c.lo), _mm512_fmadd_pd(a.hi, b.hi, c.hi)};
}
inline void store(double* p, D a) {
  _mm512_storeu_pd(p, a.lo);
  _mm512_storeu_pd(p + 8, a.hi);
}

#elif LAMINA_SIMD_WIDTH == 256

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};
struct D {
  __m256d a, b, c, d;
};

inline F load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F load_first(const float* p, int n, float fill) {
  alignas(32) float buffer[16];
  for (int i = 0; i < 16; ++i) buffer[i] = i < n ? p[i] : fill;
  return load(buffer);
}
inline void store_first(float* p, int n, F a) {
  alignas(32) float buffer[16];
  store(buffer, a);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}
inline F set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline F add(F a, F b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F sub(F a, F b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F mul(F a, F b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F div(F a, F b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
/// a·b + c, rounded once.
inline F fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
/// a > b ? a : b: the second operand if either is NaN.
inline F max(F a, F b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F min(F a, F b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F select_gt(F a, F b, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))};
}
inline F select_eq(F a, F b, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ))};
}
inline I bits(F a) {
  return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
inline F floats(I a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
inline I set1_i(std::int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
inline I add(I a, I b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline I sub(I a, I b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
inline I bit_and(I a, I b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline I bit_or(I a, I b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int n>
inline I shift_left(I a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
inline I shift_right_signed(I a) {
  return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}

inline D set1_d(double x) {
  const __m256d v = _mm256_set1_pd(x);
  return {v, v, v, v};
}
inline D widen(F a) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(a.lo)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(a.lo, 1)),
          _mm256_cvtps_pd(_mm256_castps256_ps128(a.hi)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(a.hi, 1))};
}
inline F narrow(D a) {
  return {_mm256_set_m128(_mm256_cvtpd_ps(a.b), _mm256_cvtpd_ps(a.a)),
          _mm256_set_m128(_mm256_cvtpd_ps(a.d), _mm256_cvtpd_ps(a.c))};
}
inline D add(D x, D y) {
  return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b), _mm256_add_pd(x.c, y.c),
          _mm256_add_pd(x.d, y.d)};
}
inline D sub(D x, D y) {
  return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b), _mm256_sub_pd(x.c, y.c),
          _mm256_sub_pd(x.d, y.d)};
}
inline D mul(D x, D y) {
  return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b), _mm256_mul_pd(x.c, y.c),
          _mm256_mul_pd(x.d, y.d)};
}
inline D fma(D x, D y, D z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b),
          _mm256_fmadd_pd(x.c, y.c, z.c), _mm256_fmadd_pd(x.d, y.d, z.d)};
}
inline void store(double* p, D x) {
  _mm256_storeu_pd(p, x.a);
  _mm256_storeu_pd(p + 4, x.b);
  _mm256_storeu_pd(p + 8, x.c);
  _mm256_storeu_pd(p + 12, x.d);
}

#else

struct F {
  float v[16];
};
struct I {
  std::int32_t v[16];
};
struct D {
  double v[16];
};

// Each lane by a plain expression; compilers turn these loops into whatever vectors there are.
#define LAMINA_LANES(T, expression)                     \
  do {                                                  \
    T out;                                              \
    for (int i = 0; i < 16; ++i) out.v[i] = expression; \
    return out;                                         \
  } while (false)

inline F load(const float* p) {
  LAMINA_LANES(F, p[i]);
}
inline void store(float* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
inline F load_first(const float* p, int n, float fill) {
  LAMINA_LANES(F, i < n ? p[i] : fill);
}
inline void store_first(float* p, int n, F a) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline F set1(float x) {
  LAMINA_LANES(F, x);
}
inline F add(F a, F b) {
  LAMINA_LANES(F, a.v[i] + b.v[i]);
}
inline F sub(F a, F b) {
  LAMINA_LANES(F, a.v[i] - b.v[i]);
}
inline F mul(F a, F b) {
  LAMINA_LANES(F, a.v[i] * b.v[i]);
}
inline F div(F a, F b) {
  LAMINA_LANES(F, a.v[i] / b.v[i]);
}
/// a·b + c, rounded once.
inline F fma(F a, F b, F c) {
  LAMINA_LANES(F, __builtin_fmaf(a.v[i], b.v[i], c.v[i]));
}
/// a > b ? a : b: the second operand if either is NaN.
inline F max(F a, F b) {
  LAMINA_LANES(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline F min(F a, F b) {
  LAMINA_LANES(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline F select_gt(F a, F b, F yes, F no) {
  LAMINA_LANES(F, a.v[i] > b.v[i] ? yes.v[i] : no.v[i]);
}
inline F select_eq(F a, F b, F yes, F no) {
  LAMINA_LANES(F, a.v[i] == b.v[i] ? yes.v[i] : no.v[i]);
}
inline I bits(F a) {
  I out;
  __builtin_memcpy(out.v, a.v, sizeof out.v);
  return out;
}
inline F floats(I a) {
  F out;
  __builtin_memcpy(out.v, a.v, sizeof out.v);
  return out;
}
// Integer lanes wrap around, as the processor's do.
inline std::int32_t wrap(std::uint32_t x) {
  return static_cast<std::int32_t>(x);
}
inline std::uint32_t raw(std::int32_t x) {
  return static_cast<std::uint32_t>(x);
}
inline I set1_i(std::int32_t x) {
  LAMINA_LANES(I, x);
}
inline I add(I a, I b) {
  LAMINA_LANES(I, wrap(raw(a.v[i]) + raw(b.v[i])));
}
inline I sub(I a, I b) {
  LAMINA_LANES(I, wrap(raw(a.v[i]) - raw(b.v[i])));
}
inline I bit_and(I a, I b) {
  LAMINA_LANES(I, a.v[i] & b.v[i]);
}
inline I bit_or(I a, I b) {
  LAMINA_LANES(I, a.v[i] | b.v[i]);
}
template <int n>
inline I shift_left(I a) {
  LAMINA_LANES(I, wrap(raw(a.v[i]) << n));
}
template <int n>
inline I shift_right_signed(I a) {
  LAMINA_LANES(I, a.v[i] >> n);
}

inline D set1_d(double x) {
  LAMINA_LANES(D, x);
}
inline D widen(F a) {
  LAMINA_LANES(D, static_cast<double>(a.v[i]));
}
inline F narrow(D a) {
  LAMINA_LANES(F, static_cast<float>(a.v[i]));
}
inline D add(D a, D b) {
  LAMINA_LANES(D, a.v[i] + b.v[i]);
}
inline D sub(D a, D b) {
  LAMINA_LANES(D, a.v[i] - b.v[i]);
}
inline D mul(D a, D b) {
  LAMINA_LANES(D, a.v[i] * b.v[i]);
}
inline D fma(D a, D b, D c) {
  LAMINA_LANES(D, __builtin_fma(a.v[i], b.v[i], c.v[i]));
}
inline void store(double* p, D a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}

#undef LAMINA_LANES

#endif

// Sums of the lanes, always by the same tree: i with i + 8, then + 4, + 2, + 1.
inline float sum_lanes(F a) {
  float v[16];
  store(v, a);
  for (int step = 8; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) v[i] += v[i + step];
  }
  return v[0];
}
inline double sum_lanes(D a) {
  double v[16];
  store(v, a);
  for (int step = 8; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) v[i] += v[i + step];
  }
  return v[0];
}
inline float max_lanes(F a) {
  float v[16];
  store(v, a);
  for (int i = 1; i < 16; ++i) v[0] = v[i] > v[0] ? v[i] : v[0];
  return v[0];
}

}  // namespace lamina::kernels::LAMINA_SIMD_NS
