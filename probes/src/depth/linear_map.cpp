#include "lamina/probes/linear_map.h"

#include <Eigen/Dense>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

constexpr std::int64_t kRows = 256;  // rows of one product, wherever blocks end
constexpr double kSmallestNorm = 1e-8;
constexpr const char* kName = "depth_linear_map";

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Rows of several sites side by side, handed on 256 at a time.
class RowBuffer {
 public:
  RowBuffer(std::vector<Site> sites, std::int64_t width) : sites_(std::move(sites)), width_(width) {
    for (std::size_t s = 0; s < sites_.size(); ++s) rows_.emplace_back(width, kRows);
  }
  // Copies row `row` of the block as row `at`.
  void set(const ActivationBlock& block, std::int64_t row, std::int64_t at) {
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      const float* x = site_rows(block, sites_[s], width_, kName).data() + row * width_;
      for (std::int64_t i = 0; i < width_; ++i) rows_[s](i, at) = x[i];
      if (!rows_[s].col(at).allFinite()) {
        fail("{}: {}: {} is not finite", kName, token_place(block, row), site_name(sites_[s]));
      }
    }
  }
  // [width, rows] of one site.
  auto columns(std::int64_t site, std::int64_t count) const {
    return rows_[size(site)].leftCols(count);
  }
  std::span<const Site> sites() const { return sites_; }

 private:
  std::vector<Site> sites_;
  std::int64_t width_;
  std::vector<Matrix> rows_;
};

// What the fit of one source needs, and what came of it.
struct Source {
  Vector shift, sum;          // Σ (x − shift)
  Matrix xx;                  // Σ (x − shift)(x − shift)ᵀ
  std::vector<Matrix> xy;     // [target] Σ (x − shift)(y − shift)ᵀ; then the maps, [D, E]
  Vector mean, scale;         // of x: z = (x − mean)·scale
  std::vector<double> error;  // [target] Σ over held-out tokens
};
struct Targets {
  std::vector<Vector> shift, sum;  // [target]
  std::vector<double> error;       // of the mean
};

struct Fit {
  const LinearMapOptions& options;
  std::vector<Source> sources;  // of this group
  Targets targets;
  std::int64_t fit_tokens = 0, held_tokens = 0;

  bool held_out(std::int64_t prompt) const {
    return prompt % options.holdout == options.holdout - 1;
  }

  void add(const RowBuffer& x, const RowBuffer& y, std::int64_t n) {
    const auto count = static_cast<std::int64_t>(sources.size()),
               wide = static_cast<std::int64_t>(targets.sum.size());
    if (fit_tokens == 0) {  // the first row keeps the sums small
      for (std::int64_t s = 0; s < count; ++s) sources[size(s)].shift = x.columns(s, 1);
      for (std::int64_t t = 0; t < wide; ++t) targets.shift[size(t)] = y.columns(t, 1);
    }
    std::vector<Matrix> a(size(count)), b(size(wide));
#pragma omp parallel
    {
#pragma omp for schedule(static)
      for (std::int64_t s = 0; s < count; ++s) {
        Source& source = sources[size(s)];
        a[size(s)] = x.columns(s, n).colwise() - source.shift;
        source.sum += a[size(s)].rowwise().sum();
        source.xx.selfadjointView<Eigen::Lower>().rankUpdate(a[size(s)]);
      }
#pragma omp for schedule(static)
      for (std::int64_t t = 0; t < wide; ++t) {
        b[size(t)] = y.columns(t, n).colwise() - targets.shift[size(t)];
        targets.sum[size(t)] += b[size(t)].rowwise().sum();
      }
#pragma omp for schedule(dynamic)
      for (std::int64_t i = 0; i < count * wide; ++i) {
        sources[size(i / wide)].xy[size(i % wide)].noalias() +=
            a[size(i / wide)] * b[size(i % wide)].transpose();
      }
    }
    fit_tokens += n;
  }

