// The canonical family: every setting of ModelConfig as a key of config.json, tensors under
// TransformerLens' names and shapes. See docs/canonical-family.md.

#include <cmath>
#include <initializer_list>
#include <utility>

#include "family/registry.h"
#include "family/rope_config.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// A text key with a fixed set of values.
template <class Enum>
Enum choose(ConfigReader& r, std::string_view key, std::string_view fallback,
            std::initializer_list<std::pair<std::string_view, Enum>> values) {
  const std::string found = r.text(key, fallback);
  std::string known;
  for (const auto& [name, value] : values) {
    if (name == found) return value;
    known.append(known.empty() ? "" : ", ").append(name);
  }
  r.refuse(key, "expected one of: " + known);
}

}  // namespace

ModelConfig read_canonical(ConfigReader& r) {
  ModelConfig c;
  c.family = "lamina";
  c.n_layers = r.integer("n_layers");
  if (c.n_layers < 1 || c.n_layers > 4096) r.refuse("n_layers", "expected 1 to 4096");
  c.d_model = r.integer("d_model");
  c.n_heads = r.integer("n_heads");
  c.n_kv_heads = r.integer("n_kv_heads", c.n_heads);
  c.d_head = r.integer("d_head");
  if (c.d_head < 1) r.refuse("d_head", "expected 1 or more");
  c.d_mlp = r.integer("d_mlp", 0);
  c.d_vocab = r.integer("d_vocab");
  c.n_ctx = r.integer("n_ctx");

  c.norm = choose<NormKind>(
      r, "norm", "layer",
      {{"none", NormKind::none}, {"layer", NormKind::layer}, {"rms", NormKind::rms}});
  const bool normed = c.norm != NormKind::none;
  c.norm_place = choose<NormPlace>(r, "norm_place", normed ? "pre" : "none",
                                   {{"none", NormPlace::none},
                                    {"pre", NormPlace::pre},
                                    {"post", NormPlace::post},
                                    {"sandwich", NormPlace::sandwich}});
  c.norm_eps = r.number("norm_eps", 1e-5);
  c.final_norm = r.boolean("final_norm", normed && c.norm_place != NormPlace::post);
  if (c.final_norm && !normed) r.refuse("final_norm", "norm is \"none\"");

  c.positions = choose<Positions>(
      r, "positions", "learned",
      {{"none", Positions::none}, {"learned", Positions::learned}, {"rotary", Positions::rotary}});
  c.rope_style =
      choose<RopeStyle>(r, "rope_style", "half",
                        {{"half", RopeStyle::half}, {"interleaved", RopeStyle::interleaved}});
  c.rotary_dim = r.integer("rotary_dim", c.positions == Positions::rotary ? c.d_head : 0);
  const double theta = r.number("rope_theta", 10000.0);
  if (const auto* scaling = r.object("rope_scaling")) {
    c.ropes = {read_rope_object(*scaling, r.source() + ": rope_scaling", theta, c.n_ctx)};
  } else if (c.positions == Positions::rotary) {
    Rope rope;
    rope.theta = theta;
    c.ropes = {rope};
  }

  c.causal = r.boolean("causal", true);
  c.attn_scale = r.number("attn_scale", 1.0 / std::sqrt(static_cast<double>(c.d_head)));
  c.attn_softcap = r.number("attn_softcap", 0.0);
  c.final_softcap = r.number("final_softcap", 0.0);
  c.qk_norm = r.boolean("qk_norm", false);
  c.qkv_bias = r.boolean("qkv_bias", false);
  c.out_bias = r.boolean("out_bias", false);
  c.mlp_bias = r.boolean("mlp_bias", false);
  c.gated = r.boolean("gated", false);
  c.act = choose<Activation>(r, "act", "relu",
                             {{"relu", Activation::relu},
                              {"gelu", Activation::gelu},
                              {"gelu_tanh", Activation::gelu_tanh},
                              {"silu", Activation::silu},
                              {"solu", Activation::solu},
                              {"solu_ln", Activation::solu_ln},
                              {"quick_gelu", Activation::quick_gelu}});
  c.parallel = r.boolean("parallel", false);
  c.shared_parallel_norm = r.boolean("shared_norm", false);
  c.embed_scale = r.number("embed_scale", 1.0);
  c.n_types = r.integer("n_types", 0);
  c.embed_norm = r.boolean("embed_norm", false);
  c.head = choose<Head>(
      r, "head", "language",
      {{"language", Head::language}, {"classifier", Head::classifier}, {"none", Head::none}});
  c.labels = r.texts("labels");
  c.head_dense = r.boolean("head_dense", false);
  c.head_act = choose<Activation>(r, "head_act", "tanh",
                                  {{"tanh", Activation::tanh},
                                   {"relu", Activation::relu},
                                   {"gelu", Activation::gelu},
                                   {"gelu_tanh", Activation::gelu_tanh},
                                   {"silu", Activation::silu},
                                   {"quick_gelu", Activation::quick_gelu}});
  c.tied = r.boolean("tied", false);
  c.head_bias = r.boolean("head_bias", false);
  LayerConfig layer;
  layer.window = r.integer("window", 0);
  c.layers.assign(static_cast<std::size_t>(c.n_layers), layer);
  return c;
}

