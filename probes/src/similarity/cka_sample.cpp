#include "similarity/cka_sample.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

namespace lamina::cka {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
using Wide = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

double median(std::vector<double> x) {
  const std::size_t half = x.size() / 2;
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(half), x.end());
  const double upper = x[half];
  if (x.size() % 2 == 1) return upper;
  return (*std::max_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(half)) + upper) / 2;
}

// Squared distances above the diagonal, row after row.
std::vector<double> square_distances(const Wide& x) {
  const Eigen::Index n = x.rows();
  const Eigen::MatrixXd gram = x * x.transpose();
  std::vector<double> out;
  out.reserve(static_cast<std::size_t>(n * (n - 1) / 2));
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index j = i + 1; j < n; ++j) {
      out.push_back(std::max(gram(i, i) + gram(j, j) - 2 * gram(i, j), 0.0));
    }
  }
  return out;
}

struct Kernel {
  std::vector<double> above;  // the diagonal, which is 1
  Eigen::VectorXd row_sums;   // without the diagonal
};

}  // namespace

Sample::Sample(const Rows& rows, std::int64_t most) : most_(most), streams_(size(rows.streams())) {
  for (std::int64_t s = 0; s < rows.streams(); ++s) widths_.push_back(rows.width(s));
}

template <class Copy>
void Sample::offer(std::uint64_t key, const Copy& copy) {
  std::int64_t slot = count();
  if (slot == most_) {
    if (most_ == 0 || key >= entries_.front().key) return;
    std::pop_heap(entries_.begin(), entries_.end());
    slot = entries_.back().slot;
    entries_.pop_back();
  } else {
    for (std::size_t s = 0; s < streams_.size(); ++s) {
      streams_[s].resize(streams_[s].size() + size(widths_[s]));
    }
  }
  entries_.push_back({key, slot});
  std::push_heap(entries_.begin(), entries_.end());
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    std::copy_n(copy(static_cast<std::int64_t>(s)), widths_[s],
                streams_[s].data() + slot * widths_[s]);
  }
}

void Sample::add(const Rows& rows, std::int64_t first, std::int64_t count) {
  for (std::int64_t r = first; r < first + count; ++r) {
    offer(rows.key(r), [&](std::int64_t s) { return rows.row(s, r); });
  }
}

void Sample::merge(Sample& other) {
  for (const Entry& entry : other.entries_) {
    offer(entry.key, [&](std::int64_t s) {
      return other.streams_[size(s)].data() + entry.slot * widths_[size(s)];
    });
  }
  other.entries_.clear();
}

Sample::Result Sample::result(double bandwidth) const {
  const auto streams = static_cast<std::int64_t>(streams_.size());
  const std::int64_t n = count();
  Result out;
  out.cka = out.debiased = Eigen::MatrixXd::Constant(streams, streams, kNan);
  out.sigma.assign(size(streams), kNan);
  if (n < 2) return out;
  std::vector<Entry> order = entries_;
  std::sort(order.begin(), order.end());

  std::vector<Kernel> kernels(size(streams));
  for (std::int64_t s = 0; s < streams; ++s) {
    Wide x(n, widths_[size(s)]);
    for (std::int64_t r = 0; r < n; ++r) {
      x.row(r) = Eigen::Map<const Eigen::RowVectorXf>(
                     streams_[size(s)].data() + order[size(r)].slot * x.cols(), x.cols())
                     .cast<double>();
    }
    x.rowwise() -= x.colwise().mean().eval();
    Kernel& kernel = kernels[size(s)];
    kernel.above = square_distances(x);
    const double sigma = bandwidth * std::sqrt(median(kernel.above));
    if (!(sigma > 0)) continue;
    out.sigma[size(s)] = sigma;
    Eigen::Map<Eigen::ArrayXd> above(kernel.above.data(),
                                     static_cast<Eigen::Index>(kernel.above.size()));
    above = (above * (-1 / (2 * sigma * sigma))).exp();
    kernel.row_sums = Eigen::VectorXd::Zero(n);
    const double* k = kernel.above.data();
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j, ++k) {
        kernel.row_sums[i] += *k;
        kernel.row_sums[j] += *k;
      }
    }
  }

  // tr(HKHL), and the unbiased HSIC times n (n − 3), of two kernels.
  const auto m = static_cast<double>(n);
  const auto hsic = [&](const Kernel& a, const Kernel& b) {
    const auto entries = static_cast<Eigen::Index>(a.above.size());
    const double off = 2 * Eigen::Map<const Eigen::VectorXd>(a.above.data(), entries)
                               .dot(Eigen::Map<const Eigen::VectorXd>(b.above.data(), entries));
    const Eigen::ArrayXd ra = a.row_sums.array() + 1, rb = b.row_sums.array() + 1;
    const double biased = off + m - 2 / m * (ra * rb).sum() + ra.sum() * rb.sum() / (m * m);
    const double unbiased = off + a.row_sums.sum() * b.row_sums.sum() / ((m - 1) * (m - 2)) -
                            2 / (m - 2) * a.row_sums.dot(b.row_sums);
    return std::pair(biased, unbiased);
  };
  Eigen::MatrixXd biased = out.cka, unbiased = out.cka;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t a = 0; a < streams; ++a) {
    for (std::int64_t b = a; b < streams; ++b) {
      if (!(out.sigma[size(a)] > 0) || !(out.sigma[size(b)] > 0)) continue;
      const auto [with, without] = hsic(kernels[size(a)], kernels[size(b)]);
      biased(a, b) = biased(b, a) = with;
      unbiased(a, b) = unbiased(b, a) = without;
    }
  }
  for (std::int64_t a = 0; a < streams; ++a) {
    for (std::int64_t b = 0; b < streams; ++b) {
      out.cka(a, b) = biased(a, b) / std::sqrt(biased(a, a) * biased(b, b));
      if (n < 4 || !(unbiased(a, a) > 0) || !(unbiased(b, b) > 0)) continue;
      out.debiased(a, b) = unbiased(a, b) / std::sqrt(unbiased(a, a) * unbiased(b, b));
    }
  }
  for (std::int64_t a = 0; a < streams; ++a) {  // self = 1 without rounding
    if (!std::isnan(out.cka(a, a))) out.cka(a, a) = 1;
    if (!std::isnan(out.debiased(a, a))) out.debiased(a, a) = 1;
  }
  return out;
}

}  // namespace lamina::cka
