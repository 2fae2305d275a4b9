#include "similarity/cka_minibatch.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace lamina::cka {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

constexpr std::int64_t kStrip = 64;    // rows of a kernel matrix made at a time
constexpr std::int64_t kPiece = 1024;  // kernel entries whose products are summed in float

}  // namespace

Minibatches::Minibatches(const Rows& rows) {
  const std::int64_t s = rows.streams();
  sum_ = square_ = with_row_ = selves_ = Matrix::Zero(s, s);
  squares_ = first_squares_ = Eigen::VectorXd::Zero(s);
}

// The linear kernel matrix above its diagonal, centred so that plain sums of products are unbiased
// HSIC (U-centring: Székely, Rizzo 2014).
void Minibatches::kernel(const Rows& rows, std::int64_t stream, std::int64_t first,
                         std::int64_t count, Scratch& scratch) {
  const std::int64_t d = rows.width(stream);
  // Centring the rows first keeps the kernel's values small; it does not change the result.
  float *const centred = scratch.centred.data(), *const strip = scratch.strip.data();
  const std::int64_t stride = scratch.operand.n_in();  // the widest stream's width
  auto mean = scratch.mean.head(d);
  auto shift = scratch.shift.head(d);
  mean.setZero();
  for (std::int64_t t = 0; t < count; ++t) {
    mean += Eigen::Map<const Eigen::VectorXf>(rows.row(stream, first + t), d).cast<double>();
  }
  shift = (mean / static_cast<double>(count)).cast<float>();
  for (std::int64_t t = 0; t < count; ++t) {
    Eigen::Map<Eigen::VectorXf> row(centred + t * stride, stride);
    row.head(d) = Eigen::Map<const Eigen::VectorXf>(rows.row(stream, first + t), d) - shift;
    row.tail(stride - d).setZero();
  }

  float* const packed = kernels_.row(stream).data();
  const auto row_of = [&](std::int64_t i) {  // entries (i, i + 1 …)
    return packed + i * (2 * count - i - 1) / 2;
  };
  double* const row_sum = scratch.sums.data();
  std::fill_n(row_sum, count, 0.0);
  for (std::int64_t c0 = 0; c0 < count; c0 += kStrip) {  // columns c0 … c1 − 1 of rows 0 … c1 − 1
    const std::int64_t c1 = std::min(count, c0 + kStrip), wide = c1 - c0;
    scratch.operand.set(centred + c0 * stride, wide);
    internal::product(centred, stride, c1, scratch.operand, strip, kStrip);
    for (std::int64_t i = 0; i < c1; ++i) {
      const float* k = strip + i * kStrip - c0;
      const std::int64_t j0 = std::max(c0, i + 1);
      if (j0 < c1) std::copy(k + j0, k + c1, row_of(i) + (j0 - i - 1));
      if (i >= c0) {
        squares_[stream] += static_cast<double>(k[i]);
        if (rows.first(first + i)) first_squares_[stream] += static_cast<double>(k[i]);
      }
    }
  }
  const Eigen::Map<Eigen::VectorXd> sums(row_sum, count);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t after = count - i - 1;
    const Eigen::Map<const Eigen::VectorXf> k(row_of(i), after);
    Eigen::Map<Eigen::VectorXd> rest(row_sum + i + 1, after);
    const auto exact = k.cast<double>();
    row_sum[i] += exact.sum();
    rest += exact;
  }
  const auto n = static_cast<double>(count);
  const double total = sums.sum() / ((n - 1) * (n - 2));
  Eigen::Map<Eigen::VectorXf> offset(strip, count);
  offset = (sums.array() / (n - 2) - total / 2).cast<float>();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t after = count - i - 1;
    Eigen::Map<Eigen::ArrayXf> k(row_of(i), after);
    k -= offset[i] + offset.tail(after).array();
  }
}

void Minibatches::add(const Rows& rows, std::int64_t first, std::int64_t count) {
  const std::int64_t streams = rows.streams(), entries = count * (count - 1) / 2;
  std::int64_t widest = 0;
  for (std::int64_t s = 0; s < streams; ++s) widest = std::max(widest, rows.width(s));
  if (kernels_.cols() != entries) kernels_.resize(streams, entries);
  scratch_.resize(size(omp_get_max_threads()));
  for (Scratch& scratch : scratch_) {
    scratch.centred.resize(size(count * widest));
    scratch.strip.resize(size(count * kStrip));
    scratch.sums.resize(size(count));
    scratch.mean.resize(widest);
    scratch.shift.resize(widest);
    if (scratch.operand.n_in() != widest) scratch.operand = internal::Operand(kStrip, widest);
  }
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t s = 0; s < streams; ++s) {
    kernel(rows, s, first, count, scratch_[size(omp_get_thread_num())]);
  }

  const std::int64_t pieces = (entries + kPiece - 1) / kPiece;
  std::vector<Floats> parts(size(pieces), Floats(streams, streams));
#pragma omp parallel for schedule(static)
  for (std::int64_t p = 0; p < pieces; ++p) {
    const auto some = kernels_.middleCols(p * kPiece, std::min(kPiece, entries - p * kPiece));
    parts[size(p)].noalias() = some * some.transpose();
  }
  Matrix h = Matrix::Zero(streams, streams);
  for (const Floats& part : parts) h += part.cast<double>();
  const auto n = static_cast<double>(count);
  h = ((h + h.transpose()) / (n * (n - 3))).eval();  // 2/(n (n − 3)) of their mean
  const Eigen::ArrayXd self = h.diagonal().array();
  sum_ += h;
  square_.array() += h.array().square();
  with_row_.array() += h.array().colwise() * self;
  selves_ += self.matrix() * self.matrix().transpose();
  ++batches_;
}

void Minibatches::merge(Minibatches& other) {
  sum_ += other.sum_;
  square_ += other.square_;
  with_row_ += other.with_row_;
  selves_ += other.selves_;
  squares_ += other.squares_;
  first_squares_ += other.first_squares_;
  batches_ += other.batches_;
}

double Minibatches::hsic(std::int64_t a, std::int64_t b) const {
  return sum_(a, b) / static_cast<double>(batches_);
}

double Minibatches::cka(std::int64_t a, std::int64_t b) const {
  const double xx = sum_(a, a), yy = sum_(b, b);
  if (!(xx > 0) || !(yy > 0)) return std::numeric_limits<double>::quiet_NaN();
  return a == b ? 1.0 : sum_(a, b) / std::sqrt(xx * yy);
}

// Of r = xy/√(xx·yy) one minibatch's part is r·(h_xy/xy − h_xx/2xx − h_yy/2yy), with means xy …;
// these parts sum to zero, their variance over the number of minibatches is that of r.
double Minibatches::error(std::int64_t a, std::int64_t b) const {
  const double r = cka(a, b), m = static_cast<double>(batches_);
  if (batches_ < 2 || std::isnan(r)) return std::numeric_limits<double>::quiet_NaN();
  if (a == b) return 0;
  const double xx = hsic(a, a), yy = hsic(b, b), root = std::sqrt(xx * yy);
  // Written in units of √(xx·yy), xx and yy, so that r = 0 is no special case.
  const double p = 1 / root, q = -r / (2 * xx), s = -r / (2 * yy);
  const double sum = p * p * square_(a, b) + q * q * square_(a, a) + s * s * square_(b, b) +
                     2 * p * q * with_row_(a, b) + 2 * p * s * with_row_(b, a) +
                     2 * q * s * selves_(a, b);
  return std::sqrt(std::max(sum, 0.0) / (m * (m - 1)));
}

}  // namespace lamina::cka
