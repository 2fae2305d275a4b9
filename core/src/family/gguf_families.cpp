// GGUF architectures (llama.cpp's names). Converters change three things that must be undone or
// taken into account: Llama's q and k rows are interleaved for RoPE on neighbouring pairs, Gemma's
// norm weights contain the + 1, and GPT-2's matrices are transposed to [out, in].

#include <algorithm>
#include <cmath>

#include "family/gguf_reader.h"
#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// Sizes, under the names that all architectures share.
ModelConfig read_sizes(GgufReader& r, std::string_view family) {
  ModelConfig c;
  c.family = family;
  c.n_layers = r.integer("block_count");
  if (c.n_layers < 1 || c.n_layers > 4096) r.refuse("block_count", "expected 1 to 4096");
  c.d_model = r.integer("embedding_length");
  c.n_heads = r.integer("attention.head_count");
  if (c.n_heads < 1) r.refuse("attention.head_count", "expected 1 or more");
  c.n_kv_heads = r.integer("attention.head_count_kv", c.n_heads);
  c.d_head = r.integer("attention.key_length", c.d_model / c.n_heads);
  if (c.d_head < 1) r.refuse("attention.key_length", "expected 1 or more");
  if (r.integer("attention.value_length", c.d_head) != c.d_head) {
    r.refuse("attention.value_length", fmt::format("expected the key length, {}", c.d_head));
  }
  c.d_mlp = r.integer("feed_forward_length");
  if (c.d_mlp < 1) r.refuse("feed_forward_length", "expected 1 or more");
  c.n_ctx = r.integer("context_length");
  const TensorInfo* embed = r.file().store.find("token_embd.weight");
  if (embed == nullptr) fail("{}: no tensor \"token_embd.weight\"", r.source());
  c.d_vocab = embed->shape.empty() ? 0 : static_cast<std::int64_t>(embed->shape[0]);
  if (r.integer("vocab_size", c.d_vocab) != c.d_vocab) {
    r.refuse("vocab_size", fmt::format("token_embd.weight has {} rows", c.d_vocab));
  }
  c.tied = !r.has_tensor("output.weight");
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  c.layers.resize(static_cast<std::size_t>(c.n_layers));
  return c;
}

// The rotary setting: base, linear scaling, and the divisors that stand for llama3 scaling.
Rope read_rope(GgufReader& r, const ModelConfig& c, double default_theta) {
  Rope rope;
  rope.theta = r.number("rope.freq_base", default_theta);
  const std::string type = r.text("rope.scaling.type", "none");
  double factor = r.number("rope.scaling.factor", 1.0);
  const double old_factor = r.number("rope.scale_linear", 1.0);
  if (old_factor != 1.0) factor = old_factor;
  if (type != "none" && type != "linear") {
    r.refuse("rope.scaling.type", "known kinds of rotary scaling: none, linear");
  }
  if ((type == "linear" || old_factor != 1.0) && factor != 1.0) {
    rope.scaling = RopeScaling::linear;
    rope.factor = factor;
  }
  if (r.number("rope.scaling.attn_factor", 1.0) != 1.0) {
    r.refuse("rope.scaling.attn_factor", "only 1 is supported");
  }
  r.ignore("rope.scaling.original_context_length");
  r.ignore("rope.scaling.finetuned");
  if (const TensorInfo* divisors = r.file().store.find("rope_freqs.weight")) {
    const auto expected = static_cast<std::uint64_t>(c.rotary_dim / 2);
    if (divisors->shape != std::vector<std::uint64_t>{expected} || divisors->dtype != DType::f32) {
      fail("{}: tensor \"rope_freqs.weight\" has {} values of type {}; expected {} of f32",
           r.source(), divisors->elements(), dtype_name(divisors->dtype), expected);
    }
    rope.frequency_divisors.resize(expected);
    expand_to_f32(divisors->dtype, divisors->bytes, rope.frequency_divisors);
  }
  return rope;
}

void whole_head_turns(GgufReader& r, ModelConfig& c) {
  c.rotary_dim = r.integer("rope.dimension_count", c.d_head);
  if (c.rotary_dim != c.d_head) {
    r.refuse("rope.dimension_count", fmt::format("expected the head size, {}", c.d_head));
  }
}

