#include "residual_norm.h"

#include <cmath>

ResidualNorm::ResidualNorm(const lamina::ModelConfig& config)
    : config_(config), sums_(static_cast<std::size_t>(config.n_layers), 0.0) {}

// The sites that every block will hold.
std::vector<lamina::Site> ResidualNorm::sites(const lamina::ModelConfig& config) const {
  return lamina::match_sites(std::vector<std::string>{"resid_post"}, config);
}

// The same settings, nothing observed: one for every shard.
std::unique_ptr<lamina::Probe> ResidualNorm::fresh() const {
  return std::make_unique<ResidualNorm>(config_);
}

// Called with a few whole prompts at a time, in order.
void ResidualNorm::observe(const lamina::ActivationBlock& block) {
  const std::int64_t tokens = block.batch.tokens(), width = config_.d_model;
  for (lamina::Site site : sites(config_)) {
    const std::vector<float>& values = block.at(site).values;  // [tokens, width]
    for (std::int64_t t = 0; t < tokens; ++t) {
      double squares = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        squares += double{values[t * width + i]} * values[t * width + i];
      }
      sums_[site.layer] += std::sqrt(squares);
    }
  }
  tokens_ += tokens;
}

// `other` observed the prompts after this one's.
void ResidualNorm::merge(lamina::Probe& other) {
  auto& from = dynamic_cast<ResidualNorm&>(other);
  for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += from.sums_[i];
  tokens_ += from.tokens_;
  from = ResidualNorm(config_);
}

std::vector<double> ResidualNorm::means() const {
  std::vector<double> means;
  for (double sum : sums_) means.push_back(sum / static_cast<double>(tokens_));
  return means;
}

// The file stands at /analyses/residual_norm.
void ResidualNorm::write(lamina::ResultFile& file) const {
  std::vector<std::int64_t> layers;
  for (std::int64_t l = 0; l < config_.n_layers; ++l) layers.push_back(l);
  file.setting("tokens", tokens_);
  file.axis("layer", layers);
  file.dataset("mean_norm", std::vector<std::string>{"layer"}, means(),
               "mean length of the residual stream leaving the block", "");
}
