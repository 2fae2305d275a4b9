#include <algorithm>
#include <cmath>
#include <functional>

#include "lamina/core/math.h"
#include "lamina/patching/layer_importance.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// ∂ log Σ_{i∈ids} p_i / ∂logits = p_i/Σp on ids, minus p.
void logprob_gradient(std::span<const std::int32_t> ids, std::span<const float> logits,
                      std::span<float> out) {
  const double log_sum = math::log_sum_exp(logits);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    out[i] = static_cast<float>(-std::exp(logits[i] - log_sum));
  }
  std::vector<float> picked;
  for (const std::int32_t id : ids) picked.push_back(logits[size(id)]);
  const double log_set = math::log_sum_exp(picked);
  for (const std::int32_t id : ids) {
    out[size(id)] += static_cast<float>(std::exp(logits[size(id)] - log_set));
  }
}

class Relevance {
 public:
  Relevance(Forward& forward, const PathPrompts& prompts, const Metric* metric, bool last_only,
            const BackwardRules& rules)
      : forward_(forward),
        backward_(forward.model()),
        prompts_(prompts),
        metric_(metric),
        last_only_(last_only),
        rules_(rules),
        config_(forward.model().config()) {
    sums_.attention.assign(size(config_.n_layers), 0.0);
    if (config_.d_mlp > 0) sums_.mlp.assign(size(config_.n_layers), 0.0);
  }

  // One batch: prompts first … first + batch.prompts() − 1.
  void add(const Batch& batch, std::int64_t first) {
    Hooks reading;
    std::vector<std::vector<float>> outputs(size(2 * config_.n_layers));
    for_outputs([&](Site site, std::size_t at) {
      reading.read(site, [&outputs, at](SiteView& view) {
        outputs[at].assign(view.values.begin(), view.values.end());
      });
    });
    RunOptions options;
    options.tape = &tape_;
    forward_.run(batch, reading, options);
    seed(batch, first);
    Hooks gradients;
    for_outputs([&](Site site, std::size_t at) {
      gradients.read(site, [this, &outputs, at, &batch](SiteView& view) {
        std::vector<double>& sums = at % 2 == 0 ? sums_.attention : sums_.mlp;
        const std::int64_t d = config_.d_model;
        for (std::int64_t t = 0; t < batch.tokens(); ++t) {
          double dot = 0;
          for (std::int64_t i = t * d; i < (t + 1) * d; ++i) {
            dot += double{outputs[at][size(i)]} * view.values[size(i)];
          }
          sums[at / 2] += std::abs(dot);
        }
      });
    });
    backward_.run(tape_, rules_, gradients);
  }

  SublayerRelevance finish() {
    for (std::vector<double>* sums : {&sums_.attention, &sums_.mlp}) {
      for (double& sum : *sums) sum /= static_cast<double>(prompts_.count());
    }
    return sums_;
  }

 private:
  void for_outputs(const std::function<void(Site, std::size_t)>& each) const {
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      each({SiteKind::attn_out, l}, size(2 * l));
      if (config_.d_mlp > 0) each({SiteKind::mlp_out, l}, size(2 * l + 1));
    }
  }

  // A row of the batch whose logits are differentiated.
  struct Row {
    std::int64_t token, prompt;
    std::vector<std::int32_t> targets;  // empty: the metric, or the model's own answer
  };

  std::vector<Row> rows_of(const Batch& batch, std::int64_t first) const {
    std::vector<Row> rows;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t begin = batch.offsets[size(p)], end = batch.offsets[size(p + 1)];
      if (metric_ == nullptr && !last_only_) {
        for (std::int64_t t = begin; t + 1 < end; ++t) {
          rows.push_back({t, first + p, {batch.ids[size(t + 1)]}});
        }
        if (prompts_.answers[size(first + p)].empty()) continue;
      }
      rows.push_back({end - 1, first + p, prompts_.answers[size(first + p)]});
    }
    return rows;
  }

  // Gradients at the logits, a few rows at a time: a row of logits may be a megabyte.
  void seed(const Batch& batch, std::int64_t first) {
    constexpr std::size_t kRows = 32;
    const std::size_t v = size(config_.d_vocab);
    const std::vector<Row> rows = rows_of(batch, first);
    std::vector<float> logits, gradient;
    for (std::size_t begin = 0; begin < rows.size(); begin += kRows) {
      const std::size_t count = std::min(kRows, rows.size() - begin);
      std::vector<std::int64_t> tokens;
      for (std::size_t i = 0; i < count; ++i) tokens.push_back(rows[begin + i].token);
      logits.resize(count * v);
      gradient.resize(count * v);
      forward_.run_logits(tokens, logits);
      for (std::size_t i = 0; i < count; ++i) {
        const Row& row = rows[begin + i];
        const std::span<const float> from(logits.data() + i * v, v);
        const std::span<float> to(gradient.data() + i * v, v);
        if (metric_ != nullptr) {
          metric_->gradient(row.prompt, from, to);
        } else if (row.targets.empty()) {
          const auto top = static_cast<std::int32_t>(std::ranges::max_element(from) - from.begin());
          logprob_gradient(std::span(&top, 1), from, to);
        } else {
          logprob_gradient(row.targets, from, to);
        }
      }
      backward_.seed(tape_, tokens, gradient);
    }
  }

  Forward& forward_;
  Backward backward_;
  Tape tape_;
  const PathPrompts& prompts_;
  const Metric* metric_;
  bool last_only_;
  BackwardRules rules_;
  const ModelConfig& config_;
  SublayerRelevance sums_;
};

}  // namespace

SublayerRelevance sublayer_relevance(Forward& forward, const PathPrompts& prompts,
                                     const Metric* metric, bool last_only,
                                     const BackwardRules& rules, std::uint64_t memory) {
  const ModelConfig& config = forward.model().config();
  Relevance relevance(forward, prompts, metric, last_only, rules);
  const std::uint64_t per_token = std::max<std::uint64_t>(
      1, Tape::bytes_per_token(config) +
             2 * static_cast<std::uint64_t>(config.n_layers * config.d_model) * sizeof(float));
  const auto most = static_cast<std::int64_t>(std::min<std::uint64_t>(512, memory / per_token));
  Batch batch;
  std::int64_t first = 0;
  for (std::int64_t p = 0; p < prompts.count(); ++p) {
    const std::vector<std::int32_t>& ids = prompts.tokens[size(p)];
    if (batch.prompts() > 0 && batch.tokens() + static_cast<std::int64_t>(ids.size()) > most) {
      relevance.add(batch, first);
      first = p;
      batch = {};
    }
    batch.add(ids);
  }
  if (batch.prompts() > 0) relevance.add(batch, first);
  return relevance.finish();
}

}  // namespace lamina
