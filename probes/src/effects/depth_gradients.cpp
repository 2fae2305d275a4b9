#include "lamina/probes/depth_gradients.h"

#include <algorithm>

#include "lamina/core/backward.h"
#include "lamina/core/error.h"
#include "lens/row_stats.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

SiteKind site_of(EffectPart part) {
  return part == EffectPart::layer       ? SiteKind::resid_post
         : part == EffectPart::attention ? SiteKind::attn_out
                                         : SiteKind::mlp_out;
}

// One prompt: its undisturbed pass and where its answer is predicted.
class PromptGradients {
 public:
  PromptGradients(Forward& forward, const Prompt& prompt, const DepthGradientOptions& options)
      : forward_(forward),
        backward_(forward.model()),
        options_(options),
        prompt_(prompt),
        config_(forward.model().config()),
        d_(config_.d_model),
        v_(config_.d_out()),
        n_(static_cast<std::int64_t>(prompt.ids.size())) {
    if (prompt.given > 0 && prompt.given < n_) {
      for (std::int64_t p = prompt.given; p < n_; ++p) {
        rows_.push_back(p - 1);
        targets_.push_back(prompt.ids[size(p)]);
      }
    } else if (prompt.target) {
      rows_.push_back(n_ - 1);
      targets_.push_back(*prompt.target);
    } else {
      fail("prompt '{}' has neither an answer nor a target to take gradients of", prompt.id);
    }
    written_.resize(size(config_.n_layers));
    Hooks hooks;
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      hooks.read({site_of(options.part), l}, [this, l](SiteView& view) {
        written_[size(l)].assign(view.values.begin(), view.values.end());
      });
    }
    Batch batch;
    batch.add(prompt.ids);
    forward_.run(batch, hooks, {.keep = &state_});
    std::vector<float> p(rows_.size() * size(v_));
    forward_.run_logits(rows_, p);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto row = std::span(p).subspan(i * size(v_), size(v_));
      rows::to_probabilities(row);
      probability_ += row[size(targets_[i])];
    }
  }

  double probability() const { return probability_; }

  // The attribution of layer l → out [T]; returns F at the mean.
  double layer(std::int32_t l, std::span<double> out) {
    const std::vector<float>& o = written_[size(l)];
    std::vector<double> sum(size(d_), 0.0);
    for (std::int64_t t = 0; t < n_; ++t) {
      for (std::int64_t i = 0; i < d_; ++i) sum[size(i)] += o[size(t * d_ + i)];
    }
    std::vector<float> mean(size(d_));
    for (std::int64_t i = 0; i < d_; ++i) {
      mean[size(i)] = static_cast<float>(sum[size(i)] / static_cast<double>(n_));
    }
    std::fill(out.begin(), out.end(), 0.0);
    double baseline = 0;
    constexpr std::int64_t kLogits = std::int64_t{32} << 20;
    const auto answers = static_cast<std::int64_t>(rows_.size());
    const std::int64_t copies =
        std::max<std::int64_t>(std::min(options_.batch_tokens / n_, kLogits / (answers * v_)), 1);
    for (std::int64_t first = 0; first < options_.steps; first += copies) {
      const std::int64_t count = std::min(copies, options_.steps - first);
      const double at_first = gradients(l, first, count, mean);
      if (first == 0) baseline = at_first;
#pragma omp parallel for schedule(static)
      for (std::int64_t t = 0; t < n_; ++t) {
        for (std::int64_t c = 0; c < count; ++c) {
          const float* g = gradient_.data() + (c * n_ + t) * d_;
          double product = 0;
          for (std::int64_t i = 0; i < d_; ++i) {
            product += double{g[i]} * (double{o[size(t * d_ + i)]} - mean[size(i)]);
          }
          out[size(t)] += product;
        }
      }
    }
    for (double& value : out) value /= static_cast<double>(options_.steps);
    return baseline;
  }

 private:
  // gradient_ of `count` steps from `first` on, each a copy of the prompt; returns F of the first.
  double gradients(std::int32_t l, std::int64_t first, std::int64_t count,
                   std::span<const float> mean) {
    Batch batch;
    std::vector<float> start;
    std::vector<std::int64_t> rows;
    const std::vector<float>& entering = state_.resid[size(l)];
    for (std::int64_t c = 0; c < count; ++c) {
      batch.add(prompt_.ids);
      start.insert(start.end(), entering.begin(), entering.end());
      for (const std::int64_t r : rows_) rows.push_back(c * n_ + r);
    }
    std::vector<Step> steps;
    for (std::int32_t layer = l; layer < config_.n_layers; ++layer) {
      steps.push_back({.layer = layer});
    }
    const Site site{site_of(options_.part), l};
    const std::vector<float>& o = written_[size(l)];
    Hooks moved;
    moved.write(site, [&](SiteView& view) {
      for (std::int64_t c = 0; c < count; ++c) {
        const auto share = static_cast<float>(static_cast<double>(first + c) /
                                              static_cast<double>(options_.steps));
        float* to = view.values.data() + c * n_ * d_;
        for (std::int64_t i = 0; i < n_ * d_; ++i) {
          to[i] = o[size(i)] * share + mean[size(i % d_)] * (1.0f - share);
        }
      }
    });
    forward_.run(batch, moved, {.steps = steps, .start = start, .tape = &tape_});
    std::vector<float> p(rows.size() * size(v_));
    forward_.run_logits(rows, p);
    double answer = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto row = std::span(p).subspan(i * size(v_), size(v_));
      rows::to_probabilities(row);
      const auto target = size(targets_[i % rows_.size()]);
      const float likely = row[target];
      if (i < rows_.size()) answer += likely;
      for (float& value : row) value *= -likely;  // ∂p_a/∂z = p_a (1_a − p)
      row[target] += likely;
    }
    backward_.seed(tape_, rows, p);
    Hooks reading;
    reading.read(
        site, [this](SiteView& view) { gradient_.assign(view.values.begin(), view.values.end()); });
    backward_.run(tape_, {}, reading);
    return answer;
  }

  Forward& forward_;
  Backward backward_;
  const DepthGradientOptions& options_;
  const Prompt& prompt_;
  const ModelConfig& config_;
  std::int64_t d_, v_, n_;
  double probability_ = 0;
  RunState state_;
  Tape tape_;
  std::vector<std::vector<float>> written_;  // [L][T, d_model] o
  std::vector<std::int64_t> rows_;           // where the answer is predicted
  std::vector<std::int32_t> targets_;        // its tokens
  std::vector<float> gradient_;              // [copy, T, d_model]
};

}  // namespace

