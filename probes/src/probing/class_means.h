#pragma once

#include <Eigen/Dense>
#include <cstdint>
#include <span>

namespace lamina::linear {

/// Directions of class means, [D, outputs]: class 1 minus class 0 for two classes, else each class
/// minus all other rows.
struct MeanDirections {
  Eigen::MatrixXd raw;
  Eigen::VectorXd midpoint;  // raw · (mean of the one + mean of the other)/2
  Eigen::MatrixXd whitened;  // Σ⁻¹·raw, Σ = (1 − ρ)·S + ρ·(tr S/D)·I, S the within-class covariance
};
/// `x`: [n, D] with every class present; ρ = `shrinkage` in (0, 1].
MeanDirections mean_directions(const Eigen::MatrixXd& x, std::span<const std::int32_t> labels,
                               std::int32_t classes, double shrinkage);

}  // namespace lamina::linear