namespace {
constexpr TensorRule kRules[] = {
    {"embed", "embed.W_E"},
    {"pos_embed", "pos_embed.W_pos"},
    {"type_embed", "type_embed.W_type"},
    {"embed_norm.w", "embed.ln.w"},
    {"embed_norm.b", "embed.ln.b"},
    {"L.ln1.w", "blocks.{l}.ln1.w"},
    {"L.ln1.b", "blocks.{l}.ln1.b"},
    {"L.q", "blocks.{l}.attn.W_Q", Form::head_columns},
    {"L.k", "blocks.{l}.attn.W_K", Form::head_columns},
    {"L.v", "blocks.{l}.attn.W_V", Form::head_columns},
    {"L.q.b", "blocks.{l}.attn.b_Q", Form::head_columns},
    {"L.k.b", "blocks.{l}.attn.b_K", Form::head_columns},
    {"L.v.b", "blocks.{l}.attn.b_V", Form::head_columns},
    {"L.q_norm", "blocks.{l}.attn.q_norm.w"},
    {"L.k_norm", "blocks.{l}.attn.k_norm.w"},
    {"L.o", "blocks.{l}.attn.W_O", Form::head_inputs},
    {"L.o.b", "blocks.{l}.attn.b_O"},
    {"L.ln1_post.w", "blocks.{l}.ln1_post.w"},
    {"L.ln1_post.b", "blocks.{l}.ln1_post.b"},
    {"L.ln2.w", "blocks.{l}.ln2.w"},
    {"L.ln2.b", "blocks.{l}.ln2.b"},
    {"L.gate", "blocks.{l}.mlp.W_gate", Form::columns},
    {"L.gate.b", "blocks.{l}.mlp.b_gate"},
    {"L.in", "blocks.{l}.mlp.W_in", Form::columns},
    {"L.in.b", "blocks.{l}.mlp.b_in"},
    {"L.mlp_ln.w", "blocks.{l}.mlp.ln.w"},
    {"L.mlp_ln.b", "blocks.{l}.mlp.ln.b"},
    {"L.out", "blocks.{l}.mlp.W_out", Form::columns},
    {"L.out.b", "blocks.{l}.mlp.b_out"},
    {"L.ln2_post.w", "blocks.{l}.ln2_post.w"},
    {"L.ln2_post.b", "blocks.{l}.ln2_post.b"},
    {"ln_final.w", "ln_final.w"},
    {"ln_final.b", "ln_final.b"},
    {"head", "head.W", Form::columns},
    {"head.b", "head.b"},
    {"unembed", "unembed.W_U", Form::columns},
    {"unembed.b", "unembed.b_U"},
};
constexpr std::string_view kPrefixes[] = {""};
constexpr std::string_view kIgnored[] = {"blocks.{l}.attn.mask", "blocks.{l}.attn.IGNORE",
                                         "blocks.{l}.attn.rotary_sin",
                                         "blocks.{l}.attn.rotary_cos"};
}  // namespace

const TensorTable kCanonicalTensors = {kRules, kPrefixes, kIgnored};

}  // namespace lamina
