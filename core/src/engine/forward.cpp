#include "lamina/core/forward.h"

#include <algorithm>

#include "engine/pass.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

const float* data_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

void check_steps(std::span<const Step> steps, const ModelConfig& config) {
  for (const Step& step : steps) {
    if (step.layer < 0 || step.layer >= config.n_layers) {
      fail_usage("a step names layer {}, the model has {}", step.layer, config.n_layers);
    }
  }
}

void check_options(const RunOptions& options, const Batch& batch, const ModelConfig& config,
                   bool plain) {
  if (options.cache != nullptr && !config.causal) {
    fail_usage("a cache needs causal attention; this {} model attends in both directions",
               config.family);
  }
  if (options.cache != nullptr && (options.keep != nullptr || options.tape != nullptr || !plain)) {
    fail_usage("a pass with a cache can keep no state and no tape, and runs every layer once");
  }
  if (options.keep != nullptr && (!plain || !options.start.empty())) {
    fail_usage("a state can be kept only of a pass from the embedding through every layer once");
  }
  const auto wanted = size(batch.tokens() * config.d_model);
  if (!options.start.empty() && options.start.size() != wanted) {
    fail_usage("a start of {} values was given, {} tokens × {} need {}", options.start.size(),
               batch.tokens(), config.d_model, wanted);
  }
  if (!options.sequences.empty() &&
      static_cast<std::int64_t>(options.sequences.size()) != batch.prompts()) {
    fail_usage("{} cache sequences were named for {} prompts", options.sequences.size(),
               batch.prompts());
  }
}

// A state is the caller's to keep: it may be of another model.
void check_state(const RunState& state, const ModelConfig& config) {
  const auto layers = size(config.n_layers);
  if (state.resid.size() != layers + 1 || state.keys.size() != layers ||
      state.values.size() != layers) {
    fail_usage("a state of {} layers was given, the model has {}",
               static_cast<std::int64_t>(state.resid.size()) - 1, config.n_layers);
  }
  const auto check = [&](const std::vector<std::vector<float>>& all, std::int64_t width,
                         const char* what) {
    const auto wanted = size(state.batch.tokens() * width);
    for (const std::vector<float>& values : all) {
      if (values.size() == wanted) continue;
      fail_usage(
          "the state holds {} values of {} a layer, its {} tokens × {} of this model need {}",
          values.size(), what, state.batch.tokens(), width, wanted);
    }
  };
  check(state.resid, config.d_model, "the residual stream");
  check(state.keys, config.d_kv(), "keys");
  check(state.values, config.d_kv(), "values");
}

}  // namespace

std::vector<Step> all_steps(const ModelConfig& config) {
  std::vector<Step> steps;
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) steps.push_back({.layer = layer});
  return steps;
}

std::uint64_t RunState::bytes() const {
  std::uint64_t floats = 0;
  for (const auto* all : {&resid, &keys, &values}) {
    for (const std::vector<float>& layer : *all) floats += layer.size();
  }
  return floats * sizeof(float);
}

std::uint64_t RunState::bytes_per_token(const ModelConfig& config) {
  const std::int64_t floats =
      (config.n_layers + 1) * config.d_model + 2 * config.n_layers * config.d_kv();
  return static_cast<std::uint64_t>(floats) * sizeof(float);
}

Forward::Forward(const Model& model) : impl_(std::make_unique<Impl>(model)) {}
Forward::~Forward() = default;
Forward::Forward(Forward&&) noexcept = default;

const Model& Forward::model() const {
  return impl_->model;
}

std::span<const float> Forward::run(const Batch& batch, const Hooks& hooks, KvCache* cache,
                                    std::span<const std::int64_t> sequences) {
  return run(batch, hooks, RunOptions{.cache = cache, .sequences = sequences});
}

