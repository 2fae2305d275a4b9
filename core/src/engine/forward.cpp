#include "lamina/core/forward.h"

#include <algorithm>
#include <map>
#include <optional>

#include "engine/hook_table.h"
#include "engine/kernels.h"
#include "engine/kv_cache.h"
#include "engine/rope.h"
#include "engine/weights.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// Letters of the shape comments: N tokens of the batch, D d_model, H heads, K kv heads, dh d_head,
// M d_mlp, V vocabulary.

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

const float* data_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

struct Forward::Impl {
  explicit Impl(const Model& m) : model(m), config(m.config()), weights(m.weights()) {
    for (const Rope& rope : config.ropes) ropes.emplace_back(rope, config.rotary_dim);
  }

  const Model& model;
  const ModelConfig& config;
  const Weights& weights;
  std::vector<RopeTable> ropes;

  // State of the pass in progress; the buffers are reused between passes.
  const Batch* batch = nullptr;
  const HookTable* hooks = nullptr;
  KvCache::Impl* cache = nullptr;
  std::vector<std::int64_t> sequences;  // [prompt] → sequence of the cache
  std::vector<std::int32_t> positions;  // [N]
  std::int64_t tokens = 0;
  std::vector<float> x;                  // [N, D] residual stream
  std::vector<float> normalized, input;  // [N, D] a norm's output before and after its weight
  std::vector<float> scale;              // [N]
  std::vector<float> q, k, v, z;         // [N, H·dh], [N, K·dh] twice, [N, H·dh]
  std::vector<float> out, mlp_out;       // [N, D] what a sublayer adds
  std::vector<float> gate, up;           // [N, M]
  std::vector<float> scores;             // [H, queries, keys] of one prompt, if hooked
  std::vector<float> result;             // [N, H, D], if hooked
  std::vector<float> final_out;          // [N, D] final norm's output, if its sites were hooked
  std::map<std::int32_t, std::vector<kernels::PackedMatrix>> head_outputs;  // W_O per head

  void prepare(const Batch& b, std::span<const std::int64_t> which);
  void embed();
  void block(std::int32_t layer);
  void attention(std::int32_t layer, const std::vector<float>& from);
  kernels::AttentionArgs attention_args(std::int32_t layer, std::int64_t prompt);
  void hooked_attention(std::int32_t layer, std::int64_t prompt);
  void head_results(std::int32_t layer);
  void mlp(std::int32_t layer, const std::vector<float>& from, std::vector<float>& to);
  void norm(const NormWeights& w, SiteKind scale_site, SiteKind normalized_site, std::int32_t layer,
            const std::vector<float>& from, std::vector<float>& to);
  void project(const Linear& linear, const std::vector<float>& from, std::vector<float>& to) const;
  void head_norm(std::vector<float>& values, std::int64_t heads, const std::vector<float>& weight);
  void final_sites();

  void fire(SiteKind kind, std::int32_t layer, std::vector<float>& values) const {
    if (hooks->wanted(kind, layer)) hooks->fire(kind, layer, *batch, values);
  }
  bool has_norms() const {
    return config.norm != NormKind::none && config.norm_place != NormPlace::none;
  }
};

void Forward::Impl::prepare(const Batch& b, std::span<const std::int64_t> which) {
  batch = &b;
  tokens = b.tokens();
  const std::int64_t prompts = b.prompts();
  if (prompts == 0) fail("a batch needs at least one prompt");
  if (!which.empty() && static_cast<std::int64_t>(which.size()) != prompts) {
    fail_usage("{} cache sequences were named for {} prompts", which.size(), prompts);
  }
  if (cache != nullptr && !config.causal) {
    fail_usage("a cache needs causal attention; this {} model attends in both directions",
               config.family);
  }
  sequences.resize(size(prompts));
  positions.resize(size(tokens));
  std::int64_t longest = 0;
  for (std::int64_t p = 0; p < prompts; ++p) {
    if (b.length(p) <= 0) fail("prompt {} of the batch has no tokens", p);
    sequences[size(p)] = which.empty() ? p : which[size(p)];
    std::int64_t past = 0;
    if (cache != nullptr) {
      const std::int64_t have = static_cast<std::int64_t>(cache->sequences.size());
      if (sequences[size(p)] < 0 || sequences[size(p)] >= have) {
        fail_usage("prompt {} continues cache sequence {}, the cache has {}", p, sequences[size(p)],
                   have);
      }
      past = cache->sequences[size(sequences[size(p)])].length;
    }
    for (std::int64_t t = 0; t < b.length(p); ++t) {
      positions[size(b.offsets[size(p)] + t)] = static_cast<std::int32_t>(past + t);
    }
    longest = std::max(longest, past + b.length(p));
  }
  if (config.positions == Positions::learned && longest > config.n_ctx) {
    fail("a prompt of {} tokens is longer than this model's {} learned positions", longest,
         config.n_ctx);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (b.ids[size(t)] < 0 || b.ids[size(t)] >= config.d_vocab) {
      fail("token {} of the batch has id {}, the vocabulary has {}", t, b.ids[size(t)],
           config.d_vocab);
    }
  }
  for (RopeTable& rope : ropes) rope.grow(longest);

  const std::int64_t d = config.d_model;
  for (auto* buffer : {&x, &normalized, &input, &out}) buffer->resize(size(tokens * d));
  if (config.parallel) mlp_out.resize(size(tokens * d));
  scale.resize(size(tokens));
  for (auto* buffer : {&q, &z}) buffer->resize(size(tokens * config.d_attn()));
  for (auto* buffer : {&k, &v}) buffer->resize(size(tokens * config.d_kv()));
  gate.resize(size(tokens * config.d_mlp));
  if (config.gated) up.resize(size(tokens * config.d_mlp));
}

