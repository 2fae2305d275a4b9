#include "lamina/probes/angular.h"

#include <Eigen/Dense>
#include <numbers>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kSmallestNorms = 1e-16;  // of two norms' product

std::int64_t pairs(std::int64_t layers) {
  return layers * (layers + 1) / 2;
}

}  // namespace

struct AngularProbe::Impl {
  TokenSums sums;  // pairs i < j in order of i, then j
};

AngularProbe::AngularProbe(const ModelConfig& config, TokenChoice choice)
    : config_(config), choice_(choice), impl_(std::make_unique<Impl>()) {
  check_choice(choice_);
  impl_->sums = TokenSums(pairs(config_.n_layers));
}
AngularProbe::~AngularProbe() = default;

std::vector<Site> AngularProbe::sites(const ModelConfig&) const {
  return stream_sites(config_);
}

std::unique_ptr<Probe> AngularProbe::fresh() const {
  return std::make_unique<AngularProbe>(config_, choice_);
}

void AngularProbe::observe(const ActivationBlock& block) {
  // Columns are the streams of one token. In double: near cos = 1 an error e of the cosine is one
  // of √(2e) in the angle, which products in float would show.
  using Streams = Eigen::MatrixXd;
  const std::int64_t d = config_.d_model, count = config_.n_layers + 1;
  std::vector<const float*> stream;
  for (Site site : stream_sites(config_))
    stream.push_back(site_rows(block, site, d, name()).data());
  impl_->sums.fold(name(), block, chosen_rows(block, choice_), [&](std::int64_t row, double* out) {
    thread_local Streams x, gram;
    x.resize(d, count);
    gram.resize(count, count);
    for (std::int64_t s = 0; s < count; ++s) {
      const float* values = stream[static_cast<std::size_t>(s)] + row * d;
      double* to = x.data() + s * d;
      for (std::int64_t i = 0; i < d; ++i) to[i] = values[i];
    }
    gram.setZero();
    gram.selfadjointView<Eigen::Lower>().rankUpdate(x.transpose());
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = i + 1; j < count; ++j) {
        const double norms = std::max(std::sqrt(gram(i, i) * gram(j, j)), kSmallestNorms);
        const double cosine = std::clamp(gram(j, i) / norms, -1.0, 1.0);
        *out++ = std::acos(cosine) * std::numbers::inv_pi;
      }
    }
  });
}

void AngularProbe::merge(Probe& other) {
  auto* from = dynamic_cast<AngularProbe*>(&other);
  if (from == nullptr || !(from->choice_ == choice_) ||
      from->impl_->sums.sum.size() != impl_->sums.sum.size()) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  impl_->sums.add(from->impl_->sums);
  from->impl_->sums = TokenSums(pairs(config_.n_layers));
}

AngularResults AngularProbe::results() const {
  const TokenSums& sums = impl_->sums;
  const std::int64_t layers = config_.n_layers;
  AngularResults r;
  r.tokens = sums.tokens;
  r.layers = layers;
  r.distance.assign(static_cast<std::size_t>(layers * layers),
                    std::numeric_limits<double>::quiet_NaN());
  std::size_t pair = 0;
  for (std::int64_t i = 0; i < layers; ++i) {
    for (std::int64_t n = 1; i + n <= layers; ++n) {
      r.distance[static_cast<std::size_t>(i * layers + n - 1)] = sums.mean(pair++);
    }
  }
  for (std::int64_t n = 1; n <= layers; ++n) {
    std::int32_t best = -1;
    double least = std::numeric_limits<double>::quiet_NaN();
    for (std::int64_t i = 0; i + n <= layers; ++i) {
      const double distance = r.distance[static_cast<std::size_t>(i * layers + n - 1)];
      if (std::isnan(distance) || !(best < 0 || distance < least)) continue;
      best = static_cast<std::int32_t>(i);
      least = distance;
    }
    r.first.push_back(best);
    r.least.push_back(least);
  }
  return r;
}

void AngularProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const AngularResults r = results();
  write_choice(file, choice_, r.tokens);
  write_layers(file, config_);
  file.axis("n", counting(r.layers, 1));
  file.dataset("distance", Names{"layer", "n"}, r.distance,
               "angle between the stream entering block `layer` and the stream n blocks later, "
               "arccos(cosine)/pi, mean over tokens; NaN beyond the last block",
               "1");
  file.dataset("prune_first", Names{"n"}, r.first,
               "first block of the n consecutive blocks over which the stream turns least",
               "layer");
  file.dataset("prune_distance", Names{"n"}, r.least, "their angular distance", "1");
}

}  // namespace lamina
