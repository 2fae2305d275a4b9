#include "lamina/probes/sparsity.h"

#include <Eigen/Dense>
#include <cmath>
#include <limits>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

}  // namespace

SparsityOptions default_sparsity(const ModelConfig& config) {
  SparsityOptions options;
  if (config.act == Activation::relu) return options;
  options.threshold = 0.1;
  options.relative = true;
  return options;
}

SparsityProbe::SparsityProbe(const ModelConfig& config, SparsityOptions options)
    : config_(config),
      options_(options),
      counts_(size(config.n_layers * std::max<std::int64_t>(config.d_mlp, 0))) {
  check_choice(options_.tokens);
  if (config_.d_mlp == 0) fail_usage("{}: this model has no MLPs", name());
  if (!(options_.threshold >= 0) || std::isinf(options_.threshold)) {
    fail_usage("{}: the threshold must be a number of 0 or more, got {}", name(),
               options_.threshold);
  }
}

std::vector<Site> SparsityProbe::sites(const ModelConfig&) const {
  std::vector<Site> sites;
  for (std::int32_t l = 0; l < config_.n_layers; ++l) sites.push_back({SiteKind::mlp_post, l});
  return sites;
}

std::unique_ptr<Probe> SparsityProbe::fresh() const {
  return std::make_unique<SparsityProbe>(config_, options_);
}

void SparsityProbe::observe(const ActivationBlock& block) {
  const std::int64_t m = config_.d_mlp, layers = config_.n_layers;
  const std::vector<std::int64_t> rows = chosen_rows(block, options_.tokens);
  std::vector<const float*> post;
  for (Site site : sites(config_)) post.push_back(site_rows(block, site, m, name()).data());
  std::vector<std::int64_t> bad(size(layers), -1);  // a row that is not finite
#pragma omp parallel for schedule(static)
  for (std::int64_t l = 0; l < layers; ++l) {
    using Row = Eigen::Map<const Eigen::ArrayXf>;
    std::vector<std::int32_t> active(size(m));  // of this block: at most its tokens
    for (std::int64_t row : rows) {
      const float* x = post[size(l)] + row * m;
      const double square = static_cast<double>(Row(x, m).square().sum());
      if (!std::isfinite(square)) {
        bad[size(l)] = row;
        break;
      }
      const double rms = std::sqrt(square / static_cast<double>(m));
      const auto bound =
          static_cast<float>(options_.relative ? options_.threshold * rms : options_.threshold);
      for (std::int64_t i = 0; i < m; ++i) active[size(i)] += std::abs(x[i]) > bound ? 1 : 0;
    }
    for (std::int64_t i = 0; i < m; ++i) counts_[size(l * m + i)] += active[size(i)];
  }
  for (std::int64_t l = 0; l < layers; ++l) {
    if (bad[size(l)] < 0) continue;
    fail("{}: {}: the activations of layer {} are not finite", name(),
         token_place(block, bad[size(l)]), l);
  }
  tokens_ += static_cast<std::int64_t>(rows.size());
}

void SparsityProbe::merge(Probe& other) {
  auto* from = dynamic_cast<SparsityProbe*>(&other);
  if (from == nullptr || !(from->options_ == options_) || from->counts_.size() != counts_.size()) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += from->counts_[i];
  tokens_ += from->tokens_;
  from->counts_.assign(counts_.size(), 0);
  from->tokens_ = 0;
}

SparsityResults SparsityProbe::results() const {
  SparsityResults r;
  r.tokens = tokens_;
  r.layers = config_.n_layers;
  r.neurons = config_.d_mlp;
  r.counts = counts_;
  for (std::int64_t l = 0; l < r.layers; ++l) {
    std::int64_t active = 0, never = 0;
    for (std::int64_t i = 0; i < r.neurons; ++i) {
      const std::int64_t count = counts_[size(l * r.neurons + i)];
      active += count;
      never += count == 0;
    }
    r.active.push_back(static_cast<double>(active) / static_cast<double>(tokens_ * r.neurons));
    r.never.push_back(never);
  }
  return r;
}

void SparsityProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const SparsityResults r = results();
  write_choice(file, options_.tokens, r.tokens);
  file.setting("threshold", options_.threshold);
  file.setting("relative_to", std::string(options_.relative ? "RMS of the token" : "nothing"));
  file.setting("site", std::string("mlp.hook_post"));
  write_layers(file, config_);
  file.axis("neuron", counting(r.neurons));
  std::vector<std::int32_t> never(r.never.begin(), r.never.end());
  std::vector<double> share;
  for (std::int64_t count : r.counts) {
    share.push_back(static_cast<double>(count) / static_cast<double>(r.tokens));
  }
  file.dataset("active", Names{"layer"}, r.active,
               "share of (token, neuron) pairs whose activation is beyond the threshold", "1");
  file.dataset("never_active", Names{"layer"}, never,
               "neurons that are active for none of the tokens", "neuron");
  file.dataset("neuron_active", Names{"layer", "neuron"}, share,
               "share of tokens for which the neuron is active", "1");
}

}  // namespace lamina
