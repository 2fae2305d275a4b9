#include "lamina/probes/layer_effects.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "effects/output_change.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kSmallest = 1e-6;  // of the authors: no smaller denominator

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// The larger one; NaN stays.
void raise(double& to, double value) {
  if (!std::isnan(to) && !(value <= to)) to = value;
}

bool is_local(EffectVariant v) {
  return v == EffectVariant::local || v == EffectVariant::current_local;
}

bool whole_prompt(EffectVariant v) {
  return v == EffectVariant::current || v == EffectVariant::current_local;
}

double norm(const float* x, std::int64_t d) {
  double squares = 0;
  for (std::int64_t i = 0; i < d; ++i) squares += double{x[i]} * x[i];
  return std::sqrt(squares);
}

// One split of one prompt of a group: positions 1 … end − 1 are skipped, first … n − 1 read.
struct Window {
  std::int64_t prompt, end, first;
};

// A row of a pass that is read: which token of the group it is and whose maximum it belongs to.
struct ReadRow {
  std::int64_t row, token, window;
};

// Sums of one variant over all groups.
struct Totals {
  EffectTable table;
  std::vector<double> token_sum, out_token_sum;  // [L, L], [L]
};

// Some prompts whose undisturbed pass is at hand.
class Group {
 public:
  Group(Forward& forward, std::span<const Prompt> prompts, const LayerEffectsOptions& options)
      : forward_(forward),
        options_(options),
        prompts_(prompts),
        config_(forward.model().config()),
        layers_(config_.n_layers),
        d_(config_.d_model) {
    Batch batch;
    for (const Prompt& p : prompts) batch.add(p.ids);
    forward_.run(batch, {}, {.keep = &state_});
    const std::int64_t tokens = batch.tokens();
    norms_.resize(size(layers_ * tokens));
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < layers_ * tokens; ++i) {
      std::vector<float> change(size(d_));
      added(static_cast<std::int32_t>(i / tokens), i % tokens, change.data());
      norms_[size(i)] = norm(change.data(), d_);
    }
    output_.emplace(forward_, state_, options.memory);
  }

  // Adds this group's effects of one variant to `totals`. `step` is called after every layer.
  void measure(Totals& totals, const std::function<void()>& step) {
    totals_ = &totals;
    variant_ = totals.table.variant;
    windows_.clear();
    for (std::int64_t p = 0; p < state_.batch.prompts(); ++p) {
      const std::int64_t n = state_.batch.length(p);
      const std::size_t before = windows_.size();
      if (whole_prompt(variant_)) {
        if (n > 1) windows_.push_back({p, n, 1});  // at position 0 nothing can change
      } else {
        for (const std::int64_t t : effect_splits(prompts_[size(p)], options_)) {
          windows_.push_back({p, t, t});
        }
      }
      totals.table.prompts += windows_.size() > before;
    }
    for (const Window& w : windows_) {
      totals.table.splits += 1;
      totals.table.tokens += state_.batch.length(w.prompt) - w.first;
    }
    prompt_max_.assign(size(state_.batch.prompts() * layers_ * layers_), 0.0);
    prompt_out_.assign(size(state_.batch.prompts() * layers_), 0.0);
    for (std::int32_t layer = 0; layer < layers_; ++layer) {
      if (is_local(variant_)) {
        local_on(layer);
      } else {
        skip(layer);
      }
      step();
    }
    add_prompts();
  }

 private:
  const float* stream(std::int64_t layer, std::int64_t token) const {
    return state_.resid[size(layer)].data() + token * d_;
  }
  // Δ_l of a token.
  void added(std::int32_t layer, std::int64_t token, float* out) const {
    const float *before = stream(layer, token), *after = stream(layer + 1, token);
    for (std::int64_t i = 0; i < d_; ++i) out[i] = after[i] - before[i];
  }

  // ‖Δ_l − Δ_l^skip‖ / ‖Δ_l‖ where the layer was entered with `before` and left with `after`.
  double change(std::int32_t layer, std::int64_t token, const float* before,
                const float* after) const {
    const float *was_before = stream(layer, token), *was_after = stream(layer + 1, token);
    double squares = 0;
    for (std::int64_t i = 0; i < d_; ++i) {
      const double difference =
          static_cast<double>(was_after[i] - was_before[i]) - (after[i] - before[i]);
      squares += difference * difference;
    }
    return std::sqrt(squares) / std::max(delta_norm(layer, token), kSmallest);
  }
  double delta_norm(std::int32_t layer, std::int64_t token) const {
    return norms_[size(layer * state_.batch.tokens() + token)];
  }

  void take(std::int32_t s, std::int32_t l, const ReadRow& row, double value) {
    const std::int64_t prompt = windows_[size(row.window)].prompt;
    raise(prompt_max_[size((prompt * layers_ + s) * layers_ + l)], value);
    totals_->token_sum[size(s * layers_ + l)] += value;
  }

  // The effect of skipped layer s on layer l of rows of a pass, before and after [rows, d_model].
  void read(std::int32_t s, std::int32_t l, std::span<const ReadRow> rows, const float* before,
            const float* after) {
    values_.resize(rows.size());
    const auto n = static_cast<std::int64_t>(rows.size());
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i) {
      const ReadRow& r = rows[size(i)];
      values_[size(i)] = change(l, r.token, before + r.row * d_, after + r.row * d_);
    }
    for (std::int64_t i = 0; i < n; ++i) take(s, l, rows[size(i)], values_[size(i)]);
  }

  // Passes with layer s left out, from behind it on: every window is a continuation from row 1.
  void skip(std::int32_t s) {
    const bool whole = options_.part == EffectPart::layer;
    // What a future token could take from the last layer nobody reads.
    if (whole && variant_ == EffectVariant::future && s + 1 == layers_) return;
    for (std::size_t at = 0; at < windows_.size();) {
      std::vector<Continuation> which;
      std::vector<ReadRow> rows;
      std::int64_t count = 0;
      const std::size_t first = at;
      for (; at < windows_.size(); ++at) {
        const Window& w = windows_[at];
        const std::int64_t n = state_.batch.length(w.prompt) - 1;
        if (!which.empty() && count + n > options_.batch_tokens) break;
        which.push_back({w.prompt, 1});
        for (std::int64_t p = w.first; p <= n; ++p) {
          rows.push_back({count + p - 1, state_.batch.offsets[size(w.prompt)] + p,
                          static_cast<std::int64_t>(at)});
        }
        count += n;
      }
      skip_windows(s, std::span(windows_).subspan(first, at - first), which, rows);
    }
  }

  void skip_windows(std::int32_t s, std::span<const Window> windows,
                    std::span<const Continuation> which, std::span<const ReadRow> rows) {
    const bool whole = options_.part == EffectPart::layer;
    // A layer left out as a whole need not run, unless nothing runs behind it.
    const std::int32_t from = whole && s + 1 < layers_ ? s + 1 : s;
    const auto leave_out = [&](SiteView& view) {
      for (std::size_t w = 0; w < windows.size(); ++w) {
        float* to = view.values.data() + view.batch.offsets[w] * d_;
        const std::int64_t count = windows[w].end - 1;
        if (whole) {
          const std::int64_t token = state_.batch.offsets[size(windows[w].prompt)] + 1;
          std::copy_n(stream(s, token), count * d_, to);
        } else {
          std::fill_n(to, count * d_, 0.0f);
        }
      }
    };
    Hooks hooks;
    if (!whole) {
      const bool attention = options_.part == EffectPart::attention;
      hooks.write({attention ? SiteKind::attn_out : SiteKind::mlp_out, s}, leave_out);
    } else if (from > s) {
      hooks.write({SiteKind::resid_pre, from}, leave_out);
      if (variant_ == EffectVariant::current) {
        for (const ReadRow& row : rows) {  // the skipped layer itself adds nothing
          const double size_was = delta_norm(s, row.token);
          take(s, s, row, size_was / std::max(size_was, kSmallest));
        }
      }
    } else {
      hooks.write({SiteKind::resid_post, s}, leave_out);
    }
    for (std::int32_t l = from; l < layers_; ++l) {
      hooks.read({SiteKind::resid_pre, l}, [this](SiteView& view) {
        before_.assign(view.values.begin(), view.values.end());
      });
      hooks.read({SiteKind::resid_post, l}, [this, s, l, rows](SiteView& view) {
        read(s, l, rows, before_.data(), view.values.data());
      });
    }
    forward_.resume(state_, from, which, hooks);

    std::vector<std::int64_t> pass_rows, tokens;
    for (const ReadRow& row : rows) {
      pass_rows.push_back(row.row);
      tokens.push_back(row.token);
    }
    values_.resize(rows.size());
    output_->last_pass(pass_rows, tokens, values_);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t prompt = windows_[size(rows[i].window)].prompt;
      raise(prompt_out_[size(prompt * layers_ + s)], values_[i]);
      totals_->out_token_sum[size(s)] += values_[i];
    }
  }

  // Layer l alone, with its input less what each earlier layer added: every earlier layer and
  // window is a sequence of its own.
  void local_on(std::int32_t l) {
    struct Job {
      std::int32_t s;
      std::int64_t window;
    };
    std::vector<Job> jobs;
    for (std::int32_t s = 0; s < l; ++s) {
      for (std::size_t w = 0; w < windows_.size(); ++w) {
        jobs.push_back({s, static_cast<std::int64_t>(w)});
      }
    }
    const Step step{.layer = l};
    for (std::size_t at = 0; at < jobs.size();) {
      Batch batch;
      std::vector<float>& start = before_;
      start.clear();
      const std::size_t first = at;
      for (; at < jobs.size(); ++at) {
        const Window& w = windows_[size(jobs[at].window)];
        const std::int64_t n = state_.batch.length(w.prompt);
        if (at > first && batch.tokens() + n > options_.batch_tokens) break;
        batch.add(prompts_[size(w.prompt)].ids);
        const std::int64_t begin = state_.batch.offsets[size(w.prompt)];
        const std::size_t to = start.size();
        start.insert(start.end(), stream(l, begin), stream(l, begin) + n * d_);
        std::vector<float> without(size(d_));
        for (std::int64_t p = 1; p < w.end; ++p) {
          added(jobs[at].s, begin + p, without.data());
          float* row = start.data() + to + size(p * d_);
          for (std::int64_t i = 0; i < d_; ++i) row[i] -= without[size(i)];
        }
      }
      const std::span<const float> after =
          forward_.run(batch, {}, {.steps = {&step, 1}, .start = start});
      for (std::size_t j = first; j < at; ++j) {
        const Window& w = windows_[size(jobs[j].window)];
        const std::int64_t begin = batch.offsets[j - first];
        std::vector<ReadRow> rows;
        for (std::int64_t p = w.first; p < state_.batch.length(w.prompt); ++p) {
          rows.push_back({begin + p, state_.batch.offsets[size(w.prompt)] + p, jobs[j].window});
        }
        read(jobs[j].s, l, rows, start.data(), after.data());
      }
    }
  }

  // Maxima of the prompts of this group into the totals.
  void add_prompts() {
    EffectTable& table = totals_->table;
    const auto add = [&](std::array<std::vector<double>, 3>& to, const std::vector<double>& from) {
      const std::size_t n = to[0].size();
      for (std::size_t i = 0; i < from.size(); ++i) {
        raise(to[0][i % n], from[i]);
        to[1][i % n] += from[i];
      }
    };
    add(table.effect, prompt_max_);
    if (!is_local(variant_)) add(table.out, prompt_out_);
  }

  Forward& forward_;
  const LayerEffectsOptions& options_;
  std::span<const Prompt> prompts_;
  const ModelConfig& config_;
  std::int64_t layers_, d_;
  RunState state_;
  std::vector<double> norms_;  // [L, token] ‖Δ‖
  std::optional<OutputChange> output_;

  Totals* totals_ = nullptr;
  EffectVariant variant_{};
  std::vector<Window> windows_;
  std::vector<double> prompt_max_, prompt_out_;  // [prompt, L, L], [prompt, L]
  std::vector<float> before_;
  std::vector<double> values_;
};

