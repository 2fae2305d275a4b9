// GPT-2 (transformers: models/gpt2). Conv1D keeps matrices as [in, out]; q, k and v are one matrix.

#include <cmath>

#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {

ModelConfig read_gpt2(ConfigReader& r) {
  ModelConfig c;
  c.family = "gpt2";
  c.n_layers = r.integer("n_layer");
  if (c.n_layers < 1 || c.n_layers > 4096) r.refuse("n_layer", "expected 1 to 4096");
  c.d_model = r.integer("n_embd");
  c.n_heads = c.n_kv_heads = r.integer("n_head");
  c.d_vocab = r.integer("vocab_size");
  c.n_ctx = r.integer("n_positions");
  c.d_mlp = r.integer("n_inner", 4 * c.d_model);
  if (c.n_heads < 1 || c.d_model % c.n_heads != 0) {
    r.refuse("n_head", fmt::format("n_embd = {} must be a multiple of it", c.d_model));
  }
  c.d_head = c.d_model / c.n_heads;
  c.norm = NormKind::layer;
  c.norm_eps = r.number("layer_norm_epsilon", 1e-5);
  c.positions = Positions::learned;
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.act = read_activation(r, "activation_function", "gelu_new");
  c.tied = r.boolean("tie_word_embeddings", true);
  c.layers.resize(static_cast<std::size_t>(c.n_layers));
  r.only("scale_attn_weights", true);
  r.only("scale_attn_by_inverse_layer_idx", false);
  r.only("add_cross_attention", false);
  // n_ctx repeats n_positions in old files; upcasting changes nothing in fp32.
  r.ignore({"n_ctx", "reorder_and_upcast_attn"});
  return c;
}

namespace {
constexpr TensorRule kRules[] = {
    {"embed", "{p}wte.weight"},
    {"pos_embed", "{p}wpe.weight"},
    {"L.ln1.w", "{p}h.{l}.ln_1.weight"},
    {"L.ln1.b", "{p}h.{l}.ln_1.bias"},
    {"L.q", "{p}h.{l}.attn.c_attn.weight", Form::fused_columns},
    {"L.k", "{p}h.{l}.attn.c_attn.weight", Form::fused_columns},
    {"L.v", "{p}h.{l}.attn.c_attn.weight", Form::fused_columns},
    {"L.q.b", "{p}h.{l}.attn.c_attn.bias", Form::fused_rows},
    {"L.k.b", "{p}h.{l}.attn.c_attn.bias", Form::fused_rows},
    {"L.v.b", "{p}h.{l}.attn.c_attn.bias", Form::fused_rows},
    {"L.o", "{p}h.{l}.attn.c_proj.weight", Form::columns},
    {"L.o.b", "{p}h.{l}.attn.c_proj.bias"},
    {"L.ln2.w", "{p}h.{l}.ln_2.weight"},
    {"L.ln2.b", "{p}h.{l}.ln_2.bias"},
    {"L.in", "{p}h.{l}.mlp.c_fc.weight", Form::columns},
    {"L.in.b", "{p}h.{l}.mlp.c_fc.bias"},
    {"L.out", "{p}h.{l}.mlp.c_proj.weight", Form::columns},
    {"L.out.b", "{p}h.{l}.mlp.c_proj.bias"},
    {"ln_final.w", "{p}ln_f.weight"},
    {"ln_final.b", "{p}ln_f.bias"},
    {"unembed", "lm_head.weight"},
};
constexpr std::string_view kPrefixes[] = {"transformer.", ""};
constexpr std::string_view kIgnored[] = {"{p}h.{l}.attn.bias", "{p}h.{l}.attn.masked_bias"};
}  // namespace

const TensorTable kGpt2Tensors = {kRules, kPrefixes, kIgnored};

}  // namespace lamina
