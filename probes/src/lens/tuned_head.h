#pragma once

// The model's final norm and unembedding with their derivatives, for training tuned lenses. The
// scalar type is a parameter so that tests can compare derivatives with finite differences in
// double.

// Work is distributed over threads by the caller; Eigen's own threads would change the sums.
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/error.h"
#include "lamina/probes/readout.h"

namespace lamina::tuned {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Row = Eigen::Matrix<T, 1, Eigen::Dynamic>;

/// logits(x) = cap(U·norm(x) + c), one token a row.
template <class T>
struct Head {
  NormKind norm = NormKind::none;
  T epsilon = 0;
  T softcap = 0;          // 0 = none
  Row<T> gamma, beta;     // [D] what the norm multiplies by and adds
  Matrix<T> unembedding;  // [V, D]
  Row<T> bias;            // [V]

  std::int64_t d_model() const { return unembedding.cols(); }
  std::int64_t d_vocab() const { return unembedding.rows(); }
};

/// What the derivative needs of a forward evaluation of n rows.
template <class T>
struct HeadRows {
  Matrix<T> unit;                            // [n, D] rows divided by their scale, before γ
  Eigen::Array<T, Eigen::Dynamic, 1> scale;  // [n]
  Matrix<T> logits;                          // [n, V]
};

/// The head of a model, read through its readout: the norm's and the unembedding's biases are what
/// comes out where zero goes in.
template <class T>
Head<T> make_head(const ModelConfig& config, const Readout& readout) {
  const std::int64_t d = readout.d_model(), v = readout.d_vocab();
  Head<T> head;
  head.norm = config.final_norm ? config.norm : NormKind::none;
  head.epsilon = static_cast<T>(config.norm_eps);
  head.softcap = static_cast<T>(config.final_softcap);
  std::vector<float> zero(static_cast<std::size_t>(d)), row(zero.size());
  const auto as_row = [](const std::vector<float>& values) {
    return Eigen::Map<const Row<float>>(values.data(), static_cast<Eigen::Index>(values.size()))
        .template cast<T>()
        .eval();
  };
  readout.norm_weight(row);
  head.gamma = as_row(row);
  readout.final_norm(zero, row);
  head.beta = as_row(row);
  std::vector<float> logits(static_cast<std::size_t>(v));
  readout.unembed(zero, logits);
  head.bias = as_row(logits);
  if (head.softcap > 0) {
    const T cap = head.softcap;
    head.bias = head.bias.unaryExpr([cap](T z) { return cap * std::atanh(z / cap); }).eval();
  }
  if (!head.bias.allFinite()) fail("tuned lens: the model's output bias saturates its soft-cap");
  head.unembedding.resize(v, d);
  std::vector<float> part;
  constexpr std::int64_t kRows = 1024;
  for (std::int64_t first = 0; first < v; first += kRows) {
    const std::int64_t count = std::min(kRows, v - first);
    part.resize(static_cast<std::size_t>(count * d));
    readout.unembedding_rows(first, count, part);
    head.unembedding.middleRows(first, count) =
        Eigen::Map<const Matrix<float>>(part.data(), count, d).template cast<T>();
  }
  return head;
}

/// Logits of residual rows x [n, D].
template <class T>
void evaluate(const Head<T>& head, const Matrix<T>& x, HeadRows<T>& out) {
  const T d = static_cast<T>(head.d_model());
  out.unit = x;
  if (head.norm == NormKind::layer) out.unit.colwise() -= x.rowwise().mean();
  if (head.norm == NormKind::none) {
    out.scale.setOnes(x.rows());
  } else {
    out.scale = (out.unit.rowwise().squaredNorm().array() / d + head.epsilon).sqrt();
    out.unit.array().colwise() /= out.scale;
  }
  const Matrix<T> normed =
      ((out.unit.array().rowwise() * head.gamma.array()).rowwise() + head.beta.array()).matrix();
  out.logits.noalias() = normed * head.unembedding.transpose();
  out.logits.rowwise() += head.bias;
  if (head.softcap > 0) {
    out.logits = head.softcap * (out.logits.array() / head.softcap).tanh().matrix();
  }
}

/// Logits to log-probabilities (nats), row by row.
template <class T>
void log_softmax(Matrix<T>& logits) {
  for (Eigen::Index i = 0; i < logits.rows(); ++i) {
    auto row = logits.row(i).array();
    row -= row.maxCoeff();
    row -= static_cast<T>(std::log(row.exp().template cast<double>().sum()));
  }
}

/// Σ over rows of KL(p_final ‖ softmax(logits)), in nats. `log_final` [n, V] are log-probabilities;
/// the logits become log-probabilities.
template <class T>
double divergence(const Eigen::Ref<const Matrix<T>>& log_final, Matrix<T>& logits) {
  log_softmax(logits);
  double sum = 0;
  for (Eigen::Index i = 0; i < logits.rows(); ++i) {
    const auto f = log_final.row(i).array();
    sum += (f.exp() * (f - logits.row(i).array())).template cast<double>().sum();
  }
  return sum;
}

/// The same sum at residual rows x [n, D], and its derivative by x, to `slope` [n, D].
template <class T>
double divergence_and_slope(const Head<T>& head, const Eigen::Ref<const Matrix<T>>& log_final,
                            const Matrix<T>& x, HeadRows<T>& work, Matrix<T>& slope) {
  evaluate(head, x, work);
  Matrix<T> capped;  // z/c, which the cap's derivative 1 − (z/c)² needs
  if (head.softcap > 0) capped = work.logits / head.softcap;
  const double sum = divergence(log_final, work.logits);
  Matrix<T>& by_logits = work.logits;  // p_l − p_final
  by_logits = by_logits.array().exp() - log_final.array().exp();
  if (head.softcap > 0) by_logits.array() *= 1 - capped.array().square();

  slope.noalias() = by_logits * head.unembedding;
  slope.array().rowwise() *= head.gamma.array();
  if (head.norm == NormKind::none) return sum;
  // ∂/∂x of x̂ = (x − m)/s, with m = 0 for RMS: what changes s, and m, is taken out.
  const auto d = static_cast<T>(head.d_model());
  const Eigen::Array<T, Eigen::Dynamic, 1> along =
      (slope.array() * work.unit.array()).rowwise().sum() / d;
  if (head.norm == NormKind::layer) slope.colwise() -= slope.rowwise().mean().eval();
  slope.array() -= work.unit.array().colwise() * along;
  slope.array().colwise() /= work.scale;
  return sum;
}

}  // namespace lamina::tuned