void check(const ModelConfig& config, const LayerEffectsOptions& options) {
  if (config.head != Head::language || !config.causal) {
    fail_usage("effects of skipped layers need a causal language model, this {} model is none",
               config.family);
  }
  if (options.variants.empty()) fail_usage("no variant of the effects was asked for");
  if (options.splits < 1 || options.split_step < 1 || options.batch_tokens < 1) {
    fail_usage("splits {}, their step {} and batch tokens {} must be at least 1", options.splits,
               options.split_step, options.batch_tokens);
  }
  for (const std::int64_t t : options.split_at) {
    if (t < 2) fail_usage("a split at position {} leaves nothing to skip; the least is 2", t);
  }
  if (options.split_at_answer && !options.split_at.empty()) {
    fail_usage("splits were given both as positions and as the answer's beginning");
  }
  for (const EffectVariant v : options.variants) {
    if (is_local(v) && options.part != EffectPart::layer) {
      fail_usage("the {} variant skips whole layers, not the {} alone", effect_variant_name(v),
                 effect_part_name(options.part));
    }
  }
  if (options.part == EffectPart::mlp && config.d_mlp == 0) {
    fail_usage("this {} model has no MLPs to skip", config.family);
  }
}

void finish(Totals& totals, std::int64_t layers) {
  EffectTable& table = totals.table;
  const auto mean = [](std::vector<double>& sum, std::int64_t n) {
    for (double& v : sum) v /= static_cast<double>(n);
  };
  table.effect[2] = totals.token_sum;
  if (!is_local(table.variant)) table.out[2] = totals.out_token_sum;
  for (auto* values : {&table.effect, &table.out}) {
    mean((*values)[1], table.prompts);
    mean((*values)[2], table.tokens);
  }
  for (std::size_t i = 0; i < 3; ++i) {
    table.layer_effect[i].assign(size(layers), 0.0);
    for (std::int64_t s = 0; s < layers; ++s) {
      double& e = table.layer_effect[i][size(s)];
      for (std::int64_t l = 0; l < layers; ++l) e += table.effect[i][size(s * layers + l)];
      e /= static_cast<double>(std::max<std::int64_t>(layers - 1 - s, 1));
    }
    table.depth_score[i] = depth_score(table.layer_effect[i]);
    table.out_depth_score[i] = depth_score(table.out[i]);
  }
}

}  // namespace

