#include "lamina/core/backward.h"

#include <algorithm>

#include "engine/backward/parameter_norms.h"
#include "engine/backward/steps.h"
#include "engine/backward/transposed.h"
#include "engine/hook_table.h"
#include "engine/kernels.h"
#include "engine/rope.h"
#include "engine/weights.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// Letters of the shape comments as in pass.h.

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

const float* data_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

bool all_zero(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 0.0f; });
}

std::string tensor(std::int32_t layer, const char* name) {
  return std::to_string(layer) + "." + name;
}

}  // namespace

struct Backward::Impl {
  explicit Impl(const Model& m)
      : model(m), config(m.config()), weights(m.weights()), transposed(m.weights()) {
    for (const Rope& rope : config.ropes) ropes.emplace_back(rope, config.rotary_dim);
    negative_sines.resize(ropes.size());
  }

  const Model& model;
  const ModelConfig& config;
  const Weights& weights;
  backward::Transposed transposed;
  std::vector<RopeTable> ropes;
  std::vector<std::vector<float>> negative_sines;  // turning back
  kernels::PackedMatrix unembed_transposed;

  // Seeds of the next run.
  const Tape::Impl* seeded = nullptr;
  std::uint64_t seeded_pass = 0;
  bool seeded_without_norms = false;
  std::vector<float> final_gradient;  // [N, D] at the output of the final norm
  std::vector<float> resid_gradient;  // [N, D] at the output of the last block
  std::vector<float> seed_inputs;     // [rows, D], [rows, V]: only for parameter norms
  std::vector<float> seed_gradients;

  // The run in progress.
  const Tape::Impl* tape = nullptr;
  const BackwardRules* rules = nullptr;
  const HookTable* hooks = nullptr;
  const ReadPointFunction* read_points = nullptr;
  std::int64_t tokens = 0;
  std::vector<float> x;             // [N, D] gradient at the residual stream
  std::vector<float> out, reading;  // [N, D] at what a sublayer adds, at what it reads
  std::vector<float> part;          // [N, D]
  std::vector<float> q, k, v, z;    // [N, H·dh] each: k and v per query head
  std::vector<float> kv_k, kv_v;    // [N, K·dh] added over a group
  std::vector<float> gate, up;      // [N, M]
  std::vector<float> act, factor;   // [N, M] activation and its factor
  std::vector<float> inputs;        // [N, D] what a matrix read in the forward pass
  std::vector<float> at_scale;      // [N]
  std::vector<std::vector<float>> point_gradients;  // [N, D] of several read points

  bool wants_norms = false;
  backward::ParameterNorms norms;
  std::vector<ParameterNorm> norms_in_order;

  void seed(const Tape::Impl& t, std::span<const std::int64_t> rows,
            std::span<const float> gradient);
  void unembed_input(std::span<const std::int64_t> rows, const std::vector<float>& gradient);
  void check_tape(const Tape::Impl& t) const;
  void begin_seed(const Tape::Impl& t);
  void check_norms(const Tape::Impl& t) const;
  void run();
  void final_norm();
  void head_dense();
  void step(const Tape::Impl::Step& s);
  void attention(const Tape::Impl::Step& s);
  void attention_heads(const Tape::Impl::Step& s);
  void heads_input(const Tape::Impl::Step& s, std::vector<float>& values, std::int64_t heads,
                   bool keys, bool counts);
  void results(const Tape::Impl::Step& s);
  void head_read_points(const Tape::Impl::Step& s);
  void mlp(const Tape::Impl::Step& s);
  void activation(const Tape::Impl::Step& s);
  void embedding();

  /// Back through a norm: `values` holds the gradient at its output and gets the one at its input.
  struct NormPlaceOf {
    const Tape::Impl::Norm& kept;
    const NormWeights& weights;
    SiteKind scale, normalized;
    std::int32_t layer;
    const char* name;
  };
  void norm(const NormPlaceOf& at, std::vector<float>& values);
  /// The same for a read point's share: no hooks.
  void silent_norm(const Tape::Impl::Norm& kept, const NormWeights& w,
                   std::vector<float>& values) const;
  void times(const std::vector<float>& gradient, const Linear& linear, std::vector<float>& to);
  void linear_norm(std::int32_t layer, const char* name, const Linear& linear,
                   const std::vector<float>& read, const std::vector<float>& gradient);
  /// What a sublayer's matrices read: the norm's output, or the residual stream itself.
  void read_inputs(const Tape::Impl::Norm& kept, const NormWeights& w,
                   const std::vector<float>& plain);