  void solve() {
    const double n = static_cast<double>(fit_tokens);
    bool solved = true;
#pragma omp parallel for schedule(dynamic) reduction(&& : solved)
    for (std::size_t s = 0; s < sources.size(); ++s) {
      Source& source = sources[s];
      const Vector mean = source.sum / n;
      Matrix xx = source.xx.selfadjointView<Eigen::Lower>();
      xx = xx / n - mean * mean.transpose();
      const Vector variance = xx.diagonal().cwiseMax(0.0);
      // A coordinate that never changes says nothing: scale 0.
      source.scale = variance.unaryExpr([](double v) { return v > 0 ? 1.0 / std::sqrt(v) : 0.0; });
      source.mean = mean + source.shift;
      xx = source.scale.asDiagonal() * xx * source.scale.asDiagonal();
      xx.diagonal().array() += options.ridge;
      const Eigen::LLT<Matrix> llt(xx);
      if (llt.info() != Eigen::Success) solved = false;
      if (!solved) continue;
      for (std::size_t t = 0; t < source.xy.size(); ++t) {
        Matrix& xy = source.xy[t];
        xy = xy / n - mean * (targets.sum[t] / n).transpose();
        xy = source.scale.asDiagonal() * xy;
        llt.solveInPlace(xy);
        xy = source.scale.asDiagonal() * xy;  // now of x − mean
      }
      source.xx.resize(0, 0);
    }
    if (!solved) {
      fail(
          "{}: the correlations of {} tokens cannot be solved with a ridge of {}; give a larger "
          "one",
          kName, fit_tokens, options.ridge);
    }
    for (std::size_t t = 0; t < targets.sum.size(); ++t) {
      targets.shift[t] += targets.sum[t] / n;  // now the mean
    }
  }

  void measure(const RowBuffer& x, const RowBuffer& y, std::int64_t n) {
    const auto count = static_cast<std::int64_t>(sources.size()),
               wide = static_cast<std::int64_t>(targets.sum.size());
    std::vector<Matrix> b(size(wide));
    std::vector<Vector> norm(size(wide));
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < wide; ++t) {
      b[size(t)] = y.columns(t, n).colwise() - targets.shift[size(t)];
      norm[size(t)] = y.columns(t, n).colwise().norm().transpose().cwiseMax(kSmallestNorm);
      for (std::int64_t i = 0; i < n; ++i) {
        targets.error[size(t)] += b[size(t)].col(i).norm() / norm[size(t)][i];
      }
    }
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count * wide; ++i) {
      Source& source = sources[size(i / wide)];
      const std::size_t t = size(i % wide);
      Matrix missing = -b[t];
      missing.noalias() +=
          source.xy[t].transpose() * (x.columns(i / wide, n).colwise() - source.mean);
      for (std::int64_t k = 0; k < n; ++k) source.error[t] += missing.col(k).norm() / norm[t][k];
    }
    held_tokens += n;
  }

  // One pass over the prompts of one side of the split.
  template <class Use>
  void run(const PairPass& pass, RowBuffer& x, RowBuffer& y, bool held, Use&& use) {
    std::int64_t waiting = 0;
    pass(x.sites(), y.sites(), [&](const ActivationBlock& source, const ActivationBlock& target) {
      if (source.batch.offsets != target.batch.offsets || source.batch.ids != target.batch.ids) {
        fail("{}: the models did not read the same tokens from prompt {} on", kName,
             source.first_prompt);
      }
      for (std::int64_t p = 0; p < source.batch.prompts(); ++p) {
        if (held_out(source.first_prompt + p) != held) continue;
        for (std::int64_t i = options.skip; i < source.batch.length(p); ++i) {
          const std::int64_t row = source.batch.offsets[size(p)] + i;
          x.set(source, row, waiting);
          y.set(target, row, waiting);
          if (++waiting < kRows) continue;
          use(waiting);
          waiting = 0;
        }
      }
    });
    if (waiting > 0) use(waiting);
  }
};

void check(const LinearMapOptions& options) {
  if (!(options.ridge > 0) || std::isinf(options.ridge)) {
    fail_usage("{}: the ridge must be a number above 0, got {}", kName, options.ridge);
  }
  if (options.holdout < 2) {
    fail_usage("{}: one prompt in how many is held out: expected 2 or more, got {}", kName,
               options.holdout);
  }
  check_choice({options.skip, 1});
}

}  // namespace