void Forward::Impl::embed() {
  const std::int64_t d = config.d_model;
  const auto factor = static_cast<float>(config.embed_scale);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t id = batch->ids[size(t)];
    float* row = x.data() + t * d;
    if (weights.embed.empty()) {
      weights.unembed.weight.copy_row(id, row);
    } else {
      std::copy_n(weights.embed.data() + id * d, d, row);
    }
    if (factor != 1.0f) {
      for (std::int64_t i = 0; i < d; ++i) row[i] *= factor;
    }
  }
  fire(SiteKind::embed, -1, x);
  if (config.positions != Positions::learned) return;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::copy_n(weights.pos_embed.data() + std::int64_t{positions[size(t)]} * d, d,
                out.data() + t * d);
  }
  fire(SiteKind::pos_embed, -1, out);
  kernels::add(x.data(), out.data(), tokens * d);
}

void Forward::Impl::project(const Linear& linear, const std::vector<float>& from,
                            std::vector<float>& to) const {
  kernels::multiply(from.data(), linear.weight.n_in(), tokens, linear.weight,
                    data_or_null(linear.bias), to.data(), linear.weight.n_out());
}

void Forward::Impl::norm(const NormWeights& w, SiteKind scale_site, SiteKind normalized_site,
                         std::int32_t layer, const std::vector<float>& from,
                         std::vector<float>& to) {
  const std::int64_t d = config.d_model;
  kernels::norm_scale(config.norm, config.norm_eps, from.data(), d, tokens, d, scale.data());
  fire(scale_site, layer, scale);
  kernels::norm_normalize(config.norm, from.data(), d, scale.data(), tokens, d, normalized.data(),
                          d);
  fire(normalized_site, layer, normalized);
  kernels::norm_affine(normalized.data(), d, tokens, d, w.weight.data(),
                       static_cast<float>(config.norm_offset), data_or_null(w.bias), to.data(), d);
}

// RMS norm of every head's vector (Qwen3, Gemma 3).
void Forward::Impl::head_norm(std::vector<float>& values, std::int64_t heads,
                              const std::vector<float>& weight) {
  const std::int64_t rows = tokens * heads, d = config.d_head;
  std::vector<float> head_scale(size(rows));
  kernels::norm_scale(NormKind::rms, config.norm_eps, values.data(), d, rows, d, head_scale.data());
  kernels::norm_normalize(NormKind::rms, values.data(), d, head_scale.data(), rows, d,
                          values.data(), d);
  kernels::norm_affine(values.data(), d, rows, d, weight.data(),
                       static_cast<float>(config.norm_offset), nullptr, values.data(), d);
}

// `from` [N, D] → `out` [N, D], the vector that is added to the residual stream.
void Forward::Impl::attention(std::int32_t layer, const std::vector<float>& from) {
  const LayerWeights& w = weights.layers[size(layer)];
  project(w.q, from, q);
  project(w.k, from, k);
  project(w.v, from, v);
  fire(SiteKind::q, layer, q);
  fire(SiteKind::k, layer, k);
  fire(SiteKind::v, layer, v);
  if (config.qk_norm) {
    head_norm(q, config.n_heads, w.q_norm);
    head_norm(k, config.n_kv_heads, w.k_norm);
  }
  if (config.positions == Positions::rotary) {
    const RopeTable& rope = ropes[size(config.layers[size(layer)].rope)];
    kernels::rotate(config.rope_style, q.data(), tokens, config.n_heads, config.d_head,
                    config.rotary_dim, rope.cos(), rope.sin(), positions.data(), q.data());
    kernels::rotate(config.rope_style, k.data(), tokens, config.n_kv_heads, config.d_head,
                    config.rotary_dim, rope.cos(), rope.sin(), positions.data(), k.data());
    fire(SiteKind::rot_q, layer, q);
    fire(SiteKind::rot_k, layer, k);
  }
  if (hooks->wanted(SiteKind::attn_scores, layer) || hooks->wanted(SiteKind::pattern, layer)) {
    for (std::int64_t p = 0; p < batch->prompts(); ++p) hooked_attention(layer, p);
  } else {
    std::vector<kernels::AttentionArgs> args;
    for (std::int64_t p = 0; p < batch->prompts(); ++p) args.push_back(attention_args(layer, p));
    kernels::attention_batch(args);
  }
  fire(SiteKind::z, layer, z);
  project(w.o, z, out);
  if (hooks->wanted(SiteKind::result, layer)) head_results(layer);
  if (has_norms() && config.norm_place == NormPlace::sandwich) {
    norm(w.ln1_post, SiteKind::ln1_post_scale, SiteKind::ln1_post_normalized, layer, out, out);
  }
  fire(SiteKind::attn_out, layer, out);
}