std::string_view effect_variant_name(EffectVariant variant) {
  switch (variant) {
    case EffectVariant::future:
      return "future";
    case EffectVariant::current:
      return "current";
    case EffectVariant::local:
      return "local";
    case EffectVariant::current_local:
      return "current-local";
  }
  return "";
}

EffectVariant parse_effect_variant(std::string_view name) {
  for (const EffectVariant v : {EffectVariant::future, EffectVariant::current, EffectVariant::local,
                                EffectVariant::current_local}) {
    if (name == effect_variant_name(v)) return v;
  }
  fail_usage("variant '{}' is not future, current, local or current-local", name);
}

std::string_view effect_part_name(EffectPart part) {
  return part == EffectPart::layer ? "layer" : part == EffectPart::attention ? "attention" : "mlp";
}

EffectPart parse_effect_part(std::string_view name) {
  for (const EffectPart p : {EffectPart::layer, EffectPart::attention, EffectPart::mlp}) {
    if (name == effect_part_name(p)) return p;
  }
  fail_usage("part '{}' is not layer, attention or mlp", name);
}

double depth_score(std::span<const double> e) {
  double weighted = 0, sum = 0;
  for (std::size_t s = 0; s < e.size(); ++s) {
    weighted += static_cast<double>(s) * e[s];
    sum += e[s];
  }
  return sum > 0 ? weighted / sum : std::numeric_limits<double>::quiet_NaN();
}