  bool has_norms() const {
    return config.norm != NormKind::none && config.norm_place != NormPlace::none;
  }
  bool norm_before() const { return has_norms() && config.norm_place != NormPlace::post; }
  bool sandwich() const { return has_norms() && config.norm_place == NormPlace::sandwich; }
  const LayerWeights& layer_weights(const Tape::Impl::Step& s) const {
    return weights.layers[size(s.step.layer)];
  }
  void fire(SiteKind kind, std::int32_t layer, std::vector<float>& values) const {
    if (hooks->wanted(kind, layer)) hooks->fire(kind, layer, tape->batch, values);
  }
  void add_to_x(const std::vector<float>& values) {
    kernels::add(x.data(), values.data(), tokens * config.d_model);
  }
};

void Backward::Impl::check_tape(const Tape::Impl& t) const {
  if (t.model == nullptr) fail_usage("the backward pass was given a tape that no pass has filled");
  if (t.model != &model) fail_usage("the backward pass was given a tape of another model");
}

void Backward::Impl::begin_seed(const Tape::Impl& t) {
  check_tape(t);
  if (seeded == &t && seeded_pass == t.pass) return;
  if (seeded != nullptr) {
    const bool refilled = seeded == &t;
    seeded = nullptr;
    if (refilled)
      fail_usage("the tape was filled again after the backward pass was seeded from it");
    fail_usage("the backward pass was seeded from two tapes");
  }
  seeded = &t;
  seeded_pass = t.pass;
  seeded_without_norms = false;
  const auto values = size(t.batch.tokens() * config.d_model);
  final_gradient.assign(values, 0.0f);
  resid_gradient.assign(values, 0.0f);
  seed_inputs.clear();
  seed_gradients.clear();
}

// Norms of parameter gradients need what the seeds saw, and one use of every layer's tensors.
void Backward::Impl::check_norms(const Tape::Impl& t) const {
  if (seeded_without_norms) fail_usage("parameter norms were asked for after the seeds were given");
  std::vector<int> attention(size(config.n_layers)), mlps(attention.size());
  for (const Tape::Impl::Step& s : t.steps) {
    const std::size_t layer = size(s.step.layer);
    const bool twice =
        (s.step.attention && ++attention[layer] > 1) || (s.step.mlp && ++mlps[layer] > 1);
    if (twice) fail_usage("parameter norms were asked for, but the pass ran layer {} twice", layer);
  }
}

void Backward::Impl::seed(const Tape::Impl& t, std::span<const std::int64_t> rows,
                          std::span<const float> gradient) {
  check_tape(t);
  if (config.head == Head::none) {
    fail_usage("this {} model has no head: it has no logits to go back from", config.family);
  }
  const std::int64_t d = config.d_model, vocabulary = config.d_out();
  const auto count = static_cast<std::int64_t>(rows.size());
  if (static_cast<std::int64_t>(gradient.size()) != count * vocabulary) {
    fail_usage("a gradient of {} values was given, {} rows × {} need {}", gradient.size(), count,
               vocabulary, count * vocabulary);
  }
  for (const std::int64_t row : rows) {
    if (row < 0 || row >= t.batch.tokens()) {
      fail_usage("the gradient of token row {} was given, the tape has {} rows", row,
                 t.batch.tokens());
    }
  }
  begin_seed(t);
  if (!wants_norms) seeded_without_norms = true;
  std::vector<float> at_logits(gradient.begin(), gradient.end());
  if (config.final_softcap > 0 || wants_norms) {
    std::vector<float> read(size(count * d));
    const bool normed = !t.final_norm.normalized.empty();
    const std::vector<float>& source = normed              ? t.final_norm.normalized
                                       : config.head_dense ? t.head
                                                           : t.resid;
    for (std::int64_t r = 0; r < count; ++r) {
      std::copy_n(source.data() + rows[size(r)] * d, d, read.data() + r * d);
    }
    if (normed) {
      kernels::norm_affine(read.data(), d, count, d, weights.ln_final.weight.data(),
                           static_cast<float>(config.norm_offset),
                           data_or_null(weights.ln_final.bias), read.data(), d);
    } else if (config.head_dense) {
      kernels::activate(config.head_act, read.data(), count, d, read.data());
    }
    if (config.final_softcap > 0) {
      const auto cap = static_cast<float>(config.final_softcap);
      std::vector<float> logits(at_logits.size());
      kernels::multiply(read.data(), d, count, weights.unembed.weight,
                        data_or_null(weights.unembed.bias), logits.data(), vocabulary);
      kernels::softcap(logits.data(), count * vocabulary, cap);
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const float share = logits[i] / cap;
        at_logits[i] *= 1.0f - share * share;
      }
    }
    if (wants_norms) {
      seed_inputs.insert(seed_inputs.end(), read.begin(), read.end());
      seed_gradients.insert(seed_gradients.end(), at_logits.begin(), at_logits.end());
    }
  }
  unembed_input(rows, at_logits);
}