DepthGradients measure_depth_gradients(Forward& forward, std::span<const Prompt> prompts,
                                       const DepthGradientOptions& options) {
  const ModelConfig& config = forward.model().config();
  if (config.head != Head::language || !config.causal) {
    fail_usage("gradients of the answer need a causal language model, this {} model is none",
               config.family);
  }
  if (options.part == EffectPart::mlp && config.d_mlp == 0) {
    fail_usage("this {} model has no MLPs to take gradients of", config.family);
  }
  if (options.steps < 1) fail_usage("{} steps of integrated gradients cannot be", options.steps);
  DepthGradients out;
  out.n_layers = config.n_layers;
  const std::int64_t count = std::min(options.prompts, static_cast<std::int64_t>(prompts.size()));
  std::int64_t done = 0;
  for (std::int64_t p = 0; p < count; ++p) {
    const Prompt& prompt = prompts[size(p)];
    PromptGradients gradients(forward, prompt, options);
    DepthGradientMap map;
    map.prompt = p;
    map.probability = gradients.probability();
    map.attribution.resize(size(config.n_layers) * prompt.ids.size());
    for (std::int32_t l = 0; l < config.n_layers; ++l) {
      map.baseline.push_back(gradients.layer(
          l, std::span(map.attribution).subspan(size(l) * prompt.ids.size(), prompt.ids.size())));
      if (options.progress) options.progress(++done, count * config.n_layers);
    }
    out.maps.push_back(std::move(map));
  }
  return out;
}

}  // namespace lamina