std::vector<std::int64_t> effect_splits(const Prompt& prompt, const LayerEffectsOptions& options) {
  const auto n = static_cast<std::int64_t>(prompt.ids.size());
  std::vector<std::int64_t> out;
  if (options.split_at_answer) {
    if (prompt.given >= 2 && prompt.given < n) out.push_back(prompt.given);
    return out;
  }
  if (!options.split_at.empty()) {
    for (const std::int64_t t : options.split_at) {
      if (t >= 2 && t < n) out.push_back(t);
    }
    return out;
  }
  std::vector<std::int64_t> candidates;
  for (std::int64_t t = std::max<std::int64_t>(options.split_step, 2); t < n - 4;
       t += options.split_step) {
    candidates.push_back(t);
  }
  if (candidates.empty() && n >= 3) candidates.push_back(std::max<std::int64_t>(n / 2, 2));
  const auto have = static_cast<std::int64_t>(candidates.size());
  const std::int64_t count = std::min(options.splits, have);
  // The middle of each of `count` equal parts.
  for (std::int64_t i = 0; i < count; ++i) {
    out.push_back(candidates[size((2 * i + 1) * have / (2 * count))]);
  }
  return out;
}

LayerEffects measure_layer_effects(Forward& forward, std::span<const Prompt> prompts,
                                   const LayerEffectsOptions& options) {
  const ModelConfig& config = forward.model().config();
  check(config, options);
  const std::int64_t layers = config.n_layers;
  std::vector<Totals> totals(options.variants.size());
  for (std::size_t v = 0; v < totals.size(); ++v) {
    EffectTable& table = totals[v].table;
    table.variant = options.variants[v];
    totals[v].token_sum.assign(size(layers * layers), 0.0);
    totals[v].out_token_sum.assign(size(layers), 0.0);
    for (std::size_t i = 0; i < 2; ++i) {
      table.effect[i].assign(size(layers * layers), 0.0);
      if (!is_local(table.variant)) table.out[i].assign(size(layers), 0.0);
    }
  }
  const auto all = static_cast<std::int64_t>(prompts.size());
  const auto per_prompt = static_cast<std::int64_t>(options.variants.size()) * layers;
  std::int64_t done = 0;
  for (std::int64_t first = 0; first < all;) {
    std::int64_t last = first, tokens = 0;
    for (; last < all; ++last) {
      const auto n = static_cast<std::int64_t>(prompts[size(last)].ids.size());
      if (last > first && tokens + n > options.batch_tokens) break;
      tokens += n;
    }
    Group group(forward, prompts.subspan(size(first), size(last - first)), options);
    for (Totals& t : totals) {
      group.measure(t, [&] {
        done += last - first;
        if (options.progress) options.progress(done, all * per_prompt);
      });
    }
    first = last;
  }
  LayerEffects results;
  results.n_layers = layers;
  for (Totals& t : totals) {
    if (t.table.prompts == 0) {
      fail("none of the {} prompts is long enough for the {} variant with these splits", all,
           effect_variant_name(t.table.variant));
    }
    finish(t, layers);
    results.tables.push_back(std::move(t.table));
  }
  return results;
}

}  // namespace lamina
