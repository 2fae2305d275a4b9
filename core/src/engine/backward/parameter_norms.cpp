#include "engine/backward/parameter_norms.h"

#include <Eigen/Core>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "family/family.h"

namespace lamina::backward {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstRows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

constexpr std::int64_t kStripe = 64;  // outputs whose gradients exist at once, per thread

ConstRows map(RowsView v, std::int64_t rows, std::int64_t columns) {
  return {v.data, rows, columns, Eigen::OuterStride<>(v.stride)};
}

double column_norm(RowsView g, std::int64_t rows, std::int64_t columns) {
  std::vector<double> sums(static_cast<std::size_t>(columns), 0.0);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < columns; ++i) {
      sums[static_cast<std::size_t>(i)] += g.data[r * g.stride + i];
    }
  }
  double squares = 0.0;
  for (const double s : sums) squares += s * s;
  return std::sqrt(squares);
}

double total(const std::vector<double>& parts) {
  return std::sqrt(std::accumulate(parts.begin(), parts.end(), 0.0));
}

}  // namespace

void ParameterNorms::linear(const std::string& weight, const std::string& bias, std::int64_t rows,
                            RowsView x, std::int64_t n_in, RowsView gradient, std::int64_t n_out,
                            bool has_bias) {
  const ConstRows inputs = map(x, rows, n_in), outputs = map(gradient, rows, n_out);
  const std::int64_t stripes = (n_out + kStripe - 1) / kStripe;
  std::vector<double> squares(static_cast<std::size_t>(stripes));
#pragma omp parallel for
  for (std::int64_t s = 0; s < stripes; ++s) {
    const std::int64_t first = s * kStripe, count = std::min(kStripe, n_out - first);
    const RowMajor stripe = outputs.middleCols(first, count).transpose() * inputs;
    squares[static_cast<std::size_t>(s)] = stripe.cast<double>().squaredNorm();
  }
  norms_[weight] = total(squares);
  if (has_bias) norms_[bias] = column_norm(gradient, rows, n_out);
}

void ParameterNorms::norm(const std::string& weight, const std::string& bias, std::int64_t rows,
                          std::int64_t d, const float* normalized, const float* gradient,
                          bool has_bias) {
  std::vector<float> product(static_cast<std::size_t>(rows * d));
  for (std::size_t i = 0; i < product.size(); ++i) product[i] = normalized[i] * gradient[i];
  norms_[weight] = column_norm({product.data(), d}, rows, d);
  if (has_bias) norms_[bias] = column_norm({gradient, d}, rows, d);
}

void ParameterNorms::rows(const std::string& tensor, std::span<const std::int32_t> index,
                          std::int64_t d, const float* gradient) {
  std::map<std::int32_t, std::vector<double>> sums;
  for (std::size_t r = 0; r < index.size(); ++r) {
    std::vector<double>& row = sums[index[r]];
    row.resize(static_cast<std::size_t>(d));
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] += gradient[r * static_cast<std::size_t>(d) + i];
    }
  }
  double squares = 0.0;
  for (const auto& [id, row] : sums) {
    for (const double v : row) squares += v * v;
  }
  norms_[tensor] = std::sqrt(squares);
}

void ParameterNorms::unembed(const std::string& tensor, const Unembed& u) {
  const ConstRows inputs(u.x, u.rows, u.d, Eigen::OuterStride<>(u.d));
  const ConstRows outputs(u.gradient, u.rows, u.vocabulary, Eigen::OuterStride<>(u.vocabulary));
  std::vector<std::int32_t> order(u.ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return u.ids[static_cast<std::size_t>(a)] < u.ids[static_cast<std::size_t>(b)];
  });
  const std::int64_t stripes = (u.vocabulary + kStripe - 1) / kStripe;
  std::vector<double> squares(static_cast<std::size_t>(stripes));
#pragma omp parallel for
  for (std::int64_t s = 0; s < stripes; ++s) {
    const std::int64_t first = s * kStripe, count = std::min(kStripe, u.vocabulary - first);
    RowMajor stripe = outputs.middleCols(first, count).transpose() * inputs;
    auto at = std::lower_bound(order.begin(), order.end(), first, [&](std::int32_t a, auto id) {
      return u.ids[static_cast<std::size_t>(a)] < id;
    });
    for (; at != order.end() && u.ids[static_cast<std::size_t>(*at)] < first + count; ++at) {
      stripe.row(u.ids[static_cast<std::size_t>(*at)] - first) +=
          Eigen::Map<const Eigen::RowVectorXf>(u.embed_gradient + std::int64_t{*at} * u.d, u.d);
    }
    squares[static_cast<std::size_t>(s)] = stripe.cast<double>().squaredNorm();
  }
  norms_[tensor] = total(squares);
  if (u.has_bias) {
    norms_["unembed.b"] = column_norm({u.gradient, u.vocabulary}, u.rows, u.vocabulary);
  }
}

std::vector<ParameterNorm> ParameterNorms::in_order(const ModelConfig& config) const {
  std::vector<ParameterNorm> all;
  for (const CanonicalTensor& tensor : canonical_tensors(config)) {
    const auto found = norms_.find(tensor.name);
    if (found == norms_.end()) continue;
    std::int32_t layer = -1;
    const char* begin = tensor.name.data();
    const auto [end, error] = std::from_chars(begin, begin + tensor.name.size(), layer);
    if (error != std::errc{}) layer = -1;
    all.push_back({tensor.name, layer, found->second});
  }
  return all;
}

}  // namespace lamina::backward