// gradient [rows, V] → added to final_gradient. Rows with few entries (a difference of two logits)
// need a few rows of the unembedding, not the product with all of it.
void Backward::Impl::unembed_input(std::span<const std::int64_t> rows,
                                   const std::vector<float>& gradient) {
  constexpr std::size_t kFew = 64;
  const std::int64_t d = config.d_model, vocabulary = config.d_out();
  std::vector<std::int64_t> dense;
  std::vector<float> word(size(d));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const float* g = gradient.data() + static_cast<std::int64_t>(r) * vocabulary;
    std::vector<std::int64_t> entries;
    for (std::int64_t i = 0; i < vocabulary && entries.size() <= kFew; ++i) {
      if (g[i] != 0.0f) entries.push_back(i);
    }
    if (entries.size() > kFew) {
      dense.push_back(static_cast<std::int64_t>(r));
      continue;
    }
    float* to = final_gradient.data() + rows[r] * d;
    for (const std::int64_t i : entries) {
      weights.unembed.weight.copy_row(i, word.data());
      for (std::int64_t j = 0; j < d; ++j) to[j] += g[i] * word[size(j)];
    }
  }
  if (dense.empty()) return;
  if (unembed_transposed.empty()) {
    unembed_transposed = backward::transpose(weights.unembed.weight);
  }
  std::vector<float> picked(dense.size() * size(vocabulary)), product(dense.size() * size(d));
  for (std::size_t i = 0; i < dense.size(); ++i) {
    std::copy_n(gradient.data() + dense[i] * vocabulary, vocabulary,
                picked.data() + i * size(vocabulary));
  }
  kernels::multiply(picked.data(), vocabulary, static_cast<std::int64_t>(dense.size()),
                    unembed_transposed, nullptr, product.data(), d);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    kernels::add(final_gradient.data() + rows[size(dense[i])] * d, product.data() + i * size(d), d);
  }
}

void Backward::Impl::times(const std::vector<float>& gradient, const Linear& linear,
                           std::vector<float>& to) {
  const kernels::PackedMatrix& w = transposed.of(linear);
  kernels::multiply(gradient.data(), w.n_in(), tokens, w, nullptr, to.data(), w.n_out());
}

void Backward::Impl::norm(const NormPlaceOf& at, std::vector<float>& values) {
  const std::int64_t d = config.d_model;
  if (wants_norms) {
    const std::string name = at.layer < 0 ? std::string(at.name) : tensor(at.layer, at.name);
    norms.norm(name + ".w", name + ".b", tokens, d, at.kept.normalized.data(), values.data(),
               !at.weights.bias.empty());
  }
  backward::norm_weight(values.data(), tokens, d, at.weights.weight.data(),
                        static_cast<float>(config.norm_offset));
  fire(at.normalized, at.layer, values);
  const bool flows = !rules->frozen_norm;
  if (flows || hooks->wanted(at.scale, at.layer)) {
    backward::scale_gradient(at.kept, values.data(), tokens, d, at_scale.data());
    fire(at.scale, at.layer, at_scale);
  }
  backward::norm_input(config.norm, at.kept, values.data(), flows ? at_scale.data() : nullptr,
                       tokens, d, values.data());
}

void Backward::Impl::silent_norm(const Tape::Impl::Norm& kept, const NormWeights& w,
                                 std::vector<float>& values) const {
  const std::int64_t d = config.d_model;
  backward::norm_weight(values.data(), tokens, d, w.weight.data(),
                        static_cast<float>(config.norm_offset));
  std::vector<float> scales(rules->frozen_norm ? 0 : size(tokens));
  if (!rules->frozen_norm) {
    backward::scale_gradient(kept, values.data(), tokens, d, scales.data());
  }
  backward::norm_input(config.norm, kept, values.data(), data_or_null(scales), tokens, d,
                       values.data());
}