std::span<const float> Forward::run(const Batch& batch, const Hooks& hooks,
                                    const RunOptions& options) {
  Impl& s = *impl_;
  const HookTable table(hooks, s.config);
  const std::vector<Step> plain = all_steps(s.config);
  const std::span<const Step> steps = options.steps.empty() ? plain : options.steps;
  check_steps(steps, s.config);
  check_options(options, batch, s.config, std::ranges::equal(steps, plain));
  s.hooks = &table;
  s.cache = options.cache != nullptr ? &options.cache->impl() : nullptr;
  s.base = nullptr;
  s.keep = options.keep;
  s.tape = options.tape != nullptr ? &options.tape->impl() : nullptr;
  s.record = nullptr;

  s.sequences.resize(size(batch.prompts()));
  s.past.assign(size(batch.prompts()), 0);
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    std::int64_t& sequence = s.sequences[size(p)];
    sequence = options.sequences.empty() ? p : options.sequences[size(p)];
    if (s.cache == nullptr) continue;
    const auto have = static_cast<std::int64_t>(s.cache->sequences.size());
    if (sequence < 0 || sequence >= have) {
      fail_usage("prompt {} continues cache sequence {}, the cache has {}", p, sequence, have);
    }
    s.past[size(p)] = s.cache->sequences[size(sequence)].length;
  }
  s.prepare(batch);
  if (s.keep != nullptr) {
    s.keep->batch = batch;
    s.keep->resid.resize(size(s.config.n_layers + 1));
    s.keep->keys.resize(size(s.config.n_layers));
    s.keep->values.resize(size(s.config.n_layers));
  }
  if (s.tape != nullptr) {
    s.tape->model = nullptr;
    s.tape->batch = batch;
    s.tape->positions = s.positions;
    s.tape->embedded = options.start.empty();
    s.tape->steps.assign(steps.size(), {});
    s.tape->final_norm = {};
  }

  if (options.start.empty()) {
    s.embed();
  } else {
    s.x.assign(options.start.begin(), options.start.end());
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (s.tape != nullptr) {
      s.record = &s.tape->steps[i];
      s.record->step = steps[i];
    }
    s.step(steps[i]);
  }
  s.final_sites();
  if (s.keep != nullptr) s.keep->resid.back() = s.x;
  if (s.tape != nullptr) s.finish_tape();
  if (s.cache != nullptr) {
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      s.cache->sequences[size(s.sequences[size(p)])].length += batch.length(p);
    }
  }
  s.release();
  return s.x;
}

std::span<const float> Forward::resume(const RunState& state, std::int32_t layer,
                                       std::span<const Continuation> which, const Hooks& hooks) {
  Impl& s = *impl_;
  const std::int64_t d = s.config.d_model;
  check_state(state, s.config);
  if (layer < 0 || layer > s.config.n_layers) {
    fail_usage("a pass cannot start at layer {} of {}", layer, s.config.n_layers);
  }
  const HookTable table(hooks, s.config);
  Batch batch;
  s.sequences.clear();
  s.past.clear();
  for (const Continuation& c : which) {
    if (c.prompt < 0 || c.prompt >= state.batch.prompts()) {
      fail_usage("prompt {} of the state was asked for, it has {}", c.prompt,
                 state.batch.prompts());
    }
    if (c.first < 0 || c.first >= state.batch.length(c.prompt)) {
      fail_usage("prompt {} cannot be computed from row {} on, it has {} tokens", c.prompt, c.first,
                 state.batch.length(c.prompt));
    }
    if (c.first > 0 && !s.config.causal) {
      fail_usage("a model that attends in both directions is computed from row 0 on, not {}",
                 c.first);
    }
    const std::int64_t begin = state.batch.offsets[size(c.prompt)] + c.first;
    const std::int64_t end = state.batch.offsets[size(c.prompt) + 1];
    batch.add(std::span(state.batch.ids).subspan(size(begin), size(end - begin)));
    s.sequences.push_back(c.prompt);
    s.past.push_back(c.first);
  }
  s.hooks = &table;
  s.cache = nullptr;
  s.base = &state;
  s.keep = nullptr;
  s.tape = nullptr;
  s.record = nullptr;
  s.resumed = std::move(batch);
  s.prepare(s.resumed);
  for (std::size_t i = 0; i < which.size(); ++i) {
    const std::int64_t from = state.batch.offsets[size(which[i].prompt)] + which[i].first;
    std::copy_n(state.resid[size(layer)].data() + from * d,
                s.resumed.length(static_cast<std::int64_t>(i)) * d,
                s.x.data() + s.resumed.offsets[i] * d);
  }
  for (std::int32_t l = layer; l < s.config.n_layers; ++l) s.step({.layer = l});
  s.final_sites();
  s.release();
  return s.x;
}

