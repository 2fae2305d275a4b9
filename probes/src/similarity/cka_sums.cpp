#include "similarity/cka_sums.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"

namespace lamina::cka {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

constexpr std::int64_t kStrip = 128;  // columns of x whose products a thread holds at a time

}  // namespace

Sums::Sums(const Rows& rows, std::vector<Pair> pairs, bool debiased)
    : pairs_(std::move(pairs)),
      streams_(size(rows.streams())),
      products_(pairs_.size()),
      square_products_(pairs_.size()),
      debiased_(debiased) {
  for (const Pair& pair : pairs_) {
    streams_[size(pair.first)].used = true;
    streams_[size(pair.second)].used = true;
  }
}

std::uint64_t Sums::pair_bytes(const Rows& rows, Pair pair) {
  return static_cast<std::uint64_t>(rows.width(pair.first)) *
         static_cast<std::uint64_t>(rows.width(pair.second)) * sizeof(double);
}

std::uint64_t Sums::fixed_bytes(const Rows& rows, bool debiased) {
  std::uint64_t bytes = 0;
  for (std::int64_t s = 0; s < rows.streams(); ++s) {
    const auto d = static_cast<std::uint64_t>(rows.width(s));
    bytes += 2 * d * kSlab * sizeof(float);  // columns and operand
    if (debiased) bytes += d * static_cast<std::uint64_t>(rows.streams()) * sizeof(double);
  }
  return bytes;
}

// One stream's slab: minus the shift, transposed, packed; its column sums and row norms.
void Sums::load(const Rows& rows, std::int64_t s, std::int64_t first, std::int64_t count) {
  Stream& stream = streams_[size(s)];
  const std::int64_t d = rows.width(s);
  if (n_ == 0) {
    for (std::int64_t t = 0; t < count; ++t) {
      stream.sum += Eigen::Map<const Eigen::VectorXf>(rows.row(s, first + t), d).cast<double>();
    }
    stream.shift = (stream.sum / static_cast<double>(count)).cast<float>();
    stream.sum.setZero();
  }
  constexpr std::int64_t kTile = 16;
  for (std::int64_t t0 = 0; t0 < count; t0 += kTile) {
    const std::int64_t t1 = std::min(count, t0 + kTile);
    for (std::int64_t i0 = 0; i0 < d; i0 += kTile) {
      const std::int64_t i1 = std::min(d, i0 + kTile);
      for (std::int64_t t = t0; t < t1; ++t) {
        const float* x = rows.row(s, first + t);
        for (std::int64_t i = i0; i < i1; ++i) {
          stream.columns[size(i * count + t)] = x[i] - stream.shift[i];
        }
      }
    }
  }
  stream.operand.set(stream.columns.data(), d);
  auto norms = norms_.row(s).head(count);
  norms.setZero();
  for (std::int64_t i = 0; i < d; ++i) {
    const Eigen::Map<const Eigen::RowVectorXf> column(stream.columns.data() + i * count, count);
    const auto wide = column.cast<double>();
    stream.sum[i] += wide.sum();
    norms.array() += wide.array().square();
  }
  stream.square += norms.sum();
  for (std::int64_t t = 0; t < count; ++t) {
    if (!rows.first(first + t)) continue;
    stream.first_square += norms[t];
    for (std::int64_t i = 0; i < d; ++i) {
      stream.first_sum[i] += static_cast<double>(stream.columns[size(i * count + t)]);
    }
  }
}

// All memory that a slab needs, outside of the parallel regions.
void Sums::prepare(const Rows& rows, std::int64_t count) {
  const auto streams = static_cast<std::int64_t>(streams_.size());
  if (n_ == 0) norms_ = Matrix::Zero(streams, kSlab);
  std::int64_t widest = 0;
  for (std::int64_t s = 0; s < streams; ++s) {
    Stream& stream = streams_[size(s)];
    const std::int64_t d = rows.width(s);
    widest = std::max(widest, d);
    if (!stream.used) continue;
    if (n_ == 0) {
      stream.shift = Eigen::VectorXf::Zero(d);
      stream.sum = stream.first_sum = Eigen::VectorXd::Zero(d);
      if (debiased_) stream.weighted = Matrix::Zero(streams, d);
    }
    stream.columns.resize(size(d * count));
    if (stream.operand.n_in() != count) stream.operand = internal::Operand(d, count);
  }
  for (std::size_t p = 0; n_ == 0 && p < pairs_.size(); ++p) {
    products_[p].assign(pair_bytes(rows, pairs_[p]) / sizeof(double), 0.0);
  }
  scratch_.resize(size(omp_get_max_threads()));
  for (Scratch& scratch : scratch_) {
    scratch.strip.resize(size(kStrip * widest));
    if (debiased_) scratch.wide.resize(size(widest * count));
  }
}

