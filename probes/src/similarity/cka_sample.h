#pragma once

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "similarity/cka_rows.h"

namespace lamina::cka {

/// The rows with the smallest keys: a uniform sample that does not depend on the order of rows, so
/// the sample of parts together is that of the whole. Their RBF CKA, in double.
class Sample {
 public:
  Sample(const Rows& rows, std::int64_t most);
  void add(const Rows& rows, std::int64_t first, std::int64_t count);
  void merge(Sample& other);

  std::int64_t count() const { return static_cast<std::int64_t>(entries_.size()); }

  struct Result {
    Eigen::MatrixXd cka, debiased;  // [streams, streams]
    std::vector<double> sigma;      // [stream]
  };
  /// Gaussian kernels exp(−‖x − y‖²/2σ²), σ = bandwidth · median distance of two rows. NaN for
  /// fewer than 2 rows (debiased: 4), and for a stream whose median distance is 0.
  Result result(double bandwidth) const;

 private:
  struct Entry {
    std::uint64_t key;
    std::int64_t slot;
    bool operator<(const Entry& other) const { return key < other.key; }
  };
  template <class Copy>
  void offer(std::uint64_t key, const Copy& copy);

  std::int64_t most_;
  std::vector<std::int64_t> widths_;
  std::vector<Entry> entries_;               // a heap, the largest key on top
  std::vector<std::vector<float>> streams_;  // [stream][slot, width]
};

}  // namespace lamina::cka
