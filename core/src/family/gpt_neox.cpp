// GPT-NeoX and Pythia (transformers: models/gpt_neox). One matrix holds q, k and v of head 0, then
// of head 1, …; attention and MLP stand in parallel behind a norm each, unless the file says not.

#include <cmath>

#include "family/family_parts.h"
#include "family/registry.h"
#include "family/rope_config.h"
#include "lamina/core/error.h"

namespace lamina {

ModelConfig read_gpt_neox(ConfigReader& r) {
  ModelConfig c = read_sizes(r, "gpt_neox", 0, 0);
  if (c.n_kv_heads != c.n_heads) r.refuse("num_key_value_heads", "GPT-NeoX has one per query head");
  if (c.n_heads * c.d_head != c.d_model) {
    r.refuse("head_dim", fmt::format("expected hidden_size / num_attention_heads = {} / {}",
                                     c.d_model, c.n_heads));
  }
  c.norm = NormKind::layer;
  c.norm_eps = r.number("layer_norm_eps", 1e-5);
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  double fraction = r.number("rotary_pct", 0.25);
  c.ropes = {read_rope(r, "rope_theta", r.number("rotary_emb_base", 10000.0), c.n_ctx, &fraction)};
  if (!(fraction > 0) || fraction > 1) {
    fail("{}: rotary fraction is {}; expected more than 0, at most 1", r.source(), fraction);
  }
  c.rotary_dim = static_cast<std::int64_t>(static_cast<double>(c.d_head) * fraction);
  c.qkv_bias = c.out_bias = r.boolean("attention_bias", true);
  c.mlp_bias = true;
  c.act = read_activation(r, "hidden_act", "gelu");
  c.parallel = r.boolean("use_parallel_residual", true);
  c.tied = r.boolean("tie_word_embeddings", false);
  return c;
}

namespace {
constexpr TensorRule kRules[] = {
    {"embed", "{p}embed_in.weight"},
    {"L.ln1.w", "{p}layers.{l}.input_layernorm.weight"},
    {"L.ln1.b", "{p}layers.{l}.input_layernorm.bias"},
    {"L.q", "{p}layers.{l}.attention.query_key_value.weight", Form::fused_heads},
    {"L.k", "{p}layers.{l}.attention.query_key_value.weight", Form::fused_heads},
    {"L.v", "{p}layers.{l}.attention.query_key_value.weight", Form::fused_heads},
    {"L.q.b", "{p}layers.{l}.attention.query_key_value.bias", Form::fused_heads},
    {"L.k.b", "{p}layers.{l}.attention.query_key_value.bias", Form::fused_heads},
    {"L.v.b", "{p}layers.{l}.attention.query_key_value.bias", Form::fused_heads},
    {"L.o", "{p}layers.{l}.attention.dense.weight"},
    {"L.o.b", "{p}layers.{l}.attention.dense.bias"},
    {"L.ln2.w", "{p}layers.{l}.post_attention_layernorm.weight"},
    {"L.ln2.b", "{p}layers.{l}.post_attention_layernorm.bias"},
    {"L.in", "{p}layers.{l}.mlp.dense_h_to_4h.weight"},
    {"L.in.b", "{p}layers.{l}.mlp.dense_h_to_4h.bias"},
    {"L.out", "{p}layers.{l}.mlp.dense_4h_to_h.weight"},
    {"L.out.b", "{p}layers.{l}.mlp.dense_4h_to_h.bias"},
    {"ln_final.w", "{p}final_layer_norm.weight"},
    {"ln_final.b", "{p}final_layer_norm.bias"},
    {"unembed", "embed_out.weight"},
    {"unembed", "lm_head.weight"},
};
constexpr std::string_view kPrefixes[] = {"gpt_neox.", ""};
constexpr std::string_view kIgnored[] = {
    "{p}layers.{l}.attention.bias", "{p}layers.{l}.attention.masked_bias",
    "{p}layers.{l}.attention.rotary_emb.inv_freq", "{p}rotary_emb.inv_freq"};
}  // namespace

const TensorTable kGptNeoxTensors = {kRules, kPrefixes, kIgnored};

}  // namespace lamina