std::vector<std::int32_t> LinearMapResults::best() const {
  std::vector<std::int32_t> out;
  for (std::int64_t t = 0; t < targets; ++t) {
    std::int64_t least = 0;
    for (std::int64_t s = 1; s < sources; ++s) {
      if (error[size(s * targets + t)] < error[size(least * targets + t)]) least = s;
    }
    out.push_back(static_cast<std::int32_t>(least));
  }
  return out;
}

LinearMapResults fit_linear_maps(const ModelConfig& source, const ModelConfig& target,
                                 const PairPass& pass, const LinearMapOptions& options) {
  check(options);
  const std::int64_t d = source.d_model, e = target.d_model;
  const std::vector<Site> from = stream_sites(source), to = stream_sites(target);
  LinearMapResults r;
  r.sources = static_cast<std::int64_t>(from.size());
  r.targets = static_cast<std::int64_t>(to.size());
  const auto bytes = static_cast<std::uint64_t>(8 * d * (d + r.targets * e));
  const std::int64_t group =
      std::clamp<std::int64_t>(static_cast<std::int64_t>(options.memory / bytes), 1, r.sources);
  for (std::int64_t first = 0; first < r.sources; first += group) {
    const std::int64_t count = std::min(group, r.sources - first);
    Fit fit{options, {}, {}};
    for (std::int64_t s = 0; s < count; ++s) {
      Source& one = fit.sources.emplace_back();
      one.sum = Vector::Zero(d);
      one.xx = Matrix::Zero(d, d);
      one.xy.assign(to.size(), Matrix::Zero(d, e));
      one.error.assign(to.size(), 0.0);
    }
    fit.targets.shift.resize(to.size());
    fit.targets.sum.assign(to.size(), Vector::Zero(e));
    fit.targets.error.assign(to.size(), 0.0);
    RowBuffer x({from.begin() + first, from.begin() + first + count}, d), y(to, e);
    fit.run(pass, x, y, false, [&](std::int64_t n) { fit.add(x, y, n); });
    if (fit.fit_tokens == 0) {
      fail("{}: no tokens are left to fit the maps on ({} tokens of every prompt skipped)", kName,
           options.skip);
    }
    fit.solve();
    fit.run(pass, x, y, true, [&](std::int64_t n) { fit.measure(x, y, n); });
    if (fit.held_tokens == 0) {
      fail(
          "{}: no tokens are left to measure the maps on: one prompt in {} is held out, the "
          "first is number {}",
          kName, options.holdout, options.holdout);
    }
    for (const Source& one : fit.sources) {
      for (double sum : one.error) {
        r.error.push_back(sum / static_cast<double>(fit.held_tokens));
      }
    }
    r.passes += 2;
    if (first > 0) continue;
    r.fit_tokens = fit.fit_tokens;
    r.held_tokens = fit.held_tokens;
    for (double sum : fit.targets.error) {
      r.mean_error.push_back(sum / static_cast<double>(fit.held_tokens));
    }
  }
  return r;
}

void write_linear_maps(ResultFile& file, const LinearMapResults& r, const LinearMapOptions& options,
                       const ModelConfig& source, const ModelConfig& target) {
  using Names = std::vector<std::string>;
  file.setting("ridge", options.ridge);
  file.setting("holdout", options.holdout);
  file.setting("skip", options.skip);
  file.setting("fit_tokens", r.fit_tokens);
  file.setting("held_tokens", r.held_tokens);
  file.axis("source", stream_labels(source));
  file.axis("target", stream_labels(target));
  file.dataset("error", Names{"source", "target"}, r.error,
               "norm of (W x + b - y) over norm of y, mean over held-out tokens: x the source's "
               "stream, y the target's",
               "1");
  file.dataset("mean_error", Names{"target"}, r.mean_error,
               "the same if b is the mean of y and W is 0", "1");
  file.dataset("best_source", Names{"target"}, r.best(),
               "source stream with the least error: 0 = embed, l + 1 = leaving layer l", "stream");
}

}  // namespace lamina
