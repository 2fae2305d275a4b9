#include <Eigen/Dense>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"
#include "lamina/probes/inflection.h"

namespace lamina {

struct SharedCka::Impl {
  using Matrix = Eigen::MatrixXd;
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  std::int64_t d = 0;
  double n = 0;
  Eigen::VectorXd shift_x, shift_y;  // the first row: keeps the sums small
  Eigen::VectorXd sum_x, sum_y;
  Matrix xx, yy, xy;  // Σ of products
};

SharedCka::SharedCka(std::int64_t d) : impl_(std::make_unique<Impl>()) {
  impl_->d = d;
  impl_->sum_x = impl_->sum_y = Eigen::VectorXd::Zero(d);
  impl_->xx = impl_->yy = impl_->xy = Eigen::MatrixXd::Zero(d, d);
}
SharedCka::~SharedCka() = default;
SharedCka::SharedCka(SharedCka&&) noexcept = default;

void SharedCka::add(std::span<const float> x, std::span<const float> y) {
  Impl& s = *impl_;
  const auto rows = static_cast<std::int64_t>(x.size()) / s.d;
  if (x.size() != y.size() || static_cast<std::size_t>(rows * s.d) != x.size()) {
    fail_usage("rows of {} and of {} values were given, rows of {} are needed", x.size(), y.size(),
               s.d);
  }
  if (rows == 0) return;
  const Eigen::Map<const Impl::Rows> first(x.data(), rows, s.d), second(y.data(), rows, s.d);
  if (s.n == 0) {
    s.shift_x = first.row(0).cast<double>().transpose();
    s.shift_y = second.row(0).cast<double>().transpose();
  }
  const Impl::Matrix a = first.cast<double>().rowwise() - s.shift_x.transpose();
  const Impl::Matrix b = second.cast<double>().rowwise() - s.shift_y.transpose();
  s.sum_x += a.colwise().sum().transpose();
  s.sum_y += b.colwise().sum().transpose();
  s.xx.noalias() += a.transpose() * a;
  s.yy.noalias() += b.transpose() * b;
  s.xy.noalias() += a.transpose() * b;
  s.n += static_cast<double>(rows);
}

SharedCka::Result SharedCka::result(std::int64_t components, double variance) const {
  const Impl& s = *impl_;
  Result out;
  const double n = std::max(s.n, 1.0);
  const Impl::Matrix xx = s.xx - s.sum_x * s.sum_x.transpose() / n;
  const Impl::Matrix yy = s.yy - s.sum_y * s.sum_y.transpose() / n;
  const Impl::Matrix xy = s.xy - s.sum_x * s.sum_y.transpose() / n;
  const auto cka = [](const Impl::Matrix& a, const Impl::Matrix& b, const Impl::Matrix& ab) {
    const double scale = a.norm() * b.norm();
    return scale > 0 ? ab.squaredNorm() / scale : std::numeric_limits<double>::quiet_NaN();
  };
  out.full_cka = cka(xx, yy, xy);
  const Eigen::SelfAdjointEigenSolver<Impl::Matrix> solver(xx + yy);
  if (solver.info() != Eigen::Success) fail("the principal components did not converge");
  const Eigen::VectorXd values = solver.eigenvalues().cwiseMax(0.0);  // smallest first
  const double total = values.sum();
  double kept = 0;
  const auto most = static_cast<std::int32_t>(std::min<std::int64_t>(components, s.d));
  while (out.components < most && !(out.components > 0 && kept >= variance * total)) {
    kept += values[s.d - 1 - out.components++];
  }
  out.kept_variance = total > 0 ? kept / total : std::numeric_limits<double>::quiet_NaN();
  const Impl::Matrix basis = solver.eigenvectors().rightCols(out.components);
  out.cka = cka(basis.transpose() * xx * basis, basis.transpose() * yy * basis,
                basis.transpose() * xy * basis);
  return out;
}

}  // namespace lamina
