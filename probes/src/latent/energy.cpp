// Token energy.

// Panels below are distributed over threads here; Eigen's own threads would change the sums.
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"
#include "lamina/probes/latent.h"

namespace lamina {

EnergyBasis::EnergyBasis(const Readout& readout)
    : d_model(readout.d_model()), d_vocab(readout.d_vocab()) {
  using Matrix = Eigen::MatrixXd;
  const std::int64_t d = d_model;
  std::vector<float> weight(static_cast<std::size_t>(d));
  readout.norm_weight(weight);

  constexpr std::int64_t kRows = 1024, kPanel = 64;
  const std::int64_t panels = (d + kPanel - 1) / kPanel;
  Matrix sum = Matrix::Zero(d, d);  // lower triangle
  Matrix unit;                      // [d, rows]: one vocabulary entry a column
  std::vector<float> rows;
  for (std::int64_t first = 0; first < d_vocab; first += kRows) {
    const std::int64_t count = std::min(kRows, d_vocab - first);
    rows.resize(static_cast<std::size_t>(count * d));
    readout.unembedding_rows(first, count, rows);
    unit.resize(d, count);
    for (std::int64_t r = 0; r < count; ++r) {
      double squares = 0;
      for (std::int64_t i = 0; i < d; ++i) {
        const double u = static_cast<double>(rows[r * d + i]) * weight[i];
        unit(i, r) = u;
        squares += u * u;
      }
      const double length = std::sqrt(squares);
      for (std::int64_t i = 0; i < d; ++i) unit(i, r) = length > 0 ? unit(i, r) / length : 0.0;
    }
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t c = p * kPanel, width = std::min(kPanel, d - c);
      sum.block(c, c, d - c, width).noalias() +=
          unit.middleRows(c, d - c) * unit.middleRows(c, width).transpose();
    }
  }
  gram.resize(static_cast<std::size_t>(d * d));
  double squares = 0;
  for (std::int64_t i = 0; i < d; ++i) {
    for (std::int64_t j = 0; j < d; ++j) {
      const double g = sum(std::max(i, j), std::min(i, j));
      gram[i * d + j] = g;
      squares += g * g;
    }
  }
  norm = std::sqrt(squares) / static_cast<double>(d_vocab);
  if (!(norm > 0) || !std::isfinite(norm)) {
    fail("token energy: the unembedding has no finite, non-zero rows");
  }
}

double EnergyBasis::energy(std::span<const float> h) const {
  // Σ_i (u_i·ĥ)² = ĥᵀ (Σ u_i u_iᵀ) ĥ: the vocabulary is summed once, in the constructor.
  double squares = 0, form = 0;
  for (std::int64_t i = 0; i < d_model; ++i) {
    squares += static_cast<double>(h[i]) * h[i];
    double lane[4] = {};
    const double* row = gram.data() + i * d_model;
    std::int64_t j = 0;
    for (; j + 4 <= d_model; j += 4) {
      for (std::int64_t l = 0; l < 4; ++l) lane[l] += row[j + l] * h[j + l];
    }
    for (; j < d_model; ++j) lane[0] += row[j] * h[j];
    form += ((lane[0] + lane[2]) + (lane[1] + lane[3])) * h[i];
  }
  if (squares == 0) return 0.0;
  return std::sqrt(std::max(0.0, form) / squares / static_cast<double>(d_vocab)) / norm;
}

}  // namespace lamina
