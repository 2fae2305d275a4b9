#pragma once

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lamina::bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Best time of one call in seconds: batches of calls of some milliseconds each, the fastest
/// counts. The best, because other work on the machine only ever adds time.
template <class Function>
double best_seconds(Function f, double budget = 0.2) {
  f();
  double start = now();
  f();
  const double once = std::max(now() - start, 1e-7);
  const int calls = std::max(1, static_cast<int>(0.004 / once));
  double best = 1e30;
  const double end = now() + budget;
  int batches = 0;
  while (now() < end || batches < 3) {
    start = now();
    for (int i = 0; i < calls; ++i) f();
    best = std::min(best, (now() - start) / calls);
    ++batches;
  }
  return best;
}

inline std::vector<float> random_floats(std::size_t n, unsigned seed) {
  std::minstd_rand generator(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(generator() % 2000) / 1000.0f - 1.0f;
  return out;
}

// The processor's peak: 16 independent chains of fused multiply-adds that touch no memory.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline float fma_loop_512(long steps) {
  __m512 acc[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (long s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      acc[i] = _mm512_fmadd_ps(acc[i], a, b);
      __asm__ volatile("" : "+v"(acc[i]));
    }
  }
  float sum = 0;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sum += acc[i][0];
  return sum;
}
__attribute__((target("avx2,fma"))) inline float fma_loop_256(long steps) {
  __m256 acc[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (long s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      acc[i] = _mm256_fmadd_ps(acc[i], a, b);
      __asm__ volatile("" : "+x"(acc[i]));
    }
  }
  float sum = 0;
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sum += acc[i][0];
  return sum;
}
#endif

/// Fused multiply-adds per second times two, on `threads` cores at once; 0 if it is not known how
/// to measure it here.
inline double peak_flops(int threads, bool wide) {
#if defined(__x86_64__)
  const bool is_512 = wide && __builtin_cpu_supports("avx512f");
  const long steps = 200'000;
  volatile float sink = 0;
  const double t = best_seconds([&] {
#pragma omp parallel num_threads(threads)
    {
      const float r = is_512 ? fma_loop_512(steps) : fma_loop_256(steps);
#pragma omp critical
      sink = sink + r;
    }
  });
  return 2.0 * static_cast<double>(steps) * (is_512 ? 16 * 16 : 12 * 8) * threads / t;
#else
  (void)threads, (void)wide;
  return 0;
#endif
}

}  // namespace lamina::bench
