#include "probing/class_means.h"

namespace lamina::linear {
namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

// Σ⁻¹·d for Σ = a·WᵀW + b·I, through the smaller of WᵀW and WWᵀ (Woodbury).
Matrix solve(const Matrix& w, double a, double b, const Matrix& d) {
  if (w.cols() <= w.rows()) {
    Matrix sigma = a * (w.transpose() * w);
    sigma.diagonal().array() += b;
    return sigma.llt().solve(d);
  }
  Matrix inner = a * (w * w.transpose());
  inner.diagonal().array() += b;
  return (d - a * (w.transpose() * inner.llt().solve(w * d))) / b;
}

}  // namespace

MeanDirections mean_directions(const Matrix& x, std::span<const std::int32_t> labels,
                               std::int32_t classes, double shrinkage) {
  const Eigen::Index width = x.cols();
  Matrix sums = Matrix::Zero(width, classes);
  Vector counts = Vector::Zero(classes);
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    const std::int32_t c = labels[static_cast<std::size_t>(i)];
    sums.col(c) += x.row(i).transpose();
    counts[c] += 1;
  }
  const Matrix means = sums * counts.cwiseInverse().asDiagonal();
  const Vector all = sums.rowwise().sum();
  const double n = counts.sum();
  const Eigen::Index outputs = classes == 2 ? 1 : classes;
  MeanDirections out{Matrix(width, outputs), Vector(outputs), {}};
  for (Eigen::Index c = 0; c < outputs; ++c) {
    const Eigen::Index one = classes == 2 ? 1 : c;
    const Vector others = (all - sums.col(one)) / (n - counts[one]);
    out.raw.col(c) = means.col(one) - others;
    out.midpoint[c] = out.raw.col(c).dot(means.col(one) + others) / 2;
  }
  Matrix within = x;
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    within.row(i) -= means.col(labels[static_cast<std::size_t>(i)]).transpose();
  }
  const double freedom = std::max(n - classes, 1.0);
  const double average = within.squaredNorm() / freedom / static_cast<double>(width);
  if (average > 0) {
    out.whitened = solve(within, (1 - shrinkage) / freedom, shrinkage * average, out.raw);
  } else {
    out.whitened = out.raw;  // no spread within the classes: nothing to whiten
  }
  return out;
}

}  // namespace lamina::linear
