#pragma once

// Functions of one row: elementwise maps and reductions. A sum adds value i into lane i mod 16 in
// increasing i and then adds the lanes by sum_lanes' tree.

#include "engine/simd/functions.h"
#include "lamina/core/config.h"

namespace lamina::kernels::LAMINA_SIMD_NS {

template <class Function>
inline void map(const float* x, std::int64_t n, float* y, Function f) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, f(load(x + i)));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    store_first(y + i, left, f(load_first(x + i, left, 0.0f)));
  }
}

template <class Function>
inline void map2(const float* x, const float* z, std::int64_t n, float* y, Function f) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, f(load(x + i), load(z + i)));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    store_first(y + i, left, f(load_first(x + i, left, 0.0f), load_first(z + i, left, 0.0f)));
  }
}

/// f(values) for every 16 values of x, the last ones filled up with `fill`.
template <class Function>
inline void each(const float* x, std::int64_t n, float fill, Function f) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(load(x + i));
  if (i < n) f(load_first(x + i, static_cast<int>(n - i), fill));
}

inline float infinity() {
  return __builtin_inff();
}

inline float row_max(const float* x, std::int64_t n) {
  F best = set1(-infinity());
  each(x, n, -infinity(), [&](F v) { best = max(best, v); });
  return max_lanes(best);
}

double row_sum(const float* x, std::int64_t n) {
  D sum = set1_d(0.0);
  each(x, n, 0.0f, [&](F v) { sum = add(sum, widen(v)); });
  return sum_lanes(sum);
}

double row_sum_squares(const float* x, std::int64_t n, float mean) {
  D sum = set1_d(0.0);
  const F m = set1(mean);
  each(x, n, mean, [&](F v) {
    const D centred = widen(sub(v, m));
    sum = fma(centred, centred, sum);
  });
  return sum_lanes(sum);
}

void row_normalize(const float* x, std::int64_t n, float mean, float scale, float* y) {
  const F m = set1(mean), s = set1(scale);
  map(x, n, y, [&](F v) { return div(sub(v, m), s); });
}

void row_exp(float* x, std::int64_t n) {
  map(x, n, x, [](F v) { return exp(v); });
}

void row_softcap(float* x, std::int64_t n, float cap) {
  const F c = set1(cap);
  map(x, n, x, [&](F v) { return mul(c, tanh(div(v, c))); });
}

void row_scale(float* x, std::int64_t n, float factor) {
  const F c = set1(factor);
  map(x, n, x, [&](F v) { return mul(c, v); });
}

/// Softmax in place of x [n], whose first value has a key position that is a multiple of 16.
/// −inf gives exactly 0; without any other value the row becomes zeros.
void row_softmax(float* x, std::int64_t n) {
  const F masked = set1(-infinity()), zero = set1(0.0f);
  const F top = set1(row_max(x, n));
  F sum = zero;
  std::int64_t i = 0;
  // Masked values are never put through exp: (−inf) − (−inf) is NaN.
  const auto numerator = [&](F v) {
    const F e = select_eq(v, masked, zero, exp(sub(v, top)));
    sum = add(sum, e);
    return e;
  };
  for (; i + 16 <= n; i += 16) store(x + i, numerator(load(x + i)));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    store_first(x + i, left, numerator(load_first(x + i, left, -infinity())));
  }
  const F total = set1(sum_lanes(sum));
  // A zero stays zero even if the row's total is 0 or NaN.
  map(x, n, x, [&](F e) { return select_eq(e, zero, zero, div(e, total)); });
}

/// x·softmax(x); y may be x.
void row_solu(const float* x, std::int64_t n, float* y) {
  const F top = set1(row_max(x, n));
  F sum = set1(0.0f);
  each(x, n, -infinity(), [&](F v) { sum = add(sum, exp(sub(v, top))); });
  const F total = set1(sum_lanes(sum));
  map(x, n, y, [&](F v) { return mul(v, div(exp(sub(v, top)), total)); });
}

template <class Use>
inline void with_activation(Activation act, Use use) {
  switch (act) {
    case Activation::relu:
      return use([](F x) { return relu(x); });
    case Activation::gelu:
      return use([](F x) { return gelu(x); });
    case Activation::gelu_tanh:
      return use([](F x) { return gelu_tanh(x); });
    case Activation::quick_gelu:
      return use([](F x) { return quick_gelu(x); });
    case Activation::silu:
      return use([](F x) { return silu(x); });
    case Activation::tanh:
      return use([](F x) { return tanh(x); });
    case Activation::solu:
    case Activation::solu_ln:
      break;  // of whole rows: row_solu
  }
}

void row_activate(Activation act, const float* x, std::int64_t n, float* y) {
  if (act == Activation::solu || act == Activation::solu_ln) return row_solu(x, n, y);
  with_activation(act, [&](auto f) { map(x, n, y, f); });
}

void row_activate_gated(Activation act, const float* gate, const float* up, std::int64_t n,
                        float* y) {
  with_activation(act,
                  [&](auto f) { map2(gate, up, n, y, [&](F g, F u) { return mul(f(g), u); }); });
}

/// Σ exp(x − maximum), the terms in float, the sum in double.
double row_sum_exp(const float* x, std::int64_t n, float* maximum) {
  const float top = row_max(x, n);
  *maximum = top;
  const F t = set1(top);
  D sum = set1_d(0.0);
  each(x, n, -infinity(), [&](F v) { sum = add(sum, widen(exp(sub(v, t)))); });
  return sum_lanes(sum);
}

/// exp(x − log_sum) with the difference taken in double: e^(float part)·(1 + remainder).
struct Probability {
  F single;
  D p;
  D minus_log;
};
inline Probability probability(F x, D log_sum) {
  const D difference = sub(widen(x), log_sum);
  const F head = narrow(difference);
  const F e = exp(head);
  const D wide = widen(e);
  return {e, fma(wide, sub(difference, widen(head)), wide), sub(log_sum, widen(x))};
}

/// −Σ p log p; terms with p = 0 count 0.
double row_entropy(const float* x, std::int64_t n, double log_sum) {
  const D l = set1_d(log_sum);
  const F floor = set1(static_cast<float>(log_sum - 200.0));  // p is 0 there; keeps 0·∞ away
  D sum = set1_d(0.0);
  each(x, n, -infinity(), [&](F v) {
    const Probability a = probability(max(floor, v), l);
    sum = fma(a.p, a.minus_log, sum);
  });
  return sum_lanes(sum);
}

/// Σ p (log p − log q); terms with p = 0 count 0, with q = 0 < p infinity.
double row_kl(const float* x, double log_sum_x, const float* y, double log_sum_y, std::int64_t n) {
  const D lx = set1_d(log_sum_x), ly = set1_d(log_sum_y);
  const F floor = set1(static_cast<float>(log_sum_x - 200.0));
  const F finite = set1(static_cast<float>(log_sum_y));
  const F zero = set1(0.0f);
  D sum = set1_d(0.0);
  const auto term = [&](F vx, F vy) {
    const Probability a = probability(max(floor, vx), lx);
    const D minus_log_q = sub(ly, widen(select_eq(a.single, zero, finite, vy)));
    sum = fma(a.p, sub(minus_log_q, a.minus_log), sum);
  };
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) term(load(x + i), load(y + i));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    term(load_first(x + i, left, -infinity()), load_first(y + i, left, 0.0f));
  }
  return sum_lanes(sum);
}

}  // namespace lamina::kernels::LAMINA_SIMD_NS
