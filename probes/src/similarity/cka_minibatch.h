#pragma once

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "lamina/internal/product.h"
#include "similarity/cka_rows.h"

namespace lamina::cka {

/// Unbiased HSIC with linear kernels of all pairs of streams, summed over minibatches of rows
/// (Nguyen, Raghu, Kornblith 2020), with what the standard error of their ratio needs.
class Minibatches {
 public:
  explicit Minibatches(const Rows& rows);
  /// One minibatch: rows first … first + count − 1, count ≥ 4.
  void add(const Rows& rows, std::int64_t first, std::int64_t count);
  void merge(Minibatches& other);

  std::int64_t batches() const { return batches_; }
  /// Mean HSIC of two streams.
  double hsic(std::int64_t a, std::int64_t b) const;
  /// hsic(a, b) / sqrt(hsic(a, a)·hsic(b, b)); NaN if a stream's own is not positive.
  double cka(std::int64_t a, std::int64_t b) const;
  /// Its standard error by the infinitesimal jackknife over minibatches; NaN for fewer than two.
  double error(std::int64_t a, std::int64_t b) const;
  /// Σ over all rows, and over first tokens, of ‖x − mean of the minibatch‖².
  double squares(std::int64_t stream) const { return squares_[stream]; }
  double first_squares(std::int64_t stream) const { return first_squares_[stream]; }

 private:
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  struct Scratch {  // of one thread
    std::vector<float> centred, strip;
    std::vector<double> sums;
    Eigen::VectorXd mean;
    Eigen::VectorXf shift;
    internal::Operand operand;
  };
  void kernel(const Rows& rows, std::int64_t stream, std::int64_t first, std::int64_t count,
              Scratch& scratch);

  std::int64_t batches_ = 0;
  // h_xy of a minibatch summed, and its products: h_xy², h_xy·h_xx (x the row), h_xx·h_yy.
  Matrix sum_, square_, with_row_, selves_;
  Eigen::VectorXd squares_, first_squares_;
  Floats kernels_;  // [streams, count (count − 1) / 2] of the minibatch, centred
  std::vector<Scratch> scratch_;
};

}  // namespace lamina::cka