void Backward::Impl::read_inputs(const Tape::Impl::Norm& kept, const NormWeights& w,
                                 const std::vector<float>& plain) {
  if (!norm_before()) {
    inputs = plain;
    return;
  }
  const std::int64_t d = config.d_model;
  kernels::norm_affine(kept.normalized.data(), d, tokens, d, w.weight.data(),
                       static_cast<float>(config.norm_offset), data_or_null(w.bias), inputs.data(),
                       d);
}

void Backward::Impl::linear_norm(std::int32_t layer, const char* name, const Linear& linear,
                                 const std::vector<float>& read,
                                 const std::vector<float>& gradient) {
  if (!wants_norms) return;
  const std::int64_t n_in = linear.weight.n_in(), n_out = linear.weight.n_out();
  const std::string weight = tensor(layer, name);
  norms.linear(weight, weight + ".b", tokens, {read.data(), n_in}, n_in, {gradient.data(), n_out},
               n_out, !linear.bias.empty());
}

void Backward::Impl::run() {
  const std::int64_t d = config.d_model;
  tokens = tape->batch.tokens();
  for (auto* buffer : {&x, &out, &reading, &part, &inputs}) buffer->resize(size(tokens * d));
  for (auto* buffer : {&q, &k, &v, &z}) buffer->resize(size(tokens * config.d_attn()));
  for (auto* buffer : {&kv_k, &kv_v}) buffer->resize(size(tokens * config.d_kv()));
  for (auto* buffer : {&gate, &up, &act, &factor}) buffer->resize(size(tokens * config.d_mlp));
  at_scale.resize(size(tokens));
  for (std::size_t i = 0; i < ropes.size(); ++i) {
    std::int64_t longest = 0;
    for (std::int64_t p = 0; p < tape->batch.prompts(); ++p) {
      longest = std::max(longest, tape->batch.length(p));
    }
    ropes[i].grow(longest);
    const auto entries = size(longest * (config.rotary_dim / 2));
    negative_sines[i].resize(entries);
    for (std::size_t j = 0; j < entries; ++j) negative_sines[i][j] = -ropes[i].sin()[j];
  }
  norms.clear();
  final_norm();
  for (auto s = tape->steps.rbegin(); s != tape->steps.rend(); ++s) {
    // Seeds that begin in the middle: nothing has arrived here, and nobody looks.
    const bool silent =
        !wants_norms && !*read_points && !hooks->wanted_in(s->step.layer) && all_zero(x);
    if (!silent) step(*s);
  }
  embedding();
  norms_in_order = wants_norms ? norms.in_order(config) : std::vector<ParameterNorm>{};
}

void Backward::Impl::final_norm() {
  x = final_gradient;
  if (!tape->final_norm.normalized.empty()) {
    norm({tape->final_norm, weights.ln_final, SiteKind::ln_final_scale,
          SiteKind::ln_final_normalized, -1, "ln_final"},
         x);
  }
  if (config.head_dense) head_dense();
  if (*read_points) (*read_points)({}, x);
  add_to_x(resid_gradient);
}

// x, the gradient at the output of the head's dense layer, becomes the one at its input.
void Backward::Impl::head_dense() {
  const std::int64_t d = config.d_model;
  std::vector<float> slope(x.size());
  backward::activation_factor(config.head_act, tape->head.data(), tokens * d, *rules, slope.data());
  for (std::size_t i = 0; i < x.size(); ++i) slope[i] *= x[i];
  if (wants_norms) {
    norms.linear("head", "head.b", tokens, {tape->resid.data(), d}, d, {slope.data(), d}, d,
                 !weights.head.bias.empty());
  }
  times(slope, weights.head, x);
}

