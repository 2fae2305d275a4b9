#pragma once

#include <cstdint>
#include <span>
#include <vector>

// Arithmetic on single rows. Sums run in an order that depends on the length alone.

namespace lamina::training {

inline std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

/// y += a·x
void add_scaled(float a, const float* x, std::int64_t n, float* y);
/// Σ x·y
float dot(const float* x, const float* y, std::int64_t n);
/// Σ x²
double sum_squares(const float* x, std::int64_t n);
/// u += b; how many of the results are above `least`.
std::int64_t add_and_count(const float* b, std::int64_t n, float least, float* u);
/// The same with a bound of its own for every value.
std::int64_t add_and_count(const float* b, std::int64_t n, const float* least, float* u);
/// Appends the indices of values above `least` (and not below `bound`), ascending.
void collect_above(const float* u, std::int64_t n, float least, float bound,
                   std::vector<std::int32_t>& out);
/// maxima[i] = the largest u[j] with j mod groups = i; groups a multiple of 16, n ≥ groups.
void group_maxima(const float* u, std::int64_t n, std::int64_t groups, float* maxima);

/// Sums of columns of x [rows, n] in double, over blocks of rows that are added in order.
std::vector<double> column_sums(const float* x, std::int64_t rows, std::int64_t n);
/// out [n, rows] = xᵀ, x [rows, n] with row stride ld.
void transpose(const float* x, std::int64_t ld, std::int64_t rows, std::int64_t n, float* out);

/// What one step of Adam (Kingma, Ba 2015, bias-corrected) does; the same sequence of roundings
/// whatever the place of a value in its row.
struct AdamStep {
  float toward1, beta2, toward2, epsilon;  // toward: 1 − β
  float rate;                              // learning rate / (1 − β₁ᵗ)
  float root_correction;                   // √(1 − β₂ᵗ)

  void apply(const float* gradient, std::int64_t n, float* value, float* mean, float* square) const;
};

}  // namespace lamina::training
