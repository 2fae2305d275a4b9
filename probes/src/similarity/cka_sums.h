#pragma once

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <cstdint>
#include <utility>
#include <vector>

#include "lamina/internal/product.h"
#include "similarity/cka_rows.h"

namespace lamina::cka {

using Pair = std::pair<std::int64_t, std::int64_t>;  // streams, first ≤ second

/// Sums of products of pairs of streams over rows that come in slabs of 1024. Rows are taken minus
/// the mean of the first slab; products of a slab are summed in float, slabs in double.
class Sums {
 public:
  static constexpr std::int64_t kSlab = 1024;
  Sums(const Rows& rows, std::vector<Pair> pairs, bool debiased);
  /// Bytes of the sums of one pair, and of everything else.
  static std::uint64_t pair_bytes(const Rows& rows, Pair pair);
  static std::uint64_t fixed_bytes(const Rows& rows, bool debiased);

  /// Adds rows first … first + count − 1, count ≤ kSlab.
  void add(const Rows& rows, std::int64_t first, std::int64_t count);
  void merge(Sums& other);

  std::int64_t rows() const { return n_; }
  const std::vector<Pair>& pairs() const { return pairs_; }
  /// XᵀY of centred columns, [width, width], of pair number p.
  Eigen::MatrixXd covariance(std::size_t p) const;
  /// Σ ‖x‖², and Σ ‖x‖²‖y‖² of a pair, of centred rows.
  double squares(std::int64_t stream) const;
  double square_products(std::size_t p) const;
  /// Σ ‖x‖² over the prompts' first tokens, of centred rows.
  double first_squares(std::int64_t stream) const;

 private:
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  struct Stream {
    bool used = false;
    Eigen::VectorXf shift;
    Eigen::VectorXd sum;        // Σ u, u = x − shift
    double square = 0;          // Σ ‖u‖²
    Eigen::VectorXd first_sum;  // the same of first tokens
    double first_square = 0;
    Matrix weighted;             // [streams, width] Σ_t ‖v_t‖² u_t over the other streams' v
    std::vector<float> columns;  // [width, kSlab] of the slab
    internal::Operand operand;
  };
  struct Scratch {  // of one thread
    std::vector<float> strip;
    std::vector<double> wide;
  };
  void prepare(const Rows& rows, std::int64_t count);
  void load(const Rows& rows, std::int64_t s, std::int64_t first, std::int64_t count);
  Eigen::VectorXd delta(std::int64_t stream) const;  // mean − shift
  void reshift(std::int64_t stream, const Eigen::VectorXf& shift);

  std::vector<Pair> pairs_;
  std::vector<Stream> streams_;
  std::vector<std::vector<double>> products_;  // [pair][width · width] Σ u vᵀ
  std::vector<double> square_products_;        // [pair] Σ ‖u‖²‖v‖²
  Matrix norms_;                               // [streams, kSlab] ‖u‖² of the slab
  std::vector<Scratch> scratch_;
  std::int64_t n_ = 0, first_n_ = 0;
  bool debiased_ = false;
};

}  // namespace lamina::cka
