// Gemma 1, 2 and 3 (transformers: models/gemma, gemma2, gemma3). Embeddings are scaled by √d_model,
// norms multiply by 1 + weight, heads are tied. Gemma 2 and 3 normalise each sublayer's output too
// and alternate windowed and full layers.

#include <cmath>

#include "family/family_parts.h"
#include "family/registry.h"
#include "family/rope_config.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// What the three have in common.
ModelConfig read_common(ConfigReader& r, std::string_view family, std::int64_t kv_heads_default) {
  ModelConfig c = read_sizes(r, family, kv_heads_default, 256);
  c.norm = NormKind::rms;
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.norm_offset = 1.0;
  c.rotary_dim = c.d_head;
  c.qkv_bias = c.out_bias = r.boolean("attention_bias", false);
  c.gated = true;
  c.act = Activation::gelu_tanh;
  c.embed_scale = std::sqrt(static_cast<double>(c.d_model));
  c.tied = r.boolean("tie_word_embeddings", true);
  r.only("use_bidirectional_attention", false);
  r.only("partial_rotary_factor", 1.0);
  return c;
}

// Gemma 1 files that say "gelu" mean its tanh form; transformers reads them so.
void read_gemma_activation(ConfigReader& r, std::string_view key) {
  const std::string name = r.text(key, "gelu_pytorch_tanh");
  if (name != "gelu" && name != "gelu_pytorch_tanh") r.refuse(key, "expected gelu_pytorch_tanh");
}

// A soft-cap: the default if absent, off if null.
double read_softcap(ConfigReader& r, std::string_view key, double fallback) {
  return r.stated_null(key) ? 0.0 : r.number(key, fallback);
}

void read_scale(ConfigReader& r, ModelConfig& c) {
  const double scalar = r.number("query_pre_attn_scalar", 256.0);
  if (!(scalar > 0)) r.refuse("query_pre_attn_scalar", "expected a positive number");
  c.attn_scale = 1.0 / std::sqrt(scalar);
}

void set_windows(ModelConfig& c, const std::vector<bool>& sliding, std::int64_t window) {
  for (std::size_t l = 0; l < sliding.size(); ++l) c.layers[l].window = sliding[l] ? window : 0;
}

}  // namespace

ModelConfig read_gemma(ConfigReader& r) {
  ModelConfig c = read_common(r, "gemma", 16);
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  c.ropes = {read_rope(r, "rope_theta", 10000.0, c.n_ctx)};
  read_gemma_activation(r, "hidden_act");
  read_gemma_activation(r, "hidden_activation");
  return c;
}

ModelConfig read_gemma2(ConfigReader& r) {
  ModelConfig c = read_common(r, "gemma2", 4);
  c.norm_place = NormPlace::sandwich;
  c.ropes = {read_rope(r, "rope_theta", 10000.0, c.n_ctx)};
  read_scale(r, c);
  c.attn_softcap = read_softcap(r, "attn_logit_softcapping", 50.0);
  c.final_softcap = read_softcap(r, "final_logit_softcapping", 30.0);
  const std::int64_t window = positive(r, "sliding_window", 4096);
  set_windows(c, read_layer_types(r, c.layers.size(), [](std::size_t l) { return l % 2 == 0; }),
              window);
  c.act = read_activation(r, "hidden_activation", "gelu_pytorch_tanh");
  r.ignore({"hidden_act"});  // transformers reads hidden_activation only
  return c;
}

ModelConfig read_gemma3_text(ConfigReader& r) {
  ModelConfig c = read_common(r, "gemma3", 4);
  c.norm_place = NormPlace::sandwich;
  c.qk_norm = true;
  read_scale(r, c);
  c.attn_softcap = read_softcap(r, "attn_logit_softcapping", 0.0);
  c.final_softcap = read_softcap(r, "final_logit_softcapping", 0.0);
  c.act = read_activation(r, "hidden_activation", "gelu_pytorch_tanh");
  r.ignore({"hidden_act"});

  // Rotary setting 0 is for full layers, 1 for windowed ones. Scaling concerns full layers only.
  const double theta = r.number("rope_theta", 1.0e6);
  const double local_theta = r.number("rope_local_base_freq", 10000.0);
  Rope global, local;
  global.theta = theta;
  local.theta = local_theta;
  if (const nlohmann::json* both = r.object("rope_parameters")) {
    ConfigReader kinds(*both, r.source() + ": rope_parameters");
    if (const auto* full = kinds.object("full_attention")) {
      global = read_rope_object(*full, kinds.source() + ": full_attention", theta, c.n_ctx);
    }
    if (const auto* sliding = kinds.object("sliding_attention")) {
      local =
          read_rope_object(*sliding, kinds.source() + ": sliding_attention", local_theta, c.n_ctx);
    }
    for (const auto& [key, value] : both->items()) {
      if (key != "full_attention" && key != "sliding_attention") {
        kinds.refuse(key, "expected only full_attention and sliding_attention");
      }
    }
  }
  if (const nlohmann::json* scaling = r.object("rope_scaling")) {
    global = read_rope_object(*scaling, r.source() + ": rope_scaling", global.theta, c.n_ctx);
  }
  c.ropes = {global, local};

  const std::string_view pattern_key =
      r.has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  const std::int64_t pattern = positive(r, pattern_key, 6);
  r.ignore({"sliding_window_pattern", "_sliding_window_pattern"});
  const std::vector<bool> sliding = read_layer_types(r, c.layers.size(), [&](std::size_t l) {
    return (static_cast<std::int64_t>(l) + 1) % pattern != 0;
  });
  set_windows(c, sliding, positive(r, "sliding_window", 4096));
  for (std::size_t l = 0; l < sliding.size(); ++l) c.layers[l].rope = sliding[l] ? 1 : 0;
  return c;
}

