#include "lamina/probes/growth.h"

#include <array>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

enum : std::size_t { kNorm, kRms, kVariance, kMean, kSquare, kColumns };

void moments(const float* x, std::int64_t d, double* out) {
  constexpr std::int64_t kLanes = 8;
  std::array<double, kLanes> sum{}, squares{};
  const auto add = [&](std::int64_t i, std::int64_t j) {
    const double v = x[i];
    sum[static_cast<std::size_t>(j)] += v;
    squares[static_cast<std::size_t>(j)] += v * v;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (; i < d; ++i) add(i, i % kLanes);
  const auto total = [](const std::array<double, kLanes>& a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  };
  const double n = static_cast<double>(d), square = total(squares) / n;
  const double mean = total(sum) / n;
  out[kNorm] = std::sqrt(square * n);
  out[kRms] = std::sqrt(square);
  out[kVariance] = std::max(0.0, square - mean * mean);
  out[kMean] = mean;
  out[kSquare] = square;
}

}  // namespace

struct GrowthProbe::Impl {
  TokenSums sums;
};

GrowthProbe::GrowthProbe(const ModelConfig& config, TokenChoice choice)
    : config_(config), choice_(choice), impl_(std::make_unique<Impl>()) {
  check_choice(choice_);
  impl_->sums = TokenSums((config_.n_layers + 1) * static_cast<std::int64_t>(kColumns));
}
GrowthProbe::~GrowthProbe() = default;

std::vector<Site> GrowthProbe::sites(const ModelConfig&) const {
  return stream_sites(config_);
}

std::unique_ptr<Probe> GrowthProbe::fresh() const {
  return std::make_unique<GrowthProbe>(config_, choice_);
}

void GrowthProbe::observe(const ActivationBlock& block) {
  const std::int64_t d = config_.d_model;
  std::vector<const float*> stream;
  for (Site site : stream_sites(config_))
    stream.push_back(site_rows(block, site, d, name()).data());
  impl_->sums.fold(name(), block, chosen_rows(block, choice_), [&](std::int64_t row, double* out) {
    for (const float* values : stream) {
      moments(values + row * d, d, out);
      out += kColumns;
    }
  });
}

void GrowthProbe::merge(Probe& other) {
  auto* from = dynamic_cast<GrowthProbe*>(&other);
  if (from == nullptr || !(from->choice_ == choice_) ||
      from->impl_->sums.sum.size() != impl_->sums.sum.size()) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  impl_->sums.add(from->impl_->sums);
  from->impl_->sums = TokenSums((config_.n_layers + 1) * static_cast<std::int64_t>(kColumns));
}

GrowthResults GrowthProbe::results() const {
  const TokenSums& sums = impl_->sums;
  GrowthResults r;
  r.tokens = sums.tokens;
  for (std::size_t s = 0; s <= static_cast<std::size_t>(config_.n_layers); ++s) {
    const std::size_t i = s * kColumns;
    const double mean = sums.mean(i + kMean);
    r.norm.push_back(sums.mean(i + kNorm));
    r.norm_max.push_back(sums.maximum(i + kNorm));
    r.rms.push_back(sums.mean(i + kRms));
    r.variance.push_back(sums.mean(i + kVariance));
    r.pooled_variance.push_back(sums.mean(i + kSquare) - mean * mean);
    r.growth.push_back(r.variance.back() / r.variance.front());
  }
  return r;
}

void GrowthProbe::write(ResultFile& file) const {
  const GrowthResults r = results();
  write_choice(file, choice_, r.tokens);
  write_streams(file, config_);
  const auto put = [&](const char* name, const std::vector<double>& values, const char* what,
                       const char* units) {
    file.dataset(name, std::vector<std::string>{"stream"}, values, what, units);
  };
  put("norm", r.norm, "Euclidean norm of the residual stream, mean over tokens", "");
  put("norm_max", r.norm_max, "its largest value", "");
  put("rms", r.rms, "norm over the square root of d_model, mean over tokens", "");
  put("variance", r.variance,
      "variance of a token's coordinates about their mean (divided by d_model), mean over tokens",
      "");
  put("pooled_variance", r.pooled_variance,
      "variance of the coordinates of all tokens about their one mean", "");
  put("growth", r.growth, "variance over that of the stream entering block 0", "1");
}

}  // namespace lamina