void Backward::Impl::step(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const LayerWeights& w = layer_weights(s);
  const bool after = has_norms() && !norm_before();
  const bool has_mlp = config.d_mlp > 0 && s.step.mlp;
  const NormPlaceOf first{s.ln1, w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized,
                          layer, "ln1"};
  const NormPlaceOf second{s.ln2, w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized,
                           layer, "ln2"};
  const ReadPoint mlp_point{ReadPoint::Kind::mlp, layer, -1};

  if (after && has_mlp) {
    fire(SiteKind::normalized_resid_post, layer, x);
    norm(second, x);
  }
  fire(SiteKind::resid_post, layer, x);

  if (config.parallel) {
    const bool shared = norm_before() && config.shared_parallel_norm;
    std::vector<float> mlp_reading;
    const std::vector<float> at_post = x;
    if (has_mlp) {
      out = at_post;
      mlp(s);
      mlp_reading = reading;
      if (*read_points && !rules->frozen_mlp) {
        part = reading;
        if (norm_before()) silent_norm(shared ? s.ln1 : s.ln2, shared ? w.ln1 : w.ln2, part);
        (*read_points)(mlp_point, part);
      }
      if (norm_before() && !shared && !rules->frozen_mlp) norm(second, mlp_reading);
      if (!shared) add_to_x(mlp_reading);
    }
    if (s.step.attention) {
      out = at_post;
      attention(s);
    } else {
      std::fill(reading.begin(), reading.end(), 0.0f);
    }
    if (shared && has_mlp) {
      kernels::add(reading.data(), mlp_reading.data(), tokens * config.d_model);
    }
    if (norm_before() && (s.step.attention || (shared && has_mlp))) norm(first, reading);
    add_to_x(reading);
    fire(SiteKind::resid_pre, layer, x);
    return;
  }

  if (has_mlp) {
    out = x;
    mlp(s);
    if (!rules->frozen_mlp) {
      if (norm_before()) norm(second, reading);
      if (*read_points) (*read_points)(mlp_point, reading);
      add_to_x(reading);
    }
  }
  if (after && s.step.attention) {
    if (config.d_mlp > 0) fire(SiteKind::normalized_resid_mid, layer, x);
    norm(first, x);
  }
  if (config.d_mlp > 0) fire(SiteKind::resid_mid, layer, x);
  if (s.step.attention) {
    out = x;
    attention(s);
    if (norm_before()) norm(first, reading);
    add_to_x(reading);
  }
  fire(SiteKind::resid_pre, layer, x);
}

// out [N, D], gradient at attn_out → reading [N, D], gradient at what W_Q, W_K and W_V read.
void Backward::Impl::attention(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const LayerWeights& w = layer_weights(s);
  fire(SiteKind::attn_out, layer, out);
  if (sandwich()) {
    norm({s.ln1_post, w.ln1_post, SiteKind::ln1_post_scale, SiteKind::ln1_post_normalized, layer,
          "ln1_post"},
         out);
  }
  linear_norm(layer, "o", w.o, s.z, out);
  times(out, w.o, z);
  results(s);
  fire(SiteKind::z, layer, z);
  attention_heads(s);

  read_inputs(s.ln1, w.ln1, s.attn_in);
  linear_norm(layer, "q", w.q, inputs, q);
  linear_norm(layer, "k", w.k, inputs, kv_k);
  linear_norm(layer, "v", w.v, inputs, kv_v);
  if (rules->frozen_pattern && all_zero(q) && all_zero(kv_k)) {
    std::fill(reading.begin(), reading.end(), 0.0f);
  } else {
    times(q, w.q, reading);
    times(kv_k, w.k, part);
    kernels::add(reading.data(), part.data(), tokens * config.d_model);
  }
  times(kv_v, w.v, part);
  kernels::add(reading.data(), part.data(), tokens * config.d_model);
}

// hook_result: every head has the gradient of their sum. What a hook changes goes to its z.
void Backward::Impl::results(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  if (!hooks->wanted(SiteKind::result, layer)) return;
  const std::int64_t d = config.d_model, heads = config.n_heads, dh = config.d_head;
  std::vector<float> all(size(tokens * heads * d));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      std::copy_n(out.data() + t * d, d, all.data() + (t * heads + h) * d);
    }
  }
  fire(SiteKind::result, layer, all);
  if (!hooks->writes(SiteKind::result, layer)) return;
  std::vector<float> change(size(tokens * d)), product(size(tokens * config.d_attn()));
  for (std::int64_t h = 0; h < heads; ++h) {
    bool changed = false;
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t i = 0; i < d; ++i) {
        float& c = change[size(t * d + i)];
        c = all[size((t * heads + h) * d + i)] - out[size(t * d + i)];
        changed = changed || c != 0.0f;
      }
    }
    if (!changed) continue;
    times(change, layer_weights(s).o, product);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t at = (t * heads + h) * dh;
      for (std::int64_t i = at; i < at + dh; ++i) z[size(i)] += product[size(i)];
    }
  }
}

