#include "lamina/core/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"

namespace lamina {
namespace {

struct Cap {
  const char* name;
  std::int64_t value, low, high;
};

std::string_view name_of(NormKind kind) {
  switch (kind) {
    case NormKind::none:
      return "none";
    case NormKind::layer:
      return "LayerNorm";
    case NormKind::rms:
      return "RMS";
  }
  return "?";
}
std::string_view name_of(NormPlace place) {
  switch (place) {
    case NormPlace::none:
      return "only at the end";
    case NormPlace::pre:
      return "before each sublayer";
    case NormPlace::post:
      return "after each residual addition";
    case NormPlace::sandwich:
      return "before and after each sublayer";
  }
  return "?";
}
std::string_view name_of(Activation act) {
  switch (act) {
    case Activation::relu:
      return "ReLU";
    case Activation::gelu:
      return "GELU";
    case Activation::gelu_tanh:
      return "GELU (tanh)";
    case Activation::quick_gelu:
      return "GELU (sigmoid)";
    case Activation::silu:
      return "SiLU";
    case Activation::solu:
      return "SoLU";
    case Activation::solu_ln:
      return "SoLU + LayerNorm";
    case Activation::tanh:
      return "tanh";
  }
  return "?";
}

void check_rope(const Rope& rope, std::size_t index, const ModelConfig& c,
                std::string_view source) {
  if (!(rope.theta > 0) || !std::isfinite(rope.theta)) {
    fail("{}: rope {}: theta is {}; expected a positive number", source, index, rope.theta);
  }
  if (rope.scaling != RopeScaling::none && (!(rope.factor > 0) || !std::isfinite(rope.factor))) {
    fail("{}: rope {}: scaling factor is {}; expected a positive number", source, index,
         rope.factor);
  }
  if (rope.scaling == RopeScaling::llama3) {
    if (!(rope.low_freq_factor > 0) || !(rope.high_freq_factor > rope.low_freq_factor) ||
        !std::isfinite(rope.high_freq_factor)) {
      fail("{}: rope {}: low_freq_factor {} and high_freq_factor {}; expected 0 < low < high",
           source, index, rope.low_freq_factor, rope.high_freq_factor);
    }
    if (rope.original_ctx <= 0) {
      fail("{}: rope {}: original context is {}; expected a positive number", source, index,
           rope.original_ctx);
    }
  }
  if (!rope.frequency_divisors.empty()) {
    if (rope.frequency_divisors.size() != static_cast<std::size_t>(c.rotary_dim / 2)) {
      fail("{}: rope {}: {} frequency divisors; expected rotary_dim / 2 = {}", source, index,
           rope.frequency_divisors.size(), c.rotary_dim / 2);
    }
    for (float divisor : rope.frequency_divisors) {
      if (!(divisor > 0) || !std::isfinite(divisor)) {
        fail("{}: rope {}: frequency divisor {}; expected a positive number", source, index,
             divisor);
      }
    }
  }
}

}  // namespace

void validate(const ModelConfig& c, std::string_view source) {
  // The caps are far above any published model; they keep products of sizes inside 64 bits.
  constexpr std::int64_t kWide = std::int64_t{1} << 24;
  const Cap sizes[] = {
      {"n_layers", c.n_layers, 1, 4096},
      {"d_model", c.d_model, 1, kWide},
      {"n_heads", c.n_heads, 1, 65536},
      {"n_kv_heads", c.n_kv_heads, 1, 65536},
      {"d_head", c.d_head, 1, 65536},
      {"d_mlp", c.d_mlp, 0, kWide},
      {"d_vocab", c.d_vocab, 1, INT64_C(1) << 28},
      {"n_ctx", c.n_ctx, 1, INT64_C(1) << 30},
  };
  for (const Cap& cap : sizes) {
    if (cap.value < cap.low || cap.value > cap.high) {
      fail("{}: {} is {}; expected {} to {}", source, cap.name, cap.value, cap.low, cap.high);
    }
  }
  if (c.d_attn() > kWide) {
    fail("{}: n_heads × d_head is {} × {}; expected at most {}", source, c.n_heads, c.d_head,
         kWide);
  }
  if (c.n_heads % c.n_kv_heads != 0) {
    fail("{}: n_heads is {}; expected a multiple of n_kv_heads = {}", source, c.n_heads,
         c.n_kv_heads);
  }
  if (!(c.norm_eps >= 0) || !(c.norm_eps < 1)) {
    fail("{}: norm epsilon is {}; expected 0 to 1", source, c.norm_eps);
  }
  if ((c.norm == NormKind::none) && c.norm_place != NormPlace::none) {
    fail("{}: norm is none but stands {}", source, name_of(c.norm_place));
  }
  if (c.parallel && (c.norm_place == NormPlace::post)) {
    fail("{}: a parallel block cannot have its norms {}", source, name_of(c.norm_place));
  }
  if (c.shared_parallel_norm && !c.parallel) {
    fail("{}: shared_parallel_norm is set in a sequential block", source);
  }
  const auto finite = [&](const char* name, double value, bool zero_allowed) {
    if (!std::isfinite(value) || value < 0 || (!zero_allowed && value == 0)) {
      fail("{}: {} is {}; expected a positive number{}", source, name, value,
           zero_allowed ? " or 0 for off" : "");
    }
  };
  finite("attention scale", c.attn_scale, false);
  finite("attention soft-cap", c.attn_softcap, true);
  finite("final soft-cap", c.final_softcap, true);
  finite("embedding scale", c.embed_scale, false);
  if (!std::isfinite(c.norm_offset)) fail("{}: norm offset is {}", source, c.norm_offset);

  if (c.positions == Positions::rotary) {
    if (c.rotary_dim <= 0 || c.rotary_dim % 2 != 0 || c.rotary_dim > c.d_head) {
      fail("{}: rotary_dim is {}; expected an even number from 2 to d_head = {}", source,
           c.rotary_dim, c.d_head);
    }
    if (c.ropes.empty() || c.ropes.size() > 64) {
      fail("{}: {} rotary settings; expected 1 to 64", source, c.ropes.size());
    }
    for (std::size_t i = 0; i < c.ropes.size(); ++i) check_rope(c.ropes[i], i, c, source);
  }
  if (c.gated && (c.act == Activation::solu || c.act == Activation::solu_ln)) {
    fail("{}: a gated MLP with the activation {}", source, name_of(c.act));
  }
  if (c.act == Activation::tanh)
    fail("{}: tanh is the activation of a head, not of an MLP", source);
  if (c.head_dense && (c.head_act == Activation::solu || c.head_act == Activation::solu_ln)) {
    fail("{}: a head with the activation {}", source, name_of(c.head_act));
  }
  if (c.n_types < 0 || c.n_types > 65536) {
    fail("{}: n_types is {}; expected 0 to 65536", source, c.n_types);
  }
  if (c.embed_norm && c.norm == NormKind::none) {
    fail("{}: a norm on the embeddings in a model whose norm is none", source);
  }
  constexpr std::size_t kLabels = 65536;
  if (c.head == Head::classifier && (c.labels.empty() || c.labels.size() > kLabels)) {
    fail("{}: a classifier with {} labels; expected 1 to {}", source, c.labels.size(), kLabels);
  }
  if (c.head != Head::classifier && !c.labels.empty()) {
    fail("{}: {} labels without a classifier's head", source, c.labels.size());
  }
  if (c.head != Head::language && c.tied) {
    fail("{}: a head that is tied to the embedding but gives no words", source);
  }
  if (c.head == Head::none && (c.head_dense || c.head_bias || c.final_softcap > 0)) {
    fail("{}: parts of a head without a head", source);
  }
  if (c.layers.size() != static_cast<std::size_t>(c.n_layers)) {
    fail("{}: settings for {} layers; expected n_layers = {}", source, c.layers.size(), c.n_layers);
  }
  for (std::size_t l = 0; l < c.layers.size(); ++l) {
    if (c.layers[l].window < 0) {
      fail("{}: layer {}: window is {}; expected 0 (off) or more", source, l, c.layers[l].window);
    }
    if (c.layers[l].window > 0 && !c.causal) {
      fail("{}: layer {}: a window of {} in a bidirectional model", source, l, c.layers[l].window);
    }
    if (c.positions == Positions::rotary &&
        (c.layers[l].rope < 0 || static_cast<std::size_t>(c.layers[l].rope) >= c.ropes.size())) {
      fail("{}: layer {}: rotary setting {}; expected 0 to {}", source, l, c.layers[l].rope,
           c.ropes.size() - 1);
    }
  }
}

std::string describe(const ModelConfig& c) {
  std::string out;
  const auto line = [&](std::string text) { out += text + "\n"; };
  line(fmt::format("family: {}", c.family));
  line(fmt::format("size: {} layers, d_model {}, vocabulary {}, context {}", c.n_layers, c.d_model,
                   c.d_vocab, c.n_ctx));
  line(fmt::format("attention: {} heads of {}, {} key/value heads, scale {:.6g}{}{}", c.n_heads,
                   c.d_head, c.n_kv_heads, c.attn_scale, c.causal ? ", causal" : ", bidirectional",
                   c.attn_softcap > 0 ? fmt::format(", soft-cap {:g}", c.attn_softcap) : ""));
  if (c.qk_norm || c.qkv_bias || c.out_bias) {
    line(fmt::format("attention extras:{}{}{}", c.qk_norm ? " q/k norm" : "",
                     c.qkv_bias ? " q/k/v bias" : "", c.out_bias ? " output bias" : ""));
  }
  std::int64_t windowed = 0, window = 0;
  for (const LayerConfig& layer : c.layers) {
    if (layer.window > 0) ++windowed, window = layer.window;
  }
  if (windowed > 0) {
    line(fmt::format("window: {} keys in {} of {} layers", window, windowed, c.n_layers));
  }
  if (c.d_mlp == 0) {
    line("mlp: none");
  } else {
    line(fmt::format("mlp: {} wide, {}{}{}", c.d_mlp, c.gated ? "gated " : "", name_of(c.act),
                     c.mlp_bias ? ", bias" : ""));
  }
  if (c.norm == NormKind::none) {
    line("norm: none");
  } else {
    line(fmt::format("norm: {}, {}, ε {:g}{}", name_of(c.norm), name_of(c.norm_place), c.norm_eps,
                     c.norm_offset != 0 ? fmt::format(", weight + {:g}", c.norm_offset) : ""));
  }
  line(c.parallel ? fmt::format("block: attention and MLP in parallel{}",
                                c.shared_parallel_norm ? " behind one norm" : "")
                  : std::string("block: attention, then MLP"));
  switch (c.positions) {
    case Positions::none:
      line("positions: none");
      break;
    case Positions::learned:
      line("positions: learned");
      break;
    case Positions::rotary:
      for (const Rope& rope : c.ropes) {
        std::string scaling;
        if (rope.scaling == RopeScaling::linear)
          scaling = fmt::format(", linear ÷ {:g}", rope.factor);
        if (rope.scaling == RopeScaling::llama3)
          scaling = fmt::format(", llama3 ÷ {:g}", rope.factor);
        if (!rope.frequency_divisors.empty()) scaling += ", divisors from the file";
        line(fmt::format("positions: rotary, {} of {} values, {}, θ {:g}{}", c.rotary_dim, c.d_head,
                         c.rope_style == RopeStyle::half ? "halves" : "interleaved", rope.theta,
                         scaling));
      }
      break;
  }
  if (c.embed_scale != 1.0) line(fmt::format("embedding: × {:.6g}", c.embed_scale));
  if (c.n_types > 0 || c.embed_norm) {
    line(fmt::format("embedding extras:{}{}",
                     c.n_types > 0 ? fmt::format(" token type 0 of {},", c.n_types) : "",
                     c.embed_norm ? " norm on the sum" : ""));
  }
  if (c.head == Head::none) {
    line("head: none");
    return out;
  }
  std::string head = c.tied ? "tied to the embedding" : "its own matrix";
  if (c.head == Head::classifier) {
    head = fmt::format("classifier of the first token, {} labels ({}{})", c.labels.size(),
                       fmt::join(c.labels.begin(),
                                 c.labels.begin() + static_cast<std::ptrdiff_t>(
                                                        std::min<std::size_t>(c.labels.size(), 8)),
                                 ", "),
                       c.labels.size() > 8 ? ", …" : "");
  }
  line(fmt::format(
      "head: {}{}{}{}", head,
      c.head_dense ? fmt::format(", dense {} layer before it", name_of(c.head_act)) : "",
      c.head_bias ? ", bias" : "",
      c.final_softcap > 0 ? fmt::format(", soft-cap {:g}", c.final_softcap) : ""));
  return out;
}

}  // namespace lamina