void Forward::read_head(SiteKind kind, std::int32_t layer, std::int64_t head,
                        std::span<const float> residual, std::span<float> out) const {
  Impl& s = *impl_;
  const std::int64_t d = s.config.d_model, dh = s.config.d_head;
  const bool known = kind == SiteKind::q || kind == SiteKind::k || kind == SiteKind::v;
  const std::int64_t heads = kind == SiteKind::q ? s.config.n_heads : s.config.n_kv_heads;
  if (!known || layer < 0 || layer >= s.config.n_layers || head < 0 || head >= heads) {
    fail_usage("there is no head {} that reads at {}", head, site_name({kind, layer}));
  }
  const std::int64_t rows = static_cast<std::int64_t>(residual.size()) / d;
  if (residual.size() != size(rows * d) || out.size() != size(rows * dh)) {
    fail_usage("{} gets {} residual values and room for {}, rows of {} and of {} are needed",
               site_name({kind, layer}), residual.size(), out.size(), d, dh);
  }
  const Linear& linear = s.head_input(kind, layer, head);
  if (!s.norm_before()) {
    kernels::multiply(residual.data(), d, rows, linear.weight, data_or_null(linear.bias),
                      out.data(), dh);
    return;
  }
  const NormWeights& w = s.weights.layers[size(layer)].ln1;
  std::vector<float> normalized(residual.size()), scale(size(rows));
  kernels::norm_scale(s.config.norm, s.config.norm_eps, residual.data(), d, rows, d, scale.data());
  kernels::norm_normalize(s.config.norm, residual.data(), d, scale.data(), rows, d,
                          normalized.data(), d);
  kernels::norm_affine(normalized.data(), d, rows, d, w.weight.data(),
                       static_cast<float>(s.config.norm_offset), data_or_null(w.bias),
                       normalized.data(), d);
  kernels::multiply(normalized.data(), d, rows, linear.weight, data_or_null(linear.bias),
                    out.data(), dh);
}

void Forward::run_logits(std::span<const std::int64_t> rows, std::span<float> out) {
  const Impl& s = *impl_;
  const std::int64_t d = s.config.d_model;
  const std::vector<float>& source = s.final_out.empty() ? s.x : s.final_out;
  std::vector<float> picked(rows.size() * size(d));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (rows[r] < 0 || rows[r] >= s.tokens) {
      fail_usage("logits of token row {} were asked for, the batch has {} rows", rows[r], s.tokens);
    }
    std::copy_n(source.data() + rows[r] * d, d, picked.data() + r * size(d));
  }
  if (s.final_out.empty()) {
    logits(picked, out);
  } else {
    unembed(picked, out);
  }
}

void Forward::final_norm(std::span<const float> x, std::span<float> out) const {
  const Impl& s = *impl_;
  const std::int64_t d = s.config.d_model;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / d;
  if (!s.config.final_norm || s.config.norm == NormKind::none) {
    std::copy(x.begin(), x.end(), out.begin());
    return;
  }
  std::vector<float> scale(size(rows));
  kernels::norm_scale(s.config.norm, s.config.norm_eps, x.data(), d, rows, d, scale.data());
  kernels::norm_normalize(s.config.norm, x.data(), d, scale.data(), rows, d, out.data(), d);
  kernels::norm_affine(out.data(), d, rows, d, s.weights.ln_final.weight.data(),
                       static_cast<float>(s.config.norm_offset),
                       data_or_null(s.weights.ln_final.bias), out.data(), d);
}

void Forward::unembed(std::span<const float> x, std::span<float> out) const {
  const Impl& s = *impl_;
  const std::int64_t d = s.config.d_model, v = s.config.d_vocab;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / d;
  kernels::multiply(x.data(), d, rows, s.weights.unembed.weight,
                    data_or_null(s.weights.unembed.bias), out.data(), v);
  if (s.config.final_softcap > 0) {
    kernels::softcap(out.data(), rows * v, static_cast<float>(s.config.final_softcap));
  }
}

void Forward::logits(std::span<const float> x, std::span<float> out) const {
  std::vector<float> normalized(x.size());
  final_norm(x, normalized);
  unembed(normalized, out);
}

}  // namespace lamina