// z [N, H·dh] → q, kv_k, kv_v: gradients at the sites q, k and v.
void Backward::Impl::attention_heads(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const std::int64_t dh = config.d_head, group = config.n_heads / config.n_kv_heads;
  backward::AttentionBack a{config, *tape, s, *rules, z.data(), {}, q.data(), k.data(), v.data()};
  if (hooks->wanted(SiteKind::pattern, layer) || hooks->wanted(SiteKind::attn_scores, layer)) {
    a.attention_sites = [&](SiteKind kind, std::int64_t prompt, std::span<float> values) {
      const std::int64_t length = tape->batch.length(prompt);
      hooks->fire_attention(kind, layer, tape->batch, prompt, length, length, values);
    };
  }
  backward::attention_input(a);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < config.n_kv_heads; ++h) {
      const std::int64_t to = (t * config.n_kv_heads + h) * dh;
      const std::int64_t from = (t * config.n_heads + h * group) * dh;
      for (std::int64_t i = 0; i < dh; ++i) {
        float sum_k = 0.0f, sum_v = 0.0f;
        for (std::int64_t g = 0; g < group; ++g) {
          sum_k += k[size(from + g * dh + i)];
          sum_v += v[size(from + g * dh + i)];
        }
        kv_k[size(to + i)] = sum_k;
        kv_v[size(to + i)] = sum_v;
      }
    }
  }
  if (config.positions == Positions::rotary) {
    fire(SiteKind::rot_k, layer, kv_k);
    fire(SiteKind::rot_q, layer, q);
  }
  heads_input(s, q, config.n_heads, false, true);
  heads_input(s, kv_k, config.n_kv_heads, true, true);
  fire(SiteKind::v, layer, kv_v);
  fire(SiteKind::k, layer, kv_k);
  fire(SiteKind::q, layer, q);
  if (*read_points) head_read_points(s);
}

// Back through the rotation and the norm of every head's q or k, in place: values [N, heads·dh].
void Backward::Impl::heads_input(const Tape::Impl::Step& s, std::vector<float>& values,
                                 std::int64_t heads, bool keys, bool counts) {
  const std::int64_t dh = config.d_head;
  if (config.positions == Positions::rotary) {
    const auto rope = size(config.layers[size(s.step.layer)].rope);
    kernels::rotate(config.rope_style, values.data(), tokens, heads, dh, config.rotary_dim,
                    ropes[rope].cos(), negative_sines[rope].data(), tape->positions.data(),
                    values.data());
  }
  if (!config.qk_norm) return;
  const LayerWeights& w = layer_weights(s);
  const Tape::Impl::Norm& kept = keys ? s.k_norm : s.q_norm;
  const std::vector<float>& weight = keys ? w.k_norm : w.q_norm;
  if (wants_norms && counts) {
    norms.norm(tensor(s.step.layer, keys ? "k_norm" : "q_norm"), "", tokens * heads, dh,
               kept.normalized.data(), values.data(), false);
  }
  backward::norm_weight(values.data(), tokens * heads, dh, weight.data(),
                        static_cast<float>(config.norm_offset));
  // Keys per query head share the norm of their group's key.
  const std::int64_t own = keys ? config.n_kv_heads : config.n_heads;
  Tape::Impl::Norm expanded;
  if (heads != own) {
    const std::int64_t group = heads / own;
    for (std::int64_t r = 0; r < tokens * heads; ++r) {
      const std::int64_t from = r / heads * own + r % heads / group;
      expanded.scale.push_back(kept.scale[size(from)]);
      expanded.normalized.insert(expanded.normalized.end(), kept.normalized.begin() + from * dh,
                                 kept.normalized.begin() + (from + 1) * dh);
    }
  }
  const Tape::Impl::Norm& norm_of = heads == own ? kept : expanded;
  std::vector<float> scales(size(tokens * heads));
  if (!rules->frozen_norm) {
    backward::scale_gradient(norm_of, values.data(), tokens * heads, dh, scales.data());
  }
  backward::norm_input(NormKind::rms, norm_of, values.data(),
                       rules->frozen_norm ? nullptr : scales.data(), tokens * heads, dh,
                       values.data());
}