// Llama, Qwen.
ModelConfig read_llama_like(GgufReader& r, std::string_view family) {
  ModelConfig c = read_sizes(r, family);
  c.norm = NormKind::rms;
  c.norm_eps = r.number("attention.layer_norm_rms_epsilon");
  whole_head_turns(r, c);
  c.ropes = {read_rope(r, c, 10000.0)};
  c.gated = true;
  c.act = Activation::silu;
  c.qkv_bias = r.has_tensor("blk.0.attn_q.bias");
  c.out_bias = r.has_tensor("blk.0.attn_output.bias");
  c.mlp_bias = r.has_tensor("blk.0.ffn_up.bias");
  return c;
}

ModelConfig read_gemma_like(GgufReader& r, std::string_view family) {
  ModelConfig c = read_sizes(r, family);
  c.norm = NormKind::rms;
  c.norm_eps = r.number("attention.layer_norm_rms_epsilon");
  c.norm_offset = 0.0;  // the converter has added the 1
  whole_head_turns(r, c);
  c.gated = true;
  c.act = Activation::gelu_tanh;
  c.embed_scale = std::sqrt(static_cast<double>(c.d_model));
  return c;
}

// The scale is not in the file. Gemma 2 and 3 divide by √d_head, except their 27B models, which
// llama.cpp recognises by the number of layers: those divide by √(d_model / n_heads).
void gemma_scale(ModelConfig& c, std::int64_t layers_of_27b) {
  if (c.n_layers == layers_of_27b) {
    c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_model / c.n_heads));
  }
}

// Which layers have a window: attention.sliding_window_pattern is a period (every so many layers
// one is full), in newer files a flag for each layer.
std::vector<bool> windowed_layers(GgufReader& r, std::size_t layers, std::int64_t default_period) {
  constexpr std::string_view kKey = "attention.sliding_window_pattern";
  std::vector<bool> out(layers);
  if (const std::vector<bool>* flags = r.find_flags(kKey)) {
    if (flags->size() != layers) {
      r.refuse(kKey, fmt::format("expected one flag for each of {} layers", layers));
    }
    return *flags;
  }
  const std::int64_t period = r.integer(kKey, default_period);
  if (period < 1) r.refuse(kKey, "expected 1 or more");
  for (std::size_t l = 0; l < layers; ++l)
    out[l] = (static_cast<std::int64_t>(l) + 1) % period != 0;
  return out;
}

}  // namespace

ModelConfig read_gguf_llama(GgufReader& r) {
  ModelConfig c = read_llama_like(r, "llama");
  const std::int64_t window = r.integer("attention.sliding_window", 0);
  for (LayerConfig& layer : c.layers) layer.window = window;
  return c;
}

ModelConfig read_gguf_qwen2(GgufReader& r) {
  return read_llama_like(r, "qwen2");
}

ModelConfig read_gguf_qwen3(GgufReader& r) {
  ModelConfig c = read_llama_like(r, "qwen3");
  c.qk_norm = true;
  return c;
}

ModelConfig read_gguf_gemma(GgufReader& r) {
  ModelConfig c = read_gemma_like(r, "gemma");
  c.ropes = {read_rope(r, c, 10000.0)};
  return c;
}

ModelConfig read_gguf_gemma2(GgufReader& r) {
  ModelConfig c = read_gemma_like(r, "gemma2");
  c.norm_place = NormPlace::sandwich;
  c.ropes = {read_rope(r, c, 10000.0)};
  gemma_scale(c, 46);
  c.attn_softcap = r.number("attn_logit_softcapping", 50.0);
  c.final_softcap = r.number("final_logit_softcapping", 30.0);
  const std::int64_t window = r.integer("attention.sliding_window", 4096);
  const std::vector<bool> windowed = windowed_layers(r, c.layers.size(), 2);
  for (std::size_t l = 0; l < c.layers.size(); ++l) c.layers[l].window = windowed[l] ? window : 0;
  return c;
}

ModelConfig read_gguf_gemma3(GgufReader& r) {
  ModelConfig c = read_gemma_like(r, "gemma3");
  c.norm_place = NormPlace::sandwich;
  c.qk_norm = true;
  gemma_scale(c, 62);
  c.final_softcap = r.number("final_logit_softcapping", 0.0);
  Rope local;
  local.theta = r.number("rope.freq_base_swa", 10000.0);
  c.ropes = {read_rope(r, c, 1.0e6), local};
  const std::int64_t window = r.integer("attention.sliding_window", 4096);
  const std::vector<bool> windowed = windowed_layers(r, c.layers.size(), 6);
  for (std::size_t l = 0; l < c.layers.size(); ++l) {
    if (!windowed[l]) continue;
    c.layers[l].window = window;
    c.layers[l].rope = 1;
  }
  return c;
}