// The picture-and-text model: its text part. Released files leave out what has transformers'
// default.
ModelConfig read_gemma3(ConfigReader& r) {
  const nlohmann::json* text = r.object("text_config");
  if (text == nullptr) fail("{}: no \"text_config\"; expected an object", r.source());
  nlohmann::json filled = {{"vocab_size", 262208},      {"hidden_size", 2304},
                           {"intermediate_size", 9216}, {"num_hidden_layers", 26},
                           {"num_attention_heads", 8},  {"num_key_value_heads", 4},
                           {"head_dim", 256},           {"max_position_embeddings", 131072}};
  filled.update(*text);
  ConfigReader inner(filled, r.source() + ": text_config");
  ModelConfig c = read_gemma3_text(inner);
  c.tied = r.boolean("tie_word_embeddings", c.tied);
  inner.finish();
  r.ignore({"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
            "image_token_index"});
  return c;
}

namespace {
constexpr TensorRule kGemmaRules[] = {
    {"embed", "{p}embed_tokens.weight"},
    {"L.ln1.w", "{p}layers.{l}.input_layernorm.weight"},
    {"L.q", "{p}layers.{l}.self_attn.q_proj.weight"},
    {"L.k", "{p}layers.{l}.self_attn.k_proj.weight"},
    {"L.v", "{p}layers.{l}.self_attn.v_proj.weight"},
    {"L.q.b", "{p}layers.{l}.self_attn.q_proj.bias"},
    {"L.k.b", "{p}layers.{l}.self_attn.k_proj.bias"},
    {"L.v.b", "{p}layers.{l}.self_attn.v_proj.bias"},
    {"L.o", "{p}layers.{l}.self_attn.o_proj.weight"},
    {"L.o.b", "{p}layers.{l}.self_attn.o_proj.bias"},
    {"L.ln2.w", "{p}layers.{l}.post_attention_layernorm.weight"},
    {"L.gate", "{p}layers.{l}.mlp.gate_proj.weight"},
    {"L.in", "{p}layers.{l}.mlp.up_proj.weight"},
    {"L.out", "{p}layers.{l}.mlp.down_proj.weight"},
    {"ln_final.w", "{p}norm.weight"},
    {"unembed", "lm_head.weight"},
};
// With four norms a layer, post_attention_layernorm stands on the attention's output.
constexpr TensorRule kGemma2Rules[] = {
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
    {"L.ln1_post.w", "{p}layers.{l}.post_attention_layernorm.weight"},
    {"L.ln2.w", "{p}layers.{l}.pre_feedforward_layernorm.weight"},
    {"L.gate", "{p}layers.{l}.mlp.gate_proj.weight"},
    {"L.in", "{p}layers.{l}.mlp.up_proj.weight"},
    {"L.out", "{p}layers.{l}.mlp.down_proj.weight"},
    {"L.ln2_post.w", "{p}layers.{l}.post_feedforward_layernorm.weight"},
    {"ln_final.w", "{p}norm.weight"},
    {"unembed", "lm_head.weight"},
};
constexpr std::string_view kPrefixes[] = {"model.", "", "language_model.model.",
                                          "model.language_model."};
constexpr std::string_view kIgnored[] = {"{p}layers.{l}.self_attn.rotary_emb.inv_freq",
                                         "{p}rotary_emb.inv_freq",
                                         "vision_tower.*",
                                         "model.vision_tower.*",
                                         "multi_modal_projector.*",
                                         "model.multi_modal_projector.*"};
}  // namespace

const TensorTable kGemmaTensors = {kGemmaRules, kPrefixes, kIgnored};
const TensorTable kGemma2Tensors = {kGemma2Rules, kPrefixes, kIgnored};

}  // namespace lamina
