#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

enum class NormKind : std::uint8_t { none, layer, rms };
/// Where norms stand. pre: before each sublayer. post: after each residual addition (the original
/// transformer, BERT). sandwich: before each sublayer and again on its output (Gemma 2 and 3).
enum class NormPlace : std::uint8_t { none, pre, post, sandwich };
enum class Positions : std::uint8_t { none, learned, rotary };
/// half: pairs (i, i + d/2), GPT-NeoX. interleaved: pairs (2i, 2i + 1), GPT-J.
enum class RopeStyle : std::uint8_t { half, interleaved };
/// What the logits are about. language: the vocabulary, at every token. classifier: `labels`; the
/// answer for a prompt is that of its first token. none: the model ends with the residual stream.
enum class Head : std::uint8_t { language, classifier, none };
enum class RopeScaling : std::uint8_t { none, linear, llama3 };
/// gelu is the exact one (erf); gelu_tanh its tanh approximation; quick_gelu x·sigmoid(1.702 x);
/// solu x·softmax(x) over the layer; solu_ln the same followed by a LayerNorm (Anthropic's toy
/// models, TransformerLens); tanh only in a head.
enum class Activation : std::uint8_t {
  relu,
  gelu,
  gelu_tanh,
  quick_gelu,
  silu,
  solu,
  solu_ln,
  tanh
};

/// One rotary-position setting. A model has several when layers differ (Gemma 3).
struct Rope {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;            // linear and llama3
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  std::int64_t original_ctx = 8192;
  /// Per-frequency divisors a GGUF file stores instead of the four numbers above
  /// (rope_freqs.weight, [rotary_dim / 2]); empty if none.
  std::vector<float> frequency_divisors;
};

/// What differs between layers.
struct LayerConfig {
  std::int64_t window = 0;  // keys a query may see, itself included; 0 = all
  std::int32_t rope = 0;    // index into ModelConfig::ropes
};

/// The canonical decoder block and what surrounds it. Every family is a value of this type.
///
/// One block, pre-norm and sequential:
///   mid  = x   + post1(attention(norm1(x)))
///   out  = mid + post2(mlp(norm2(mid)))
/// parallel:
///   out  = x + attention(norm1(x)) + mlp(norm2(x))        (norm2 = norm1 if shared)
/// post:
///   mid  = norm1(x + attention(x)),  out = norm2(mid + mlp(mid))
///
/// Around the blocks:
///   x      = embed_norm(scale · embed[id] + type_embed[0] + pos_embed[position])
///   logits = unembed(final_norm(head_act(head_dense(x))))
/// where every part but the embedding may be missing.
struct ModelConfig {
  std::string family;  // "gpt2", "llama", … ; "lamina" for the canonical family itself

  std::int64_t n_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;
  std::int64_t d_head = 0;
  std::int64_t d_mlp = 0;  // 0: attention only
  std::int64_t d_vocab = 0;
  std::int64_t n_ctx = 0;  // longest position the model was made for

  NormKind norm = NormKind::rms;
  NormPlace norm_place = NormPlace::pre;
  double norm_eps = 1e-5;
  double norm_offset = 0.0;  // the norm multiplies by (offset + weight): 1 in Gemma's HF files
  bool final_norm = true;

  Positions positions = Positions::rotary;
  RopeStyle rope_style = RopeStyle::half;
  std::int64_t rotary_dim = 0;  // leading part of each head that turns
  std::vector<Rope> ropes;

  bool causal = true;
  double attn_scale = 0.0;    // scores = q·k × this
  double attn_softcap = 0.0;  // c·tanh(s / c); 0 = off
  bool qk_norm = false;       // RMS norm of each head's q and k before the rotation
  bool qkv_bias = false;
  bool out_bias = false;

  bool gated = false;  // act(x·W_gate) ∘ (x·W_in)
  Activation act = Activation::silu;
  bool mlp_bias = false;

  bool parallel = false;
  bool shared_parallel_norm = false;  // norm2 is norm1

  double embed_scale = 1.0;
  std::int64_t n_types = 0;  // token types (BERT's segments): row 0 is added to every token
  bool embed_norm = false;   // a norm on the sum of the embeddings

  Head head = Head::language;
  std::vector<std::string> labels;  // classifier: names, one a logit
  bool head_dense = false;          // a dense layer D → D with bias in front of the final norm
  Activation head_act = Activation::tanh;  // of that layer
  bool tied = false;                       // unembedding = embedding
  bool head_bias = false;                  // b_U
  double final_softcap = 0.0;

  std::vector<LayerConfig> layers;  // n_layers entries

  std::int64_t d_attn() const { return n_heads * d_head; }   // width of q and z
  std::int64_t d_kv() const { return n_kv_heads * d_head; }  // width of k and v
  /// Logits of a row: d_vocab, the number of labels, or 0.
  std::int64_t d_out() const {
    return head == Head::language ? d_vocab
           : head == Head::none   ? 0
                                  : static_cast<std::int64_t>(labels.size());
  }
};

/// Throws Error (naming `source`) unless all sizes are positive and within caps, n_heads is a
/// multiple of n_kv_heads, rotary_dim is even and ≤ d_head, `layers` has n_layers entries, …
void validate(const ModelConfig& config, std::string_view source);

/// A short description of the block, one fact a line ("norm: RMS, before each sublayer, ε 1e-05").
std::string describe(const ModelConfig& config);

}  // namespace lamina
