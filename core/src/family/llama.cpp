// Llama, Mistral, Qwen 2 and Qwen 3: RMS norms, rotary positions, gated MLP. They differ in biases,
// q/k norms and windows (transformers: models/llama, mistral, qwen2, qwen3).

#include <cmath>

#include "family/family_parts.h"
#include "family/registry.h"
#include "family/rope_config.h"

namespace lamina {
namespace {

// What all four have in common. `head_dim` of 0: d_model / n_heads unless the file says otherwise.
ModelConfig read_common(ConfigReader& r, std::string_view family, std::int64_t kv_heads_default,
                        std::int64_t head_dim, bool tied_default) {
  ModelConfig c = read_sizes(r, family, kv_heads_default, head_dim);
  c.norm = NormKind::rms;
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  c.rotary_dim = c.d_head;
  c.ropes = {read_rope(r, "rope_theta", 10000.0, c.n_ctx)};
  r.only("partial_rotary_factor", 1.0);
  c.gated = true;
  c.act = read_activation(r, "hidden_act", "silu");
  c.tied = r.boolean("tie_word_embeddings", tied_default);
  return c;
}

// Qwen: layers from max_window_layers on are windowed, if use_sliding_window is on at all; newer
// files name each layer's type instead.
void read_qwen_windows(ConfigReader& r, ModelConfig& c) {
  const bool on = r.boolean("use_sliding_window", false);
  const std::int64_t window = on ? r.integer("sliding_window", 4096) : 0;
  const std::int64_t first = r.integer("max_window_layers", 28);
  r.ignore({"sliding_window"});
  const std::vector<bool> sliding = read_layer_types(r, c.layers.size(), [&](std::size_t l) {
    return window > 0 && static_cast<std::int64_t>(l) >= first;
  });
  for (std::size_t l = 0; l < sliding.size(); ++l) {
    if (sliding[l] && window <= 0) {
      r.refuse("layer_types",
               fmt::format("layer {} is sliding_attention but use_sliding_window is off", l));
    }
    c.layers[l].window = sliding[l] ? window : 0;
  }
}

}  // namespace

ModelConfig read_llama(ConfigReader& r) {
  ModelConfig c = read_common(r, "llama", 0, 0, false);
  c.qkv_bias = c.out_bias = r.boolean("attention_bias", false);
  c.mlp_bias = r.boolean("mlp_bias", false);
  return c;
}

ModelConfig read_mistral(ConfigReader& r) {
  ModelConfig c = read_common(r, "mistral", 8, 0, false);
  // An absent key means transformers' default of 4096; null means no window.
  const std::int64_t window =
      r.stated_null("sliding_window") ? 0 : positive(r, "sliding_window", 4096);
  for (LayerConfig& layer : c.layers) layer.window = window;
  return c;
}

ModelConfig read_qwen2(ConfigReader& r) {
  ModelConfig c = read_common(r, "qwen2", 0, 0, false);
  c.qkv_bias = true;
  read_qwen_windows(r, c);
  return c;
}

ModelConfig read_qwen3(ConfigReader& r) {
  ModelConfig c = read_common(r, "qwen3", 0, 128, false);
  c.qk_norm = true;
  c.qkv_bias = c.out_bias = r.boolean("attention_bias", false);
  read_qwen_windows(r, c);
  return c;
}

namespace {
constexpr TensorRule kRules[] = {
    {"embed", "{p}embed_tokens.weight"},
    {"L.ln1.w", "{p}layers.{l}.input_layernorm.weight"},
    {"L.q", "{p}layers.{l}.self_attn.q_proj.weight"},
    {"L.k", "{p}layers.{l}.self_attn.k_proj.weight"},
    {"L.v", "{p}layers.{l}.self_attn.v_proj.weight"},
    {"L.q.b", "{p}layers.{l}.self_attn.q_proj.bias"},
    {"L.k.b", "{p}layers.{l}.self_attn.k_proj.bias"},
    {"L.v.b", "{p}layers.{l}.self_attn.v_proj.bias"},
    {"L.q_norm", "{p}layers.{l}.self_attn.q_norm.weight"},
    {"L.k_norm", "{p}layers.{l}.self_attn.k_norm.weight"},
    {"L.o", "{p}layers.{l}.self_attn.o_proj.weight"},
    {"L.o.b", "{p}layers.{l}.self_attn.o_proj.bias"},
    {"L.ln2.w", "{p}layers.{l}.post_attention_layernorm.weight"},
    {"L.gate", "{p}layers.{l}.mlp.gate_proj.weight"},
    {"L.gate.b", "{p}layers.{l}.mlp.gate_proj.bias"},
    {"L.in", "{p}layers.{l}.mlp.up_proj.weight"},
    {"L.in.b", "{p}layers.{l}.mlp.up_proj.bias"},
    {"L.out", "{p}layers.{l}.mlp.down_proj.weight"},
    {"L.out.b", "{p}layers.{l}.mlp.down_proj.bias"},
    {"ln_final.w", "{p}norm.weight"},
    {"unembed", "lm_head.weight"},
};
constexpr std::string_view kPrefixes[] = {"model.", ""};
constexpr std::string_view kIgnored[] = {"{p}layers.{l}.self_attn.rotary_emb.inv_freq",
                                         "{p}rotary_emb.inv_freq"};
}  // namespace

const TensorTable kLlamaTensors = {kRules, kPrefixes, kIgnored};

}  // namespace lamina
