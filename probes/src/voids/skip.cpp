#include "lamina/probes/skip.h"

#include <algorithm>
#include <limits>

#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

std::string_view skip_mode_name(SkipMode mode) {
  switch (mode) {
    case SkipMode::none:
      return "none";
    case SkipMode::last_active:
      return "last-active";
    case SkipMode::blocks:
      return "blocks";
  }
  return "";
}

SkipMode parse_skip_mode(std::string_view name) {
  for (SkipMode mode : {SkipMode::none, SkipMode::last_active, SkipMode::blocks}) {
    if (name == skip_mode_name(mode)) return mode;
  }
  fail_usage("skip mode '{}': expected none, last-active or blocks", name);
}

SkipRun::SkipRun(const ModelConfig& config, SkipOptions options)
    : config_(config), options_(std::move(options)), left_out_(size(config.n_layers)) {
  check_voids_make_sense(config_);
  check_alphas({&options_.alpha, 1});
  for (std::int32_t layer : options_.layers) {
    if (layer < 0 || layer >= config_.n_layers) {
      fail_usage("layer {} is to be skipped, the model has {}", layer, config_.n_layers);
    }
    left_out_[size(layer)] = 1;
  }
  const auto last = static_cast<std::int32_t>(config_.n_layers) - 1;
  for (std::int32_t l = 0; l <= last; ++l) {
    const bool restores = options_.mode == SkipMode::blocks || left_out_[size(l)] != 0;
    if (l == 0) hooks_.read({SiteKind::resid_pre, 0}, [this](SiteView& view) { begin(view); });
    if (restores) hooks_.read({SiteKind::resid_pre, l}, [this](SiteView& view) { enter(view); });
    const Site post{SiteKind::resid_post, l};
    const auto leaving = [this](SiteView& view) { leave(view); };
    const bool writes = restores || (options_.mode == SkipMode::last_active && l == last);
    if (writes) {
      hooks_.write(post, leaving);
    } else {
      hooks_.read(post, leaving);
    }
  }
}

void SkipRun::begin(const SiteView& view) {
  tokens_ = view.batch.tokens();
  const std::int64_t d = config_.d_model;
  deltas_.assign(size(tokens_ * config_.n_layers), kNaN);
  active_.assign(size(tokens_ * config_.n_layers), 0);
  detectors_.assign(size(tokens_), VoidDetector(options_.alpha, options_.rule));
  norms_.resize(size(tokens_));
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < tokens_; ++t) {
    norms_[size(t)] = row_norm(view.values.subspan(size(t * d), size(d)));
  }
  if (options_.mode == SkipMode::last_active) last_.assign(view.values.begin(), view.values.end());
}

void SkipRun::enter(const SiteView& view) {
  before_.assign(view.values.begin(), view.values.end());
}

void SkipRun::leave(SiteView& view) {
  const std::int64_t layer = view.site.layer, layers = config_.n_layers, d = config_.d_model;
  const bool left_out = left_out_[size(layer)] != 0;
  const bool last = options_.mode == SkipMode::last_active && layer == layers - 1;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const std::span<float> row = view.values.subspan(size(t * d), size(d));
    bool drop = left_out;
    if (!left_out) {
      const double norm = row_norm(row), delta = norm - norms_[size(t)];
      const bool active = detectors_[size(t)].active(delta);
      deltas_[size(t * layers + layer)] = delta;
      active_[size(t * layers + layer)] = active ? 1 : 0;
      if (options_.mode == SkipMode::last_active && active) {
        std::copy(row.begin(), row.end(), last_.begin() + t * d);
      }
      drop = options_.mode == SkipMode::blocks && !active;
      if (!drop) norms_[size(t)] = norm;
    }
    if (drop) std::copy_n(before_.begin() + t * d, d, row.begin());
    if (last) std::copy_n(last_.begin() + t * d, d, row.begin());
  }
}

std::vector<std::uint8_t> SkipRun::active_at(double alpha) const {
  const std::int64_t layers = config_.n_layers;
  std::vector<std::uint8_t> out(active_.size());
  for (std::int64_t t = 0; t < tokens_; ++t) {
    VoidDetector detector(alpha, options_.rule);
    for (std::int64_t l = 0; l < layers; ++l) {
      if (left_out_[size(l)] != 0) continue;
      out[size(t * layers + l)] = detector.active(deltas_[size(t * layers + l)]) ? 1 : 0;
    }
  }
  return out;
}

NextTokens next_tokens(Forward& forward, std::span<const Prompt> prompts, SkipRun& run,
                       std::int64_t batch_tokens, const Progress& progress) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t vocab = config.d_vocab, layers = config.n_layers;
  constexpr std::int64_t kChunkValues = std::int64_t{1} << 23;  // 32 MiB of logits
  const std::int64_t chunk = std::clamp<std::int64_t>(kChunkValues / vocab, 1, 256);
  NextTokens out;
  out.counts = VoidCounts(1, layers);
  std::vector<float> logits;
  std::vector<std::int64_t> rows;
  for (std::size_t next = 0; next < prompts.size();) {
    Batch batch;
    std::vector<std::int32_t> following;
    for (; next < prompts.size(); ++next) {
      const Prompt& prompt = prompts[next];
      const auto length = static_cast<std::int64_t>(prompt.ids.size());
      if (batch.prompts() > 0 && batch.tokens() + length > batch_tokens) break;
      batch.add(prompt.ids);
      following.insert(following.end(), prompt.ids.begin() + 1, prompt.ids.end());
      following.push_back(-1);
      out.counts.tokens[0] += prompt.given;
      out.counts.tokens[1] += length - prompt.given;
    }
    forward.run(batch, run.hooks());
    const std::size_t first_prompt = next - size(batch.prompts());
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t given = prompts[first_prompt + size(p)].given;
      for (std::int64_t i = 0; i < batch.length(p); ++i) {
        const std::int64_t t = batch.offsets[size(p)] + i;
        for (std::int64_t l = 0; l < layers; ++l) {
          out.counts.at(0, i < given ? 0 : 1, l) += run.active()[size(t * layers + l)];
        }
      }
    }
    const std::size_t done = out.best.size();
    out.best.resize(done + size(batch.tokens()));
    out.logprob.resize(done + size(batch.tokens()));
    for (std::int64_t first = 0; first < batch.tokens(); first += chunk) {
      const std::int64_t count = std::min(chunk, batch.tokens() - first);
      rows.resize(size(count));
      for (std::int64_t r = 0; r < count; ++r) rows[size(r)] = first + r;
      logits.resize(size(count * vocab));
      forward.run_logits(rows, logits);
#pragma omp parallel for schedule(static)
      for (std::int64_t r = 0; r < count; ++r) {
        const std::span<const float> row = std::span(logits).subspan(size(r * vocab), size(vocab));
        const std::size_t at = done + size(first + r);
        out.best[at] =
            static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
        const std::int32_t id = following[size(first + r)];
        out.logprob[at] = id < 0
                              ? static_cast<float>(kNaN)
                              : static_cast<float>(double{row[size(id)]} - math::log_sum_exp(row));
      }
    }
    if (progress) {
      progress(static_cast<std::int64_t>(next), static_cast<std::int64_t>(out.best.size()));
    }
  }
  return out;
}

}  // namespace lamina
