#include "probing/linear_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina::linear {
namespace {

using Array = Eigen::ArrayXXd;

// The objective of fit_logistic at some parameters, and what its derivatives need.
class Logistic {
 public:
  Logistic(const Matrix& z, const Vector& squares, std::span<const std::int32_t> labels,
           std::int32_t classes, double strength)
      : z_(z),
        strength_(strength),
        n_(static_cast<double>(z.rows())),
        outputs_(classes == 2 ? 1 : classes) {
    target_ = Array::Zero(z.rows(), outputs_);
    for (Eigen::Index i = 0; i < z.rows(); ++i) {
      const std::int32_t label = labels[static_cast<std::size_t>(i)];
      if (outputs_ > 1) target_(i, label) = 1;
      if (outputs_ == 1) target_(i, 0) = label;
    }
    squares_ = squares.array() / n_;
  }

  /// Parameters [r + 1, C]; the last row is the biases.
  double value(const Matrix& theta) {
    const Eigen::Index r = z_.cols();
    Array scores = (z_ * theta.topRows(r)).array();
    scores.rowwise() += theta.row(r).array();
    double loss = 0;
    if (outputs_ == 1) {
      // log(1 + e^a) − y·a without overflow.
      const Array small = (-scores.abs()).exp();
      loss = (scores.max(0.0) + (1.0 + small).log() - target_ * scores).sum();
      p_ = (scores >= 0).select(1.0 / (1.0 + small), small / (1.0 + small));
    } else {
      const Eigen::ArrayXd top = scores.rowwise().maxCoeff();
      const Array shifted = scores.colwise() - top;
      p_ = shifted.exp();
      const Eigen::ArrayXd sums = p_.rowwise().sum();
      loss = sums.log().sum() - (shifted * target_).sum();
      p_.colwise() /= sums;
    }
    return loss / n_ + 0.5 * strength_ * theta.topRows(r).squaredNorm();
  }

  /// At the parameters value() was last asked for.
  Matrix gradient(const Matrix& theta) const { return slopes((p_ - target_).matrix(), theta); }
  Matrix hessian_times(const Matrix& v) const {
    const Eigen::Index r = z_.cols();
    Array a = (z_ * v.topRows(r)).array();
    a.rowwise() += v.row(r).array();
    if (outputs_ == 1) return slopes((p_ * (1.0 - p_) * a).matrix(), v);
    const Eigen::ArrayXd mean = (p_ * a).rowwise().sum();
    return slopes((p_ * (a.colwise() - mean)).matrix(), v);
  }
  /// The Hessian's diagonal if all rows had the mean of p(1 − p).
  Array diagonal() const {
    const Eigen::Index r = z_.cols();
    Array out(r + 1, outputs_);
    for (Eigen::Index c = 0; c < outputs_; ++c) {
      const double spread = std::max((p_.col(c) * (1.0 - p_.col(c))).mean(), 1e-12);
      out.col(c).head(r) = spread * squares_ + strength_;
      out(r, c) = spread;
    }
    return out;
  }

 private:
  // [Zᵀe; 1ᵀe]/n, with the penalty's part.
  Matrix slopes(const Matrix& e, const Matrix& theta) const {
    const Eigen::Index r = z_.cols();
    Matrix out(r + 1, outputs_);
    out.topRows(r).noalias() = z_.transpose() * e;
    out.row(r) = e.colwise().sum();
    out /= n_;
    out.topRows(r) += strength_ * theta.topRows(r);
    return out;
  }

  const Matrix& z_;
  double strength_, n_;
  Eigen::Index outputs_;
  Array target_, p_;
  Eigen::ArrayXd squares_;
};

double dot(const Matrix& a, const Matrix& b) {
  return a.cwiseProduct(b).sum();
}

// d with H·d ≈ −g.
Matrix newton_direction(const Logistic& model, const Matrix& g) {
  const Array diagonal = model.diagonal();
  Matrix d = Matrix::Zero(g.rows(), g.cols());
  Matrix residual = -g;
  Matrix z = (residual.array() / diagonal).matrix();
  Matrix p = z;
  double rz = dot(residual, z);
  const double start = g.norm();
  const double enough = start * std::min(0.1, std::sqrt(start));
  constexpr int kMost = 500;
  for (int i = 0; i < kMost && residual.norm() > enough; ++i) {
    const Matrix hp = model.hessian_times(p);
    const double curvature = dot(p, hp);
    if (!(curvature > 0)) break;
    const double step = rz / curvature;
    d += step * p;
    residual -= step * hp;
    z = (residual.array() / diagonal).matrix();
    const double next = dot(residual, z);
    p = z + (next / rz) * p;
    rz = next;
  }
  return d;
}

}  // namespace

void principal(const Matrix& symmetric, Eigen::Index dimension, Matrix& vectors, Vector& values) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric);
  if (solver.info() != Eigen::Success) fail("the eigendecomposition of the features failed");
  const Eigen::Index n = symmetric.rows();
  const double largest = n > 0 ? solver.eigenvalues()[n - 1] : 0.0;
  const double least = largest * static_cast<double>(std::max(n, dimension)) *
                       std::numeric_limits<double>::epsilon();
  Eigen::Index rank = 0;
  while (rank < n && solver.eigenvalues()[n - 1 - rank] > least) ++rank;
  vectors = solver.eigenvectors().rightCols(rank).rowwise().reverse();
  values = solver.eigenvalues().tail(rank).reverse();
}

