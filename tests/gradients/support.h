#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "support/tiny_model.h"

namespace lamina::testing {

inline std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

/// Values or gradients at sites, apart by prompt: [site][prompt].
using SiteValues = std::map<Site, std::vector<std::vector<float>>>;

/// Adds hooks that copy every site of the model into `values`.
void read_all(const ModelConfig& config, Hooks& hooks, SiteValues& values);

/// A metric: m = Σ c·logits over some rows of the batch.
struct Metric {
  std::vector<std::int64_t> rows;
  std::vector<float> c;               // [rows, d_vocab]
  double of(Forward& forward) const;  // of the last run
};
/// The last and a middle row of every prompt, c ~ N(0, 1).
Metric random_metric(const Batch& batch, const ModelConfig& config, std::uint64_t seed);

Batch pack(const std::vector<std::vector<std::int32_t>>& prompts);

/// ∂m/∂site for every site: one pass forward with a tape, one backward.
SiteValues gradients(Forward& forward, Backward& backward, const Batch& batch, const Metric& metric,
                     const BackwardRules& rules = {}, const Hooks& forward_hooks = {});

/// The configurations of tiny_model.h and the settings that they leave out.
std::vector<TinyConfig> gradient_configs();
std::string name_of(const TinyConfig& config);

/// n values from N(0, 1).
std::vector<float> normal_values(std::size_t n, std::uint64_t seed);

/// Largest |a − b| over prompts, relative to the largest |a| (0 if both are all zeros).
double relative_error(const std::vector<std::vector<float>>& a,
                      const std::vector<std::vector<float>>& b);

/// Largest magnitude.
double largest(const std::vector<std::vector<float>>& values);

/// True if every value is exactly 0.
bool all_zero(const std::vector<std::vector<float>>& values);

}  // namespace lamina::testing
