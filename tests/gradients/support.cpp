#include "support.h"

#include <algorithm>
#include <cmath>

namespace lamina::testing {

void read_all(const ModelConfig& config, Hooks& hooks, SiteValues& values) {
  for (Site site : all_sites(config)) {
    auto& out = values[site];
    hooks.read(site, [&out](SiteView& view) {
      out.resize(size(view.batch.prompts()));
      if (view.shape.attention) {
        out[size(view.prompt)].assign(view.values.begin(), view.values.end());
        return;
      }
      const std::int64_t row = view.shape.row();
      for (std::size_t p = 0; p < out.size(); ++p) {
        out[p].assign(view.values.begin() + view.batch.offsets[p] * row,
                      view.values.begin() + view.batch.offsets[p + 1] * row);
      }
    });
  }
}

double Metric::of(Forward& forward) const {
  std::vector<float> logits(c.size());
  forward.run_logits(rows, logits);
  double sum = 0;
  for (std::size_t i = 0; i < c.size(); ++i) {
    sum += static_cast<double>(c[i]) * static_cast<double>(logits[i]);
  }
  return sum;
}

Metric random_metric(const Batch& batch, const ModelConfig& config, std::uint64_t seed) {
  Metric metric;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    const std::int64_t first = batch.offsets[size(p)], length = batch.length(p);
    if (length > 1) metric.rows.push_back(first + (length - 1) / 2);
    metric.rows.push_back(first + length - 1);
  }
  metric.c = normal_values(metric.rows.size() * size(config.d_vocab), seed);
  return metric;
}

Batch pack(const std::vector<std::vector<std::int32_t>>& prompts) {
  Batch batch;
  for (const auto& prompt : prompts) batch.add(prompt);
  return batch;
}

SiteValues gradients(Forward& forward, Backward& backward, const Batch& batch, const Metric& metric,
                     const BackwardRules& rules, const Hooks& forward_hooks) {
  Tape tape;
  forward.run(batch, forward_hooks, {.tape = &tape});
  backward.seed(tape, metric.rows, metric.c);
  SiteValues values;
  Hooks hooks;
  read_all(forward.model().config(), hooks, values);
  backward.run(tape, rules, hooks);
  return values;
}

std::vector<TinyConfig> gradient_configs() {
  std::vector<TinyConfig> all = varied_configs();
  all.push_back({.label = "sandwich LayerNorm one key head quick GELU",
                 .n_kv_heads = 1,
                 .norm = "layer",
                 .norm_place = "sandwich",
                 .act = "quick_gelu",
                 .out_bias = true,
                 .gated = false});
  all.push_back(
      {.label = "parallel gated ReLU window", .act = "relu", .window = 3, .parallel = true});
  all.push_back({.label = "SoLU final cap", .act = "solu", .gated = false, .final_softcap = 4});
  all.push_back({.label = "no norm gated GELU query norm",
                 .norm = "none",
                 .norm_place = "none",
                 .act = "gelu",
                 .qk_norm = true,
                 .final_norm = false});
  all.push_back({.label = "post-norm RMS gated causal", .norm_place = "post", .final_norm = false});
  return all;
}

std::string name_of(const TinyConfig& config) {
  std::string name = config.label;
  std::erase_if(name, [](char c) { return !std::isalnum(c); });
  return name;
}

std::vector<float> normal_values(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(normal(random));
  return values;
}

double relative_error(const std::vector<std::vector<float>>& a,
                      const std::vector<std::vector<float>>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (std::size_t p = 0; p < a.size(); ++p) {
    if (a[p].size() != b[p].size()) return INFINITY;
    for (std::size_t i = 0; i < a[p].size(); ++i) {
      const double x = a[p][i], y = b[p][i];
      if (!(std::abs(x - y) <= worst)) worst = std::abs(x - y);  // NaN stays
    }
  }
  return worst == 0 ? 0 : worst / largest(a);
}

double largest(const std::vector<std::vector<float>>& values) {
  double most = 0;
  for (const auto& prompt : values) {
    for (float value : prompt) most = std::max(most, std::abs(static_cast<double>(value)));
  }
  return most;
}

bool all_zero(const std::vector<std::vector<float>>& values) {
  for (const auto& prompt : values) {
    for (float value : prompt) {
      if (value != 0) return false;
    }
  }
  return true;
}

}  // namespace lamina::testing