Matrix Basis::project(const Matrix& x) const {
  Matrix standard = x.rowwise() - mean.transpose();
  standard.array().rowwise() *= inverse_scale.transpose().array();
  return standard * axes;
}

Matrix Basis::unproject(const Matrix& weight, Vector& bias) const {
  Matrix out = axes * weight;
  out.array().colwise() *= inverse_scale.array();
  bias -= out.transpose() * mean;
  return out;
}

Basis make_basis(const Matrix& train) {
  Basis basis;
  const auto n = static_cast<double>(train.rows());
  basis.mean = train.colwise().mean().transpose();
  Matrix x = train.rowwise() - basis.mean.transpose();
  // What is left of a constant after taking its mean away is rounding.
  const Vector largest = train.cwiseAbs().colwise().maxCoeff().transpose();
  basis.inverse_scale = Vector::Zero(x.cols());
  for (Eigen::Index i = 0; i < x.cols(); ++i) {
    const double scale = std::sqrt(x.col(i).squaredNorm() / n);
    if (scale > 1e-12 * largest[i]) {
      basis.inverse_scale[i] = 1.0 / scale;
    } else {
      ++basis.constant;
    }
  }
  x.array().rowwise() *= basis.inverse_scale.transpose().array();
  if (x.rows() <= x.cols()) {
    Matrix left;
    principal(x * x.transpose(), x.cols(), left, basis.squares);
    const Vector singular = basis.squares.cwiseSqrt();
    basis.rows = left * singular.asDiagonal();
    basis.axes = x.transpose() * (left * singular.cwiseInverse().asDiagonal());
  } else {
    principal(x.transpose() * x, x.rows(), basis.axes, basis.squares);
    basis.rows = x * basis.axes;
  }
  return basis;
}

std::vector<Fit> fit_ridge(const Basis& basis, const Vector& y, std::span<const double> strengths) {
  const auto n = static_cast<double>(y.size());
  const double mean = y.mean();
  const Vector moment = basis.rows.transpose() * (y.array() - mean).matrix();
  std::vector<Fit> fits;
  for (double strength : strengths) {
    Fit fit;
    fit.weight = (moment.array() / (basis.squares.array() + n * strength)).matrix();
    fit.bias = Vector::Constant(1, mean);
    fits.push_back(std::move(fit));
  }
  return fits;
}

std::vector<Fit> fit_logistic(const Basis& basis, std::span<const std::int32_t> labels,
                              std::int32_t classes, std::span<const double> strengths) {
  std::vector<std::size_t> order(strengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return strengths[a] > strengths[b]; });
  const Eigen::Index r = basis.rows.cols(), outputs = classes == 2 ? 1 : classes;
  std::vector<Fit> fits(strengths.size());
  Matrix theta = Matrix::Zero(r + 1, outputs);
  for (std::size_t which : order) {
    Logistic model(basis.rows, basis.squares, labels, classes, strengths[which]);
    double value = model.value(theta);
    Matrix gradient = model.gradient(theta);
    constexpr int kMost = 200;
    constexpr double kEnough = 1e-9;
    for (int i = 0; i < kMost && gradient.cwiseAbs().maxCoeff() > kEnough; ++i) {
      const Matrix direction = newton_direction(model, gradient);
      const double slope = dot(gradient, direction);
      if (!(slope < 0)) break;
      // Near the minimum the value cannot show the decrease any more: then the full step is taken.
      const double noise = 1e-14 * std::max(1.0, std::abs(value));
      double step = 1;
      Matrix next = theta + direction;
      double found = model.value(next);
      while (!(found <= value + 1e-4 * step * slope + noise) && step > 1e-10) {
        step /= 2;
        next = theta + step * direction;
        found = model.value(next);
      }
      theta = next;
      value = found;
      gradient = model.gradient(theta);
    }
    if (outputs > 1) theta.row(r).array() -= theta.row(r).mean();
    fits[which] = {theta.topRows(r), theta.row(r).transpose(), gradient.cwiseAbs().maxCoeff()};
  }
  return fits;
}

double log_loss(const Matrix& scores, std::span<const std::int32_t> labels) {
  double loss = 0;
  for (Eigen::Index i = 0; i < scores.rows(); ++i) {
    const std::int32_t label = labels[static_cast<std::size_t>(i)];
    if (scores.cols() == 1) {
      const double margin = label == 1 ? scores(i, 0) : -scores(i, 0);
      loss += std::max(-margin, 0.0) + std::log1p(std::exp(-std::abs(margin)));
    } else {
      const double top = scores.row(i).maxCoeff();
      loss += std::log((scores.row(i).array() - top).exp().sum()) + top - scores(i, label);
    }
  }
  return loss / static_cast<double>(scores.rows());
}

}  // namespace lamina::linear
