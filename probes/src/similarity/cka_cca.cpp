#include "similarity/cka_cca.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

namespace lamina::cka {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Spectrum {
  Eigen::VectorXd values;  // largest first
  Eigen::MatrixXd vectors;
};

Spectrum spectrum(const Eigen::MatrixXd& c) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(c);
  return {solver.eigenvalues().reverse(), solver.eigenvectors().rowwise().reverse()};
}

Whitening whiten(const Spectrum& s, Eigen::Index k) {
  const Eigen::VectorXd root = s.values.head(k).cwiseSqrt();
  return {s.vectors.leftCols(k) * root.cwiseInverse().asDiagonal(),
          s.vectors.leftCols(k) * root.asDiagonal()};
}

// Correlations, each at most 1; from the smaller of ZZᵀ and ZᵀZ.
Eigen::VectorXd correlations(const Eigen::MatrixXd& z) {
  const Eigen::MatrixXd square = z.rows() <= z.cols() ? Eigen::MatrixXd(z * z.transpose())
                                                      : Eigen::MatrixXd(z.transpose() * z);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(square, Eigen::EigenvaluesOnly);
  return solver.eigenvalues().cwiseMax(0.0).cwiseMin(1.0).cwiseSqrt();
}

// One side's weighted mean: the eigenvectors of ZZᵀ are that side's variates in its whitened basis.
double weighted(const Eigen::MatrixXd& z, const Eigen::MatrixXd& load, Eigen::Index correlated) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(z * z.transpose());
  const Eigen::Index k = std::min(correlated, z.rows());
  const Eigen::VectorXd rho = solver.eigenvalues().tail(k).cwiseMax(0.0).cwiseMin(1.0).cwiseSqrt();
  const Eigen::VectorXd alpha =
      (load * solver.eigenvectors().rightCols(k)).cwiseAbs().colwise().sum();
  return alpha.dot(rho) / alpha.sum();
}

}  // namespace

Whitening whiten_share(const Eigen::MatrixXd& c, double share) {
  const Spectrum s = spectrum(c);
  const double total = s.values.cwiseMax(0.0).sum();
  Eigen::Index k = 0;
  double kept = 0;
  while (k < s.values.size() && s.values[k] > 0 && (k == 0 || kept < share * total)) {
    kept += s.values[k++];
  }
  return whiten(s, k);
}

Whitening whiten_floor(const Eigen::MatrixXd& c, double floor) {
  const Spectrum s = spectrum(c);
  Eigen::Index k = 0;
  while (k < s.values.size() && s.values[k] > std::max(0.0, floor * s.values[0])) ++k;
  return whiten(s, k);
}

double mean_cca(const Whitening& x, const Whitening& y, const Eigen::MatrixXd& xy) {
  if (x.w.cols() == 0 || y.w.cols() == 0) return kNan;
  return correlations(x.w.transpose() * xy * y.w).mean();
}

Pwcca pwcca(const Whitening& x, const Whitening& y, const Eigen::MatrixXd& xy) {
  if (x.w.cols() == 0 || y.w.cols() == 0) return {kNan, kNan};
  const Eigen::MatrixXd z = x.w.transpose() * xy * y.w;
  return {weighted(z, x.load, y.w.cols()), weighted(z.transpose(), y.load, x.w.cols())};
}

}  // namespace lamina::cka
