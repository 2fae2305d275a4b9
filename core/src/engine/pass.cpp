#include "engine/pass.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

const float* data_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

Forward::Impl::Impl(const Model& m) : model(m), config(m.config()), weights(m.weights()) {
  for (const Rope& rope : config.ropes) ropes.emplace_back(rope, config.rotary_dim);
}

void Forward::Impl::prepare(const Batch& b) {
  batch = &b;
  tokens = b.tokens();
  const std::int64_t prompts = b.prompts();
  if (prompts == 0) fail("a batch needs at least one prompt");
  positions.resize(size(tokens));
  std::int64_t longest = 0;
  for (std::int64_t p = 0; p < prompts; ++p) {
    if (b.length(p) <= 0) fail("prompt {} of the batch has no tokens", p);
    for (std::int64_t t = 0; t < b.length(p); ++t) {
      positions[size(b.offsets[size(p)] + t)] = static_cast<std::int32_t>(past[size(p)] + t);
    }
    longest = std::max(longest, past[size(p)] + b.length(p));
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
                         std::int32_t layer, const std::vector<float>& from, std::vector<float>& to,
                         NormTape* kept) {
  const std::int64_t d = config.d_model;
  kernels::norm_scale(config.norm, config.norm_eps, from.data(), d, tokens, d, scale.data());
  if (kept != nullptr && hooks->writes(scale_site, layer)) kept->computed_scale = scale;
  fire(scale_site, layer, scale);
  kernels::norm_normalize(config.norm, from.data(), d, scale.data(), tokens, d, normalized.data(),
                          d);
  if (kept != nullptr && hooks->writes(normalized_site, layer)) kept->computed = normalized;
  fire(normalized_site, layer, normalized);
  if (kept != nullptr) {
    kept->normalized = normalized;
    kept->scale = scale;
  }
  kernels::norm_affine(normalized.data(), d, tokens, d, w.weight.data(),
                       static_cast<float>(config.norm_offset), data_or_null(w.bias), to.data(), d);
}

// RMS norm of every head's vector (Qwen3, Gemma 3).
void Forward::Impl::head_norm(std::vector<float>& values, std::int64_t heads,
                              const std::vector<float>& weight, NormTape* kept) {
  const std::int64_t rows = tokens * heads, d = config.d_head;
  std::vector<float> head_scale(size(rows));
  kernels::norm_scale(NormKind::rms, config.norm_eps, values.data(), d, rows, d, head_scale.data());
  kernels::norm_normalize(NormKind::rms, values.data(), d, head_scale.data(), rows, d,
                          values.data(), d);
  if (kept != nullptr) {
    kept->normalized = values;
    kept->scale = head_scale;
  }
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
    head_norm(q, config.n_heads, w.q_norm, record ? &record->q_norm : nullptr);
    head_norm(k, config.n_kv_heads, w.k_norm, record ? &record->k_norm : nullptr);
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
  if (keep != nullptr) {
    keep->keys[size(layer)] = k;
    keep->values[size(layer)] = v;
  }
  if (record != nullptr) {
    record->q = q;
    record->k = k;
    record->v = v;
  }
  if (base != nullptr) join_base(layer);
  if (hooks->wanted(SiteKind::attn_scores, layer) || hooks->wanted(SiteKind::pattern, layer)) {
    for (std::int64_t p = 0; p < batch->prompts(); ++p) hooked_attention(layer, p);
  } else {
    std::vector<kernels::AttentionArgs> args;
    for (std::int64_t p = 0; p < batch->prompts(); ++p) args.push_back(attention_args(layer, p));
    kernels::attention_batch(args);
  }
  fire(SiteKind::z, layer, z);
  if (record != nullptr) record->z = z;
  project(w.o, z, out);
  if (hooks->wanted(SiteKind::result, layer)) head_results(layer);
  if (has_norms() && config.norm_place == NormPlace::sandwich) {
    norm(w.ln1_post, SiteKind::ln1_post_scale, SiteKind::ln1_post_normalized, layer, out, out,
         record ? &record->ln1_post : nullptr);
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
  if (base != nullptr) {
    const std::int64_t rows = past[size(prompt)] + length;
    // Behind the earlier prompts: their new rows and their old ones.
    std::int64_t at = first;
    for (std::int64_t p = 0; p < prompt; ++p) at += past[size(p)];
    args.k = joined_k.data() + at * config.d_kv();
    args.v = joined_v.data() + at * config.d_kv();
    args.keys = rows;
  } else if (cache != nullptr) {
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

// Keys and values of every prompt, those of the base run first.
void Forward::Impl::join_base(std::int32_t layer) {
  const std::int64_t row = config.d_kv();
  std::int64_t total = 0;
  for (std::int64_t p = 0; p < batch->prompts(); ++p) total += past[size(p)] + batch->length(p);
  joined_k.resize(size(total * row));
  joined_v.resize(size(total * row));
  std::int64_t at = 0;
  for (std::int64_t p = 0; p < batch->prompts(); ++p) {
    const std::int64_t old = past[size(p)] * row, fresh = batch->length(p) * row;
    const std::int64_t from = base->batch.offsets[size(sequences[size(p)])] * row;
    const std::int64_t mine = batch->offsets[size(p)] * row;
    std::copy_n(base->keys[size(layer)].data() + from, old, joined_k.data() + at);
    std::copy_n(base->values[size(layer)].data() + from, old, joined_v.data() + at);
    std::copy_n(k.data() + mine, fresh, joined_k.data() + at + old);
    std::copy_n(v.data() + mine, fresh, joined_v.data() + at + old);
    at += old + fresh;
  }
}

// The same in three steps, with the scores and the pattern in memory for their hooks.
void Forward::Impl::hooked_attention(std::int32_t layer, std::int64_t prompt) {
  const kernels::AttentionArgs args = attention_args(layer, prompt);
  scores.resize(size(args.heads * args.queries * args.keys));
  kernels::attention_scores(args, scores.data());
  hooks->fire_attention(SiteKind::attn_scores, layer, *batch, prompt, args.queries, args.keys,
                        scores);
  std::vector<float> kept_scores;
  const bool written = record != nullptr && (hooks->writes(SiteKind::attn_scores, layer) ||
                                             hooks->writes(SiteKind::pattern, layer));
  if (written) kept_scores = scores;
  kernels::attention_softmax(args.heads * args.queries, args.keys, scores.data());
  if (written) {
    record->written.resize(size(batch->prompts()));
    record->written[size(prompt)].scores = std::move(kept_scores);
  }
  hooks->fire_attention(SiteKind::pattern, layer, *batch, prompt, args.queries, args.keys, scores);
  if (written) record->written[size(prompt)].pattern = scores;
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
    if (record != nullptr) {
      record->gate = gate;
      record->up = up;
    }
    kernels::activate_gated(config.act, gate.data(), up.data(), tokens, m, gate.data());
  } else {
    project(w.in, from, gate);
    fire(SiteKind::mlp_pre, layer, gate);
    if (record != nullptr) record->gate = gate;
    kernels::activate(config.act, gate.data(), tokens, m, gate.data());
    if (config.act == Activation::solu_ln) {
      kernels::norm_scale(NormKind::layer, config.norm_eps, gate.data(), m, tokens, m,
                          scale.data());
      kernels::norm_normalize(NormKind::layer, gate.data(), m, scale.data(), tokens, m, gate.data(),
                              m);
      if (record != nullptr) {
        record->mlp_ln.normalized = gate;
        record->mlp_ln.scale = scale;
      }
      kernels::norm_affine(gate.data(), m, tokens, m, w.mlp_ln.weight.data(), 0.0f,
                           data_or_null(w.mlp_ln.bias), gate.data(), m);
    }
  }
  fire(SiteKind::mlp_post, layer, gate);
  if (record != nullptr && hooks->writes(SiteKind::mlp_post, layer)) record->post = gate;
  project(w.out, gate, to);
  if (has_norms() && config.norm_place == NormPlace::sandwich) {
    norm(w.ln2_post, SiteKind::ln2_post_scale, SiteKind::ln2_post_normalized, layer, to, to,
         record ? &record->ln2_post : nullptr);
  }
  fire(SiteKind::mlp_out, layer, to);
}

void Forward::Impl::step(const Step& step) {
  const std::int32_t layer = step.layer;
  const LayerWeights& w = weights.layers[size(layer)];
  const std::int64_t n = tokens * config.d_model;
  const bool before = norm_before(), after = norm_after();
  const bool has_mlp = config.d_mlp > 0 && step.mlp;
  const auto kept = [&](Tape::Impl::Norm Tape::Impl::Step::*which) {
    return record != nullptr ? &(record->*which) : nullptr;
  };

  fire(SiteKind::resid_pre, layer, x);
  if (keep != nullptr) keep->resid[size(layer)] = x;
  if (step.attention) {
    if (before) {
      norm(w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized, layer, x, input,
           kept(&Tape::Impl::Step::ln1));
    } else if (record != nullptr) {
      record->attn_in = x;
    }
    attention(layer, before ? input : x);
  }

  if (config.parallel) {
    if (has_mlp) {
      if (before && config.shared_parallel_norm && !step.attention) {
        norm(w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized, layer, x, input,
             kept(&Tape::Impl::Step::ln1));
      }
      if (before && !config.shared_parallel_norm) {
        norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, input,
             kept(&Tape::Impl::Step::ln2));
      }
      if (!before && record != nullptr) record->mlp_in = x;
      mlp(layer, before ? input : x, mlp_out);
    }
    if (step.attention) kernels::add(x.data(), out.data(), n);
    if (has_mlp) kernels::add(x.data(), mlp_out.data(), n);
    fire(SiteKind::resid_post, layer, x);
    return;
  }

  if (step.attention) kernels::add(x.data(), out.data(), n);
  if (config.d_mlp > 0) fire(SiteKind::resid_mid, layer, x);
  if (after && step.attention) {
    norm(w.ln1, SiteKind::ln1_scale, SiteKind::ln1_normalized, layer, x, x,
         kept(&Tape::Impl::Step::ln1));
  }
  if (has_mlp) {
    if (before) {
      norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, input,
           kept(&Tape::Impl::Step::ln2));
    } else if (record != nullptr) {
      record->mlp_in = x;
    }
    mlp(layer, before ? input : x, out);
    kernels::add(x.data(), out.data(), n);
  }
  fire(SiteKind::resid_post, layer, x);
  if (after && has_mlp) {
    norm(w.ln2, SiteKind::ln2_scale, SiteKind::ln2_normalized, layer, x, x,
         kept(&Tape::Impl::Step::ln2));
  }
}

// The final norm for every row, only where its sites are hooked; run_logits() then uses it.
void Forward::Impl::final_sites() {
  final_out.clear();
  if (!hooks->wanted(SiteKind::ln_final_scale, -1) &&
      !hooks->wanted(SiteKind::ln_final_normalized, -1)) {
    return;
  }
  final_out.resize(x.size());
  norm(weights.ln_final, SiteKind::ln_final_scale, SiteKind::ln_final_normalized, -1, x, final_out,
       tape != nullptr ? &tape->final_norm : nullptr);
}

void Forward::Impl::finish_tape() {
  tape->model = &model;
  ++tape->pass;
  tape->resid = x;
  if (!final_out.empty() || !config.final_norm || config.norm == NormKind::none) return;
  const std::int64_t d = config.d_model;
  Tape::Impl::Norm& kept = tape->final_norm;
  kept.scale.resize(size(tokens));
  kept.normalized.resize(x.size());
  kernels::norm_scale(config.norm, config.norm_eps, x.data(), d, tokens, d, kept.scale.data());
  kernels::norm_normalize(config.norm, x.data(), d, kept.scale.data(), tokens, d,
                          kept.normalized.data(), d);
}

void Forward::Impl::release() {
  hooks = nullptr;
  batch = nullptr;
  cache = nullptr;
  base = nullptr;
  keep = nullptr;
  tape = nullptr;
  record = nullptr;
}

const Linear& Forward::Impl::head_input(SiteKind kind, std::int32_t layer, std::int64_t head) {
  const std::lock_guard lock(head_inputs_mutex);
  Linear& one = head_inputs[{kind, layer, head}];
  if (!one.weight.empty()) return one;
  const LayerWeights& w = weights.layers[size(layer)];
  const Linear& all = kind == SiteKind::q ? w.q : kind == SiteKind::k ? w.k : w.v;
  const std::int64_t d = config.d_model, dh = config.d_head;
  std::vector<float> rows(size(dh * d));
  for (std::int64_t i = 0; i < dh; ++i) all.weight.copy_row(head * dh + i, rows.data() + i * d);
  kernels::PackedMatrix packed(dh, d);
  packed.set_rows(0, dh, rows.data());
  one.weight = std::move(packed);
  if (!all.bias.empty()) {
    one.bias.assign(all.bias.begin() + head * dh, all.bias.begin() + (head + 1) * dh);
  }
  return one;
}

}  // namespace lamina
