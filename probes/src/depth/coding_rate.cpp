#include "lamina/probes/coding_rate.h"

#include <Eigen/Dense>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::int64_t kRows = 256;  // rows of one product: fixed, so that sums do not depend on
                                     // where blocks end

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// sum += rowsᵀ rows, lower triangle.
template <class Scalar>
void add_products(const Eigen::Ref<const Rows>& rows, Eigen::MatrixXd& sum) {
  using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::Index d = rows.cols();
  thread_local Matrix product;
  product.setZero(d, d);
  if constexpr (std::is_same_v<Scalar, float>) {
    product.template selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
  } else {
    const Matrix wide = rows.template cast<Scalar>().transpose();
    product.template selfadjointView<Eigen::Lower>().rankUpdate(wide);
  }
  for (Eigen::Index j = 0; j < d; ++j) {
    sum.col(j).tail(d - j) += product.col(j).tail(d - j).template cast<double>();
  }
}

}  // namespace

struct CodingRateProbe::Impl {
  std::int64_t tokens = 0;  // those held included
  std::int64_t held = 0;    // rows waiting for their product
  std::vector<Rows> waiting;
  std::vector<Eigen::MatrixXd> sum;  // [stream] ZᵀZ, lower triangle
  bool unit = true;

  Impl(std::int64_t streams, std::int64_t d, bool unit_rows) : unit(unit_rows) {
    for (std::int64_t s = 0; s < streams; ++s) {
      waiting.emplace_back(kRows, d);
      sum.emplace_back(Eigen::MatrixXd::Zero(d, d));
    }
  }
  void flush(std::size_t s, Eigen::MatrixXd& to) const {
    if (held == 0) return;
    if (unit) {
      add_products<float>(waiting[s].topRows(held), to);
    } else {
      add_products<double>(waiting[s].topRows(held), to);
    }
  }
  void flush_all() {
#pragma omp parallel for schedule(dynamic)
    for (std::size_t s = 0; s < sum.size(); ++s) flush(s, sum[s]);
    held = 0;
  }
};

CodingRateProbe::CodingRateProbe(const ModelConfig& config, CodingRateOptions options)
    : config_(config),
      options_(options),
      impl_(std::make_unique<Impl>(config.n_layers + 1, config.d_model, options.unit_rows)) {
  check_choice(options_.tokens);
  if (!(options_.epsilon > 0) || std::isinf(options_.epsilon)) {
    fail_usage("{}: epsilon must be a number above 0, got {}", name(), options_.epsilon);
  }
}
CodingRateProbe::~CodingRateProbe() = default;

std::vector<Site> CodingRateProbe::sites(const ModelConfig&) const {
  return stream_sites(config_);
}

std::unique_ptr<Probe> CodingRateProbe::fresh() const {
  return std::make_unique<CodingRateProbe>(config_, options_);
}

void CodingRateProbe::observe(const ActivationBlock& block) {
  Impl& s = *impl_;
  const std::int64_t d = config_.d_model;
  std::vector<const float*> stream;
  for (Site site : stream_sites(config_))
    stream.push_back(site_rows(block, site, d, name()).data());
  const std::vector<std::int64_t> rows = chosen_rows(block, options_.tokens);
  std::vector<std::int64_t> bad(stream.size(), -1);
  for (std::size_t first = 0; first < rows.size();) {
    const auto n = std::min<std::int64_t>(
        kRows - s.held, static_cast<std::int64_t>(rows.size()) - static_cast<std::int64_t>(first));
#pragma omp parallel for schedule(static)
    for (std::size_t k = 0; k < stream.size(); ++k) {
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t row = rows[first + size(i)];
        const Eigen::Map<const Eigen::RowVectorXf> x(stream[k] + row * d, d);
        const double norm = std::sqrt(x.cast<double>().squaredNorm());
        if (!std::isfinite(norm)) bad[k] = row;
        const double scale = !options_.unit_rows ? 1.0 : norm > 0 ? 1.0 / norm : 0.0;
        s.waiting[k].row(s.held + i) = (x.cast<double>() * scale).cast<float>();
      }
    }
    for (std::int64_t row : bad) {
      if (row < 0) continue;
      fail("{}: {}: the activations are not finite", name(), token_place(block, row));
    }
    s.held += n;
    s.tokens += n;
    first += size(n);
    if (s.held == kRows) s.flush_all();
  }
}

void CodingRateProbe::merge(Probe& other) {
  auto* from = dynamic_cast<CodingRateProbe*>(&other);
  if (from == nullptr || !(from->options_ == options_) ||
      from->impl_->sum.size() != impl_->sum.size() || from->config_.d_model != config_.d_model) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  if (impl_->tokens == 0) {
    std::swap(impl_, from->impl_);
    return;
  }
  impl_->flush_all();
  from->impl_->flush_all();
  for (std::size_t k = 0; k < impl_->sum.size(); ++k) impl_->sum[k] += from->impl_->sum[k];
  impl_->tokens += from->impl_->tokens;
  from->impl_ = std::make_unique<Impl>(config_.n_layers + 1, config_.d_model, options_.unit_rows);
}

CodingRateResults CodingRateProbe::results() const {
  const Impl& s = *impl_;
  CodingRateResults r;
  r.tokens = s.tokens;
  r.rate.assign(s.sum.size(), std::numeric_limits<double>::quiet_NaN());
  if (s.tokens == 0) return r;
  const double scale = static_cast<double>(config_.d_model) /
                       (static_cast<double>(s.tokens) * options_.epsilon * options_.epsilon);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t k = 0; k < s.sum.size(); ++k) {
    Eigen::MatrixXd matrix = s.sum[k];
    s.flush(k, matrix);
    matrix *= scale;
    matrix.diagonal().array() += 1.0;
    const Eigen::LLT<Eigen::MatrixXd, Eigen::Lower> llt(matrix);  // reads the lower triangle
    if (llt.info() != Eigen::Success) continue;  // numbers too large for double: NaN
    r.rate[k] = llt.matrixLLT().diagonal().array().log().sum();  // ½ · 2 Σ log
  }
  return r;
}

void CodingRateProbe::write(ResultFile& file) const {
  const CodingRateResults r = results();
  write_choice(file, options_.tokens, r.tokens);
  file.setting("epsilon", options_.epsilon);
  file.setting("rows", std::string(options_.unit_rows ? "scaled to norm 1" : "as they are"));
  file.setting("centred", std::string("no"));
  write_streams(file, config_);
  file.dataset("coding_rate", std::vector<std::string>{"stream"}, r.rate,
               "1/2 log det(I + d_model/(tokens * epsilon^2) Z'Z), Z [token, d_model] the residual "
               "stream",
               "nats");
}

}  // namespace lamina