// One prompt's attention; with a cache, its new keys and values are stored first.
kernels::AttentionArgs Forward::Impl::attention_args(std::int32_t layer, std::int64_t prompt) {
  const std::int64_t first = batch->offsets[size(prompt)], length = batch->length(prompt);
  kernels::AttentionArgs args{};
  args.q = q.data() + first * config.d_attn();
  args.k = k.data() + first * config.d_kv();
  args.v = v.data() + first * config.d_kv();
  args.z = z.data() + first * config.d_attn();
  args.queries = length;
  args.keys = length;
  if (cache != nullptr) {
    KvCache::Impl::Sequence& sequence = cache->sequences[size(sequences[size(prompt)])];
    std::vector<float>& keys = sequence.keys[size(layer)];
    std::vector<float>& values = sequence.values[size(layer)];
    // Cut to the committed length first: an earlier pass may have been left by an exception.
    keys.resize(size(sequence.length * config.d_kv()));
    values.resize(size(sequence.length * config.d_kv()));
    keys.insert(keys.end(), args.k, args.k + length * config.d_kv());
    values.insert(values.end(), args.v, args.v + length * config.d_kv());
    args.k = keys.data();
    args.v = values.data();
    args.keys = sequence.length + length;
  }
  args.heads = config.n_heads;
  args.kv_heads = config.n_kv_heads;
  args.d_head = config.d_head;
  args.scale = static_cast<float>(config.attn_scale);
  args.softcap = static_cast<float>(config.attn_softcap);
  args.causal = config.causal;
  args.window = config.layers[size(layer)].window;
  return args;
}

// The same in three steps, with the scores and the pattern in memory for their hooks.
void Forward::Impl::hooked_attention(std::int32_t layer, std::int64_t prompt) {
  const kernels::AttentionArgs args = attention_args(layer, prompt);
  scores.resize(size(args.heads * args.queries * args.keys));
  kernels::attention_scores(args, scores.data());
  hooks->fire_attention(SiteKind::attn_scores, layer, *batch, prompt, args.queries, args.keys,
                        scores);
  kernels::attention_softmax(args.heads * args.queries, args.keys, scores.data());
  hooks->fire_attention(SiteKind::pattern, layer, *batch, prompt, args.queries, args.keys, scores);
  kernels::attention_values(args, scores.data());
}

// Each head's share of the output, derived from z. A hook's change is added to `out` as a
// difference, so that a hook that changes nothing changes no bit.
void Forward::Impl::head_results(std::int32_t layer) {
  const std::int64_t d = config.d_model, heads = config.n_heads, dh = config.d_head;
  std::vector<kernels::PackedMatrix>& per_head = head_outputs[layer];
  if (per_head.empty()) {
    const kernels::PackedMatrix& w = weights.layers[size(layer)].o.weight;
    std::vector<float> all(size(d * heads * dh)), one(size(d * dh));
    for (std::int64_t row = 0; row < d; ++row) w.copy_row(row, all.data() + row * heads * dh);
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t row = 0; row < d; ++row) {
        std::copy_n(all.data() + row * heads * dh + h * dh, dh, one.data() + row * dh);
      }
      per_head.emplace_back(d, dh).set_rows(0, d, one.data());
    }
  }
  result.resize(size(tokens * heads * d));
  for (std::int64_t h = 0; h < heads; ++h) {
    kernels::multiply(z.data() + h * dh, heads * dh, tokens, per_head[size(h)], nullptr,
                      result.data() + h * d, heads * d);
  }
  if (!hooks->writes(SiteKind::result, layer)) {
    fire(SiteKind::result, layer, result);
    return;
  }
  const std::vector<float> before = result;
  fire(SiteKind::result, layer, result);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t at = (t * heads + h) * d;
      for (std::int64_t i = 0; i < d; ++i) {
        const float change = result[size(at + i)] - before[size(at + i)];
        if (change != 0.0f) out[size(t * d + i)] += change;
      }
    }
  }
}