// Many small products: computed side by side, a bounded number at a time, and reported in order.
void Backward::Impl::head_read_points(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const LayerWeights& w = layer_weights(s);
  const std::int64_t dh = config.d_head, d = config.d_model;
  const std::int64_t group = config.n_heads / config.n_kv_heads;
  heads_input(s, k, config.n_heads, true, false);

  struct Job {
    ReadPoint point;
    const kernels::PackedMatrix* matrix;
    const float* gradient;  // [N, dh] with row stride H·dh
  };
  std::vector<Job> jobs;
  for (std::int64_t h = 0; h < config.n_heads; ++h) {
    const auto add = [&](ReadPoint::Kind kind, SiteKind site, std::int64_t weight_head,
                         const std::vector<float>& gradient) {
      jobs.push_back({{kind, layer, h},
                      &transposed.of_head(site, layer, weight_head, dh),
                      gradient.data() + h * dh});
    };
    add(ReadPoint::Kind::q, SiteKind::q, h, q);
    add(ReadPoint::Kind::k, SiteKind::k, h / group, k);
    add(ReadPoint::Kind::v, SiteKind::v, h / group, v);
  }
  constexpr std::size_t kBufferFloats = std::size_t{16} << 20;
  const std::size_t some =
      std::clamp<std::size_t>(kBufferFloats / size(tokens * d), 1, jobs.size());
  std::vector<std::vector<float>>& values = point_gradients;
  if (values.size() < some) values.resize(some);
  for (std::vector<float>& one : values) one.resize(size(tokens * d));
  for (std::size_t first = 0; first < jobs.size(); first += some) {
    const std::size_t count = std::min(some, jobs.size() - first);
#pragma omp parallel for schedule(dynamic) if (count > 1)
    for (std::size_t i = 0; i < count; ++i) {
      const Job& job = jobs[first + i];
      kernels::multiply(job.gradient, config.d_attn(), tokens, *job.matrix, nullptr,
                        values[i].data(), d);
      if (norm_before()) silent_norm(s.ln1, w.ln1, values[i]);
    }
    for (std::size_t i = 0; i < count; ++i) (*read_points)(jobs[first + i].point, values[i]);
  }
}

// out [N, D], gradient at mlp_out → reading [N, D], gradient at what its matrices read.
void Backward::Impl::mlp(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const LayerWeights& w = layer_weights(s);
  fire(SiteKind::mlp_out, layer, out);
  if (rules->frozen_mlp) {
    std::fill(reading.begin(), reading.end(), 0.0f);
    return;
  }
  if (sandwich()) {
    norm({s.ln2_post, w.ln2_post, SiteKind::ln2_post_scale, SiteKind::ln2_post_normalized, layer,
          "ln2_post"},
         out);
  }
  times(out, w.out, gate);
  activation(s);

  const bool shared = config.parallel && config.shared_parallel_norm;
  read_inputs(shared ? s.ln1 : s.ln2, shared ? w.ln1 : w.ln2, s.mlp_in);
  if (config.gated) {
    linear_norm(layer, "in", w.in, inputs, up);
    linear_norm(layer, "gate", w.gate, inputs, gate);
    times(up, w.in, reading);
    times(gate, w.gate, part);
    kernels::add(reading.data(), part.data(), tokens * config.d_model);
  } else {
    linear_norm(layer, "in", w.in, inputs, gate);
    times(gate, w.in, reading);
  }
}

// gate holds the gradient at mlp_post and gets the one at mlp_pre; up the one at mlp_pre_linear.
void Backward::Impl::activation(const Tape::Impl::Step& s) {
  const std::int32_t layer = s.step.layer;
  const LayerWeights& w = layer_weights(s);
  const std::int64_t m = config.d_mlp, n = tokens * m;
  const bool solu = config.act == Activation::solu || config.act == Activation::solu_ln;
  const bool solu_norm = config.act == Activation::solu_ln && !config.gated;
  kernels::activate(config.act, s.gate.data(), tokens, m, act.data());
  if (wants_norms) {  // W_out read the MLP's post values
    const bool written = !s.post.empty();
    std::vector<float> post = written ? s.post : act;
    if (config.gated && !written) {
      for (std::size_t i = 0; i < post.size(); ++i) post[i] *= s.up[i];
    } else if (solu_norm && !written) {
      kernels::norm_affine(s.mlp_ln.normalized.data(), m, tokens, m, w.mlp_ln.weight.data(), 0.0f,
                           data_or_null(w.mlp_ln.bias), post.data(), m);
    }
    linear_norm(layer, "out", w.out, post, out);
  }
  fire(SiteKind::mlp_post, layer, gate);
  if (solu_norm) {
    if (wants_norms) {
      norms.norm(tensor(layer, "mlp_ln.w"), tensor(layer, "mlp_ln.b"), tokens, m,
                 s.mlp_ln.normalized.data(), gate.data(), !w.mlp_ln.bias.empty());
    }
    backward::norm_weight(gate.data(), tokens, m, w.mlp_ln.weight.data(), 0.0f);
    std::vector<float> scales(size(tokens));
    if (!rules->frozen_norm) {
      backward::scale_gradient(s.mlp_ln, gate.data(), tokens, m, scales.data());
    }
    backward::norm_input(NormKind::layer, s.mlp_ln, gate.data(),
                         rules->frozen_norm ? nullptr : scales.data(), tokens, m, gate.data());
  }
  const float share = config.gated && rules->half_gate ? 0.5f : 1.0f;
  if (!solu) backward::activation_factor(config.act, s.gate.data(), n, *rules, factor.data());
#pragma omp parallel for if (n > 40'000)
  for (std::int64_t row = 0; row < tokens; ++row) {
    for (std::int64_t i = row * m; i < (row + 1) * m; ++i) {
      const auto at = size(i);
      if (config.gated) {
        up[at] = share * gate[at] * act[at];
        gate[at] *= share * s.up[at];
      }
      if (!solu) gate[at] *= factor[at];
    }
  }
  if (solu) backward::solu_input(s.gate.data(), tokens, m, *rules, gate.data());
  if (config.gated) fire(SiteKind::mlp_pre_linear, layer, up);
  fire(SiteKind::mlp_pre, layer, gate);
}

