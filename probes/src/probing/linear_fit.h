#pragma once

// Regularised linear models on standardised features, in double. Everything here runs on the
// calling thread: callers that parallelise over fits get the same bits at any number of threads.

#include <Eigen/Dense>
#include <cstdint>
#include <span>
#include <vector>

namespace lamina::linear {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

/// Eigenvectors of a symmetric matrix, largest eigenvalue first, without those that are rounding:
/// at most `dimension`, or the matrix's size, times ε times the largest. Error if it fails.
void principal(const Matrix& symmetric, Eigen::Index dimension, Matrix& vectors, Vector& values);

/// Training rows, standardised and turned onto their principal axes. The axes span the rows, so a
/// penalised fit in these r ≤ min(n, D) coordinates is the fit in all D of them (r = rank), and
/// rowsᵀ·rows is diagonal: ridge regression at any strength costs one division per axis.
struct Basis {
  Vector mean, inverse_scale;  // [D]; 1/σ (population), 0 for constant features
  Matrix axes;                 // [D, r], orthonormal, in standardised features
  Vector squares;              // [r], largest first: squared singular values
  Matrix rows;                 // [n, r]
  std::int64_t constant = 0;   // features that do not vary

  /// Other rows [m, D] in the same coordinates: [m, r].
  Matrix project(const Matrix& x) const;
  /// Weights of the features as they are [D, C], and biases [C] that go with them.
  Matrix unproject(const Matrix& weight, Vector& bias) const;
};
/// `train`: [n, D], n ≥ 1. One eigendecomposition of the smaller of XXᵀ and XᵀX.
Basis make_basis(const Matrix& train);

/// Scores of rows z: z·weight + bias. `residual`: largest |∂objective| that the solver left.
struct Fit {
  Matrix weight;  // [r, C]
  Vector bias;    // [C]
  double residual = 0;
};

/// min (1/2n) Σ (y − ŷ)² + (λ/2) ‖w‖², intercept not penalised; one fit per strength λ. (With
/// scikit-learn's Ridge: alpha = n·λ.)
std::vector<Fit> fit_ridge(const Basis& basis, const Vector& y, std::span<const double> strengths);

/// min (1/n) Σ −log p(label) + (λ/2) ‖W‖², intercepts not penalised; one fit per strength λ, warm
/// started from the strongest down. Two classes: one score, of class 1; more: softmax over one
/// score per class, biases summing to 0. (With scikit-learn's LogisticRegression: C = 1/(n·λ).)
/// Newton steps by preconditioned conjugate gradients until every derivative is below 1e-9.
std::vector<Fit> fit_logistic(const Basis& basis, std::span<const std::int32_t> labels,
                              std::int32_t classes, std::span<const double> strengths);

/// −log p(label) of scores [n, C] as of fit_logistic, mean over rows.
double log_loss(const Matrix& scores, std::span<const std::int32_t> labels);

}  // namespace lamina::linear