// `from` [N, D] → `to` [N, D], the vector that is added to the residual stream.
void Forward::Impl::mlp(std::int32_t layer, const std::vector<float>& from,
                        std::vector<float>& to) {
  const LayerWeights& w = weights.layers[size(layer)];
  const std::int64_t m = config.d_mlp;
  if (config.gated) {
    project(w.gate, from, gate);
    project(w.in, from, up);
    fire(SiteKind::mlp_pre, layer, gate);
    fire(SiteKind::mlp_pre_linear, layer, up);
    kernels::activate_gated(config.act, gate.data(), up.data(), tokens, m, gate.data());
  } else {
    project(w.in, from, gate);
    fire(SiteKind::mlp_pre, layer, gate);
    kernels::activate(config.act, gate.data(), tokens, m, gate.data());
    if (config.act == Activation::solu_ln) {
      kernels::norm_scale(NormKind::layer, config.norm_eps, gate.data(), m, tokens, m,
                          scale.data());
      kernels::norm_normalize(NormKind::layer, gate.data(), m, scale.data(), tokens, m, gate.data(),
                              m);
      kernels::norm_affine(gate.data(), m, tokens, m, w.mlp_ln.weight.data(), 0.0f,
                           data_or_null(w.mlp_ln.bias), gate.data(), m);
    }
  }
  fire(SiteKind::mlp_post, layer, gate);
  project(w.out, gate, to);
  if (has_norms() && config.norm_place == NormPlace::sandwich) {
    norm(w.ln2_post, SiteKind::ln2_post_scale, SiteKind::ln2_post_normalized, layer, to, to);
  }
  fire(SiteKind::mlp_out, layer, to);
}

void Forward::Impl::block(std::int32_t layer) {
  const LayerWeights& w = weights.layers[size(layer)];
  const std::int64_t n = tokens * config.d_model;
  const bool before = has_norms() && config.norm_place != NormPlace::post;
  const bool after = has_norms() && config.norm_place == NormPlace::post;
  const bool has_mlp = config.d_mlp > 0;

  fire(SiteKind::resid_pre, layer, x);
  if (before) norm(w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized, layer, x, input);
  attention(layer, before ? input : x);

  if (config.parallel) {
    if (has_mlp) {
      if (before && !config.shared_parallel_norm) {
        norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, input);
      }
      mlp(layer, before ? input : x, mlp_out);
    }
    kernels::add(x.data(), out.data(), n);
    if (has_mlp) kernels::add(x.data(), mlp_out.data(), n);
    fire(SiteKind::resid_post, layer, x);
    return;
  }

  kernels::add(x.data(), out.data(), n);
  if (has_mlp) fire(SiteKind::resid_mid, layer, x);
  if (after) norm(w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized, layer, x, x);
  if (has_mlp) {
    if (before) norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, input);
    mlp(layer, before ? input : x, out);
    kernels::add(x.data(), out.data(), n);
  }
  fire(SiteKind::resid_post, layer, x);
  if (after && has_mlp) norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, x);
}

// The final norm for every row, only where its sites are hooked; run_logits() then uses it.
void Forward::Impl::final_sites() {
  final_out.clear();
  if (!hooks->wanted(SiteKind::ln_final_scale, -1) &&
      !hooks->wanted(SiteKind::ln_final_normalized, -1)) {
    return;
  }
  final_out.resize(x.size());
  norm(weights.ln_final, SiteKind::ln_final_scale, SiteKind::ln_final_normalized, -1, x, final_out);
}

Forward::Forward(const Model& model) : impl_(std::make_unique<Impl>(model)) {}
Forward::~Forward() = default;
Forward::Forward(Forward&&) noexcept = default;

const Model& Forward::model() const {
  return impl_->model;
}

std::span<const float> Forward::run(const Batch& batch, const Hooks& hooks, KvCache* cache,
                                    std::span<const std::int64_t> sequences) {
  Impl& s = *impl_;
  const HookTable table(hooks, s.config);
  s.hooks = &table;
  s.cache = cache != nullptr ? &cache->impl() : nullptr;
  s.prepare(batch, sequences);
  s.embed();
  for (std::int32_t layer = 0; layer < s.config.n_layers; ++layer) s.block(layer);
  s.final_sites();
  if (s.cache != nullptr) {
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      s.cache->sequences[size(s.sequences[size(p)])].length += batch.length(p);
    }
  }
  s.hooks = nullptr;
  s.batch = nullptr;
  return s.x;
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
