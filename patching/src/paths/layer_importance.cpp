#include "lamina/patching/layer_importance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double cosine(std::span<const float> x, std::span<const float> y) {
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += double{x[i]} * y[i];
    xx += double{x[i]} * x[i];
    yy += double{y[i]} * y[i];
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

// Σ f(w) over the entries of a matrix: rows in parallel, then added in order.
template <class Term>
double matrix_sum(const Model& model, const MatrixInfo& matrix, Term term) {
  constexpr std::int64_t kBlock = 32;  // rows, as the matrix is packed
  const std::int64_t blocks = (matrix.rows + kBlock - 1) / kBlock;
  std::vector<double> sums(size(blocks));
#pragma omp parallel
  {
    std::vector<float> rows(size(kBlock * matrix.columns));
#pragma omp for schedule(static)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t count = std::min(kBlock, matrix.rows - b * kBlock);
      const std::span<float> values(rows.data(), size(count * matrix.columns));
      model.matrix_rows(matrix.name, b * kBlock, count, values);
      double sum = 0;
      for (const float w : values) sum += term(double{w});
      sums[size(b)] = sum;
    }
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// Ranks from 1; equal values share the mean of their ranks.
std::vector<double> ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order,
                           [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> out(values.size());
  for (std::size_t i = 0; i < order.size();) {
    std::size_t end = i + 1;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (std::size_t j = i; j < end; ++j) out[order[j]] = 0.5 * static_cast<double>(i + 1 + end);
    i = end;
  }
  return out;
}

}  // namespace

std::vector<double> layer_input_metric(Forward& forward, const PathPrompts& prompts, bool last_only,
                                       std::uint64_t memory) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t d = config.d_model;
  std::vector<double> sums(size(config.n_layers));
  std::int64_t tokens = 0;
  const std::uint64_t per_token = std::max<std::uint64_t>(1, RunState::bytes_per_token(config));
  const std::int64_t most =
      std::min<std::int64_t>(1024, static_cast<std::int64_t>(memory / per_token));
  const auto finish = [&](const Batch& batch) {
    RunState state;
    RunOptions options;
    options.keep = &state;
    forward.run(batch, {}, options);
    std::vector<std::int64_t> rows;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t end = batch.offsets[size(p + 1)];
      for (std::int64_t t = last_only ? end - 1 : batch.offsets[size(p)]; t < end; ++t) {
        rows.push_back(t);
      }
    }
    for (std::int64_t l = 0; l < config.n_layers; ++l) {
      for (const std::int64_t t : rows) {
        const auto row = [&](std::int64_t layer) {
          return std::span<const float>(state.resid[size(layer)]).subspan(size(t * d), size(d));
        };
        sums[size(l)] -= cosine(row(l), row(l + 1));
      }
    }
    tokens += static_cast<std::int64_t>(rows.size());
  };
  Batch batch;
  for (const std::vector<std::int32_t>& ids : prompts.tokens) {
    if (batch.prompts() > 0 && batch.tokens() + static_cast<std::int64_t>(ids.size()) > most) {
      finish(batch);
      batch = {};
    }
    batch.add(ids);
  }
  if (batch.prompts() > 0) finish(batch);
  for (double& sum : sums) sum /= static_cast<double>(tokens);
  return sums;
}

std::vector<double> weight_outliers(const Model& model, bool two_sided) {
  std::vector<double> shares;
  for (std::int32_t layer = 0; layer < model.config().n_layers; ++layer) {
    const std::vector<MatrixInfo> matrices = model.layer_matrices(layer);
    double entries = 0, sum = 0, squares = 0, outliers = 0;
    for (const MatrixInfo& m : matrices) {
      entries += static_cast<double>(m.rows) * static_cast<double>(m.columns);
      sum += matrix_sum(model, m, [](double w) { return w; });
    }
    const double mean = sum / entries;
    for (const MatrixInfo& m : matrices) {
      squares += matrix_sum(model, m, [&](double w) { return (w - mean) * (w - mean); });
    }
    const double deviation = std::sqrt(squares / entries);
    for (const MatrixInfo& m : matrices) {
      outliers += matrix_sum(model, m, [&](double w) {
        const double z = two_sided ? std::abs(w - mean) : w - mean;
        return z > deviation ? 1.0 : 0.0;
      });
    }
    shares.push_back(outliers / entries);
  }
  return shares;
}

double rank_correlation(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) fail("rank_correlation: {} values against {}", a.size(), b.size());
  const std::vector<double> ra = ranks(a), rb = ranks(b);
  const double mean = 0.5 * (static_cast<double>(a.size()) + 1);
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < ra.size(); ++i) {
    ab += (ra[i] - mean) * (rb[i] - mean);
    aa += (ra[i] - mean) * (ra[i] - mean);
    bb += (rb[i] - mean) * (rb[i] - mean);
  }
  if (aa == 0 || bb == 0) return std::numeric_limits<double>::quiet_NaN();
  return ab / std::sqrt(aa * bb);
}

}  // namespace lamina