void Sums::add(const Rows& rows, std::int64_t first, std::int64_t count) {
  if (count == 0) return;
  const auto streams = static_cast<std::int64_t>(streams_.size());
  prepare(rows, count);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t s = 0; s < streams; ++s) {
    if (streams_[size(s)].used) load(rows, s, first, count);
  }
  if (debiased_) {
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t s = 0; s < streams; ++s) {
      Stream& stream = streams_[size(s)];
      if (!stream.used) continue;
      const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>
          columns(stream.columns.data(), rows.width(s), count);
      Eigen::Map<Matrix> wide(scratch_[size(omp_get_thread_num())].wide.data(), rows.width(s),
                              count);
      wide = columns.cast<double>();
      stream.weighted.noalias() += norms_.leftCols(count) * wide.transpose();
    }
  }
  const auto pairs = static_cast<std::int64_t>(pairs_.size());
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t p = 0; p < pairs; ++p) {
    const auto [a, b] = pairs_[size(p)];
    const std::int64_t dx = rows.width(a), dy = rows.width(b);
    float* const strip = scratch_[size(omp_get_thread_num())].strip.data();
    for (std::int64_t i = 0; i < dx; i += kStrip) {
      const std::int64_t some = std::min(kStrip, dx - i);
      internal::product(streams_[size(a)].columns.data() + i * count, count, some,
                        streams_[size(b)].operand, strip, dy);
      double* const to = products_[size(p)].data() + i * dy;
      for (std::int64_t k = 0; k < some * dy; ++k) to[k] += static_cast<double>(strip[k]);
    }
    if (debiased_) {
      square_products_[size(p)] += norms_.row(a).head(count).dot(norms_.row(b).head(count));
    }
  }
  n_ += count;
  for (std::int64_t t = 0; t < count; ++t) first_n_ += rows.first(first + t);
}

Eigen::VectorXd Sums::delta(std::int64_t stream) const {
  return streams_[size(stream)].sum / static_cast<double>(n_);
}

Eigen::MatrixXd Sums::covariance(std::size_t p) const {
  const auto [a, b] = pairs_[p];
  const Stream &x = streams_[size(a)], &y = streams_[size(b)];
  const Eigen::Map<const Matrix> products(products_[p].data(), x.sum.size(), y.sum.size());
  return products - x.sum * y.sum.transpose() / static_cast<double>(n_);
}

double Sums::squares(std::int64_t stream) const {
  const Stream& x = streams_[size(stream)];
  return x.square - x.sum.squaredNorm() / static_cast<double>(n_);
}

double Sums::first_squares(std::int64_t stream) const {
  const Stream& x = streams_[size(stream)];
  const Eigen::VectorXd d = delta(stream);
  return x.first_square - 2 * d.dot(x.first_sum) + static_cast<double>(first_n_) * d.squaredNorm();
}

// ‖x − m‖² = ‖u‖² − 2 δ·u + ‖δ‖² with δ = m − shift; the product of two, summed.
double Sums::square_products(std::size_t p) const {
  const auto [a, b] = pairs_[p];
  const Stream &x = streams_[size(a)], &y = streams_[size(b)];
  const Eigen::VectorXd dx = delta(a), dy = delta(b);
  const double xx = dx.squaredNorm(), yy = dy.squaredNorm(), n = static_cast<double>(n_);
  const Eigen::Map<const Matrix> products(products_[p].data(), dx.size(), dy.size());
  // Σu = nδ, so the terms in δ alone come to −4n·xx·yy + n·xx·yy.
  return square_products_[p] - 2 * y.weighted.row(a).dot(dy) - 2 * x.weighted.row(b).dot(dx) +
         yy * x.square + xx * y.square + 4 * dx.dot(products * dy) - 3 * n * xx * yy;
}