ModelConfig read_gguf_gpt2(GgufReader& r) {
  ModelConfig c = read_sizes(r, "gpt2");
  c.norm = NormKind::layer;
  c.norm_eps = r.number("attention.layer_norm_epsilon");
  c.positions = Positions::learned;
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.act = Activation::gelu_tanh;
  return c;
}

ModelConfig read_gguf_gptneox(GgufReader& r) {
  ModelConfig c = read_sizes(r, "gpt_neox");
  c.norm = NormKind::layer;
  c.norm_eps = r.number("attention.layer_norm_epsilon");
  c.rotary_dim = r.integer("rope.dimension_count");
  c.ropes = {read_rope(r, c, 10000.0)};
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.act = Activation::gelu;
  c.parallel = r.boolean("use_parallel_residual", true);
  return c;
}

namespace {
constexpr TensorRule kGptRules[] = {
    {"embed", "token_embd.weight"},
    {"pos_embed", "position_embd.weight"},
    {"L.ln1.w", "blk.{l}.attn_norm.weight"},
    {"L.ln1.b", "blk.{l}.attn_norm.bias"},
    {"L.q", "blk.{l}.attn_qkv.weight", Form::fused_rows},
    {"L.k", "blk.{l}.attn_qkv.weight", Form::fused_rows},
    {"L.v", "blk.{l}.attn_qkv.weight", Form::fused_rows},
    {"L.q.b", "blk.{l}.attn_qkv.bias", Form::fused_rows},
    {"L.k.b", "blk.{l}.attn_qkv.bias", Form::fused_rows},
    {"L.v.b", "blk.{l}.attn_qkv.bias", Form::fused_rows},
    {"L.o", "blk.{l}.attn_output.weight"},
    {"L.o.b", "blk.{l}.attn_output.bias"},
    {"L.ln2.w", "blk.{l}.ffn_norm.weight"},
    {"L.ln2.b", "blk.{l}.ffn_norm.bias"},
    {"L.in", "blk.{l}.ffn_up.weight"},
    {"L.in.b", "blk.{l}.ffn_up.bias"},
    {"L.out", "blk.{l}.ffn_down.weight"},
    {"L.out.b", "blk.{l}.ffn_down.bias"},
    {"ln_final.w", "output_norm.weight"},
    {"ln_final.b", "output_norm.bias"},
    {"unembed", "output.weight"},
};
// `Q`: how q and k rows stand.
template <Form Q>
constexpr TensorRule kPlainRules[] = {
    {"embed", "token_embd.weight"},
    {"L.ln1.w", "blk.{l}.attn_norm.weight"},
    {"L.q", "blk.{l}.attn_q.weight", Q},
    {"L.k", "blk.{l}.attn_k.weight", Q},
    {"L.v", "blk.{l}.attn_v.weight"},
    {"L.q.b", "blk.{l}.attn_q.bias", Q},
    {"L.k.b", "blk.{l}.attn_k.bias", Q},
    {"L.v.b", "blk.{l}.attn_v.bias"},
    {"L.q_norm", "blk.{l}.attn_q_norm.weight"},
    {"L.k_norm", "blk.{l}.attn_k_norm.weight"},
    {"L.o", "blk.{l}.attn_output.weight"},
    {"L.o.b", "blk.{l}.attn_output.bias"},
    {"L.ln1_post.w", "blk.{l}.post_attention_norm.weight"},
    {"L.ln2.w", "blk.{l}.ffn_norm.weight"},
    {"L.gate", "blk.{l}.ffn_gate.weight"},
    {"L.gate.b", "blk.{l}.ffn_gate.bias"},
    {"L.in", "blk.{l}.ffn_up.weight"},
    {"L.in.b", "blk.{l}.ffn_up.bias"},
    {"L.out", "blk.{l}.ffn_down.weight"},
    {"L.out.b", "blk.{l}.ffn_down.bias"},
    {"L.ln2_post.w", "blk.{l}.post_ffw_norm.weight"},
    {"ln_final.w", "output_norm.weight"},
    {"unembed", "output.weight"},
};
constexpr std::string_view kPrefixes[] = {""};
// rope_freqs.weight is read into the configuration; rotary and mask buffers of old converters.
constexpr std::string_view kIgnored[] = {"rope_freqs.weight", "blk.{l}.attn_rot_embd"};
}  // namespace

const TensorTable kGgufGptTensors = {kGptRules, kPrefixes, kIgnored};
const TensorTable kGgufLlamaTensors = {kPlainRules<Form::rope_rows>, kPrefixes, kIgnored};
const TensorTable kGgufTensors = {kPlainRules<Form::rows>, kPrefixes, kIgnored};

}  // namespace lamina