void Backward::Impl::embedding() {
  const std::int64_t d = config.d_model;
  const bool from_ids = tape->embedded;
  if (from_ids && config.embed_norm) {
    norm({tape->embed_norm, weights.embed_norm, SiteKind::embed_ln_scale,
          SiteKind::embed_ln_normalized, -1, "embed_norm"},
         x);
  }
  if (from_ids && config.n_types > 0 && wants_norms) {
    norms.rows("type_embed", std::vector<std::int32_t>(size(tokens)), d, x.data());
  }
  if (from_ids && config.positions == Positions::learned) {
    part = x;
    fire(SiteKind::pos_embed, -1, part);
    if (wants_norms) norms.rows("pos_embed", tape->positions, d, part.data());
  }
  if (from_ids) fire(SiteKind::embed, -1, x);
  if (!wants_norms) return;
  std::vector<float> scaled = x;
  if (config.embed_scale != 1.0) {
    for (float& g : scaled) g *= static_cast<float>(config.embed_scale);
  }
  const std::span<const std::int32_t> ids =
      from_ids ? tape->batch.ids : std::span<const std::int32_t>{};
  if (!config.tied && from_ids) norms.rows("embed", ids, d, scaled.data());
  norms.unembed(config.tied ? "embed" : "unembed",
                {.rows = static_cast<std::int64_t>(seed_inputs.size()) / d,
                 .d = d,
                 .vocabulary = config.d_out(),
                 .x = seed_inputs.data(),
                 .gradient = seed_gradients.data(),
                 .has_bias = !weights.unembed.bias.empty(),
                 .ids = config.tied ? ids : std::span<const std::int32_t>{},
                 .embed_gradient = scaled.data()});
}

Backward::Backward(const Model& model) : impl_(std::make_unique<Impl>(model)) {}
Backward::~Backward() = default;
Backward::Backward(Backward&&) noexcept = default;

void Backward::seed(const Tape& tape, std::span<const std::int64_t> rows,
                    std::span<const float> gradient) {
  impl_->seed(tape.impl(), rows, gradient);
}

void Backward::seed_residual(const Tape& tape, std::span<const float> gradient) {
  Impl& s = *impl_;
  s.check_tape(tape.impl());
  const auto wanted = size(tape.batch().tokens() * s.config.d_model);
  if (gradient.size() != wanted) {
    fail_usage("a gradient of {} values was given, {} tokens × {} need {}", gradient.size(),
               tape.batch().tokens(), s.config.d_model, wanted);
  }
  s.begin_seed(tape.impl());
  for (std::size_t i = 0; i < wanted; ++i) s.resid_gradient[i] += gradient[i];
}

void Backward::run(const Tape& tape, const BackwardRules& rules, const Hooks& hooks,
                   const ReadPointFunction& read_points) {
  Impl& s = *impl_;
  s.begin_seed(tape.impl());
  s.seeded = nullptr;
  if (s.wants_norms) s.check_norms(tape.impl());
  const HookTable table(hooks, s.config);
  s.tape = &tape.impl();
  s.rules = &rules;
  s.hooks = &table;
  s.read_points = &read_points;
  s.run();
}

void Backward::want_parameter_norms(bool wanted) {
  impl_->wants_norms = wanted;
}

const std::vector<ParameterNorm>& Backward::parameter_norms() const {
  return impl_->norms_in_order;
}

}  // namespace lamina