// Moves a stream to another shift: u' = u + e with e = old shift − new shift.
void Sums::reshift(std::int64_t stream, const Eigen::VectorXf& shift) {
  Stream& x = streams_[size(stream)];
  const Eigen::VectorXd e = x.shift.cast<double>() - shift.cast<double>();
  const double ee = e.squaredNorm(), n = static_cast<double>(n_);
  if (debiased_) {
    // Σ‖u'‖²‖v‖² = Σ‖u‖²‖v‖² + 2 e·Σ‖v‖²u + ‖e‖² Σ‖v‖², for pairs with itself both factors move.
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const auto [a, b] = pairs_[p];
      if (a != stream && b != stream) continue;
      if (a == b) {
        const Eigen::Map<const Matrix> uu(products_[p].data(), e.size(), e.size());
        square_products_[p] += 4 * x.weighted.row(a).dot(e) + 2 * ee * x.square +
                               4 * e.dot(uu * e) + 4 * ee * e.dot(x.sum) + n * ee * ee;
      } else {
        const std::int64_t other = a == stream ? b : a;
        square_products_[p] += 2 * x.weighted.row(other).dot(e) + ee * streams_[size(other)].square;
      }
    }
    // Σ‖u'‖² v of the other streams, which needs Σ u vᵀ.
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const auto [a, b] = pairs_[p];
      if (a == b || (a != stream && b != stream)) continue;
      Stream& other = streams_[size(a == stream ? b : a)];
      const Eigen::Map<const Matrix> products(products_[p].data(), streams_[size(a)].sum.size(),
                                              streams_[size(b)].sum.size());
      const Eigen::RowVectorXd eu = a == stream ? Eigen::RowVectorXd(e.transpose() * products)
                                                : Eigen::RowVectorXd((products * e).transpose());
      other.weighted.row(stream) += 2 * eu + ee * other.sum.transpose();
    }
    // Σ‖v‖² u' of this one, and of itself Σ‖u'‖² u'.
    for (std::size_t s = 0; s < streams_.size(); ++s) {
      if (!streams_[s].used || s == size(stream)) continue;
      x.weighted.row(static_cast<std::int64_t>(s)) += streams_[s].square * e.transpose();
    }
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      if (pairs_[p] != Pair{stream, stream}) continue;
      const Eigen::Map<const Matrix> uu(products_[p].data(), e.size(), e.size());
      x.weighted.row(stream) += (2 * uu * e + ee * x.sum).transpose() +
                                (x.square + 2 * e.dot(x.sum) + n * ee) * e.transpose();
    }
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const auto [a, b] = pairs_[p];
    Eigen::Map<Matrix> products(products_[p].data(), streams_[size(a)].sum.size(),
                                streams_[size(b)].sum.size());
    if (a == stream && b == stream) {
      products += e * x.sum.transpose() + x.sum * e.transpose() + n * e * e.transpose();
    } else if (a == stream) {
      products += e * streams_[size(b)].sum.transpose();
    } else if (b == stream) {
      products += streams_[size(a)].sum * e.transpose();
    }
  }
  const auto first_n = static_cast<double>(first_n_);
  x.first_square += 2 * e.dot(x.first_sum) + first_n * ee;
  x.first_sum += first_n * e;
  x.square += 2 * e.dot(x.sum) + n * ee;
  x.sum += n * e;
  x.shift = shift;
}

void Sums::merge(Sums& other) {
  if (other.n_ == 0) return;
  if (n_ == 0) {
    std::swap(*this, other);
    return;
  }
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    Stream& x = streams_[s];
    if (!x.used) continue;
    other.reshift(static_cast<std::int64_t>(s), x.shift);
    x.sum += other.streams_[s].sum;
    x.square += other.streams_[s].square;
    x.first_sum += other.streams_[s].first_sum;
    x.first_square += other.streams_[s].first_square;
  }
  for (std::size_t s = 0; debiased_ && s < streams_.size(); ++s) {
    if (streams_[s].used) streams_[s].weighted += other.streams_[s].weighted;
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    for (std::size_t i = 0; i < products_[p].size(); ++i) products_[p][i] += other.products_[p][i];
    square_products_[p] += other.square_products_[p];
    std::vector<double>().swap(other.products_[p]);
  }
  n_ += other.n_;
  first_n_ += other.first_n_;
}

}  // namespace lamina::cka
