// Configurations lamina cannot compute are refused by name and value, in one line.

#include <gtest/gtest.h>

#include <string>

#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

struct Case {
  const char* json;     // merged over the base
  const char* message;  // all of what the Error says
};

std::string message(const std::string& text) {
  try {
    parse_config(text, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

std::string with_base(std::string_view type, std::string_view json) {
  nlohmann::json base = {{"model_type", type},
                         {"hidden_size", 64},
                         {"intermediate_size", 128},
                         {"max_position_embeddings", 4096},
                         {"num_attention_heads", 4},
                         {"num_key_value_heads", 2},
                         {"num_hidden_layers", 2},
                         {"vocab_size", 100},
                         {"head_dim", 16}};
  base.update(nlohmann::json::parse(json));
  return base.dump();
}

TEST(Refusals, Llama) {
  const Case cases[] = {
      {R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})",
       "config.json: rope_scaling: rope_type is \"yarn\"; known kinds of rotary scaling: default, "
       "linear, llama3"},
      {R"({"rope_scaling": {"type": "dynamic", "factor": 4.0}})",
       "config.json: rope_scaling: type is \"dynamic\"; known kinds of rotary scaling: default, "
       "linear, llama3"},
      {R"({"rope_scaling": {"type": "linear", "factor": 4.0, "beta_fast": 32}})",
       "config.json: rope_scaling: beta_fast is 32; the rotary kind \"linear\" has no such "
       "setting"},
      {R"({"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0,
           "high_freq_factor": 1.0}})",
       "config.json: rope 0: low_freq_factor 4 and high_freq_factor 1; expected 0 < low < high"},
      {R"({"partial_rotary_factor": 0.5})",
       "config.json: partial_rotary_factor is 0.5; only 1 is supported"},
      {R"({"hidden_act": "xielu"})",
       "config.json: hidden_act is \"xielu\"; known activations: gelu, gelu_new, "
       "gelu_pytorch_tanh, "
       "gelu_fast, silu, swish, relu, quick_gelu"},
      {R"({"num_local_experts": 8})",
       "config.json: num_local_experts is 8; lamina does not know this setting and will not guess "
       "that it is harmless"},
      {R"({"quantization_config": {"bits": 4}})",
       "config.json: quantization_config is {\"bits\":4}; lamina does not know this setting and "
       "will "
       "not guess that it is harmless"},
      {R"({"sliding_window": 128})",
       "config.json: sliding_window is 128; lamina does not know this setting and will not guess "
       "that "
       "it is harmless"},
      {R"({"qkv_bias": true})",
       "config.json: qkv_bias is true; lamina does not know this setting and will not guess that "
       "it is "
       "harmless"},
      {R"({"residual_multiplier": 0.22})",
       "config.json: residual_multiplier is 0.22; lamina does not know this setting and will not "
       "guess "
       "that it is harmless"},
      {R"({"num_key_value_heads": 3})",
       "config.json: n_heads is 4; expected a multiple of n_kv_heads = 3"},
      {R"({"num_hidden_layers": 0})", "config.json: num_hidden_layers is 0; expected 1 to 4096"},
      {R"({"num_hidden_layers": 100000000000})",
       "config.json: num_hidden_layers is 100000000000; expected 1 to 4096"},
      {R"({"hidden_size": 1e30})", "config.json: hidden_size is 1e+30; expected a 64-bit integer"},
      {R"({"hidden_size": -64})", "config.json: d_model is -64; expected 1 to 16777216"},
      {R"({"head_dim": 15})",
       "config.json: rotary_dim is 15; expected an even number from 2 to d_head = 15"},
      {R"({"vocab_size": "100"})", "config.json: vocab_size is \"100\"; expected a 64-bit integer"},
      {R"({"vocab_size": null})", "config.json: no \"vocab_size\"; expected an integer"},
      {R"({"rms_norm_eps": -1e-5})", "config.json: norm epsilon is -1e-05; expected 0 to 1"},
      {R"({"rope_theta": 0})", "config.json: rope 0: theta is 0; expected a positive number"},
      {R"({"tie_word_embeddings": "yes"})",
       "config.json: tie_word_embeddings is \"yes\"; expected true or false"},
  };
  for (const Case& c : cases) EXPECT_EQ(message(with_base("llama", c.json)), c.message) << c.json;
}

TEST(Refusals, OtherFamilies) {
  const auto check = [](std::string_view type, std::string_view json, std::string_view expected) {
    EXPECT_EQ(message(with_base(type, json)), expected) << json;
  };
  check("qwen2", R"({"layer_types": ["sliding_attention", "full_attention"]})",
        "config.json: layer_types is [\"sliding_attention\",\"full_attention\"]; layer 0 is "
        "sliding_attention but use_sliding_window is off");
  check("qwen3", R"({"layer_types": ["full_attention"]})",
        "config.json: layer_types is [\"full_attention\"]; 1 entries; expected one for each of 2 "
        "layers");
  check("gemma3_text", R"({"layer_types": ["chunked_attention", "full_attention"]})",
        "config.json: layer_types is [\"chunked_attention\",\"full_attention\"]; entry 0 is "
        "\"chunked_attention\"; known: full_attention, sliding_attention");
  check("gemma2", R"({"use_bidirectional_attention": true})",
        "config.json: use_bidirectional_attention is true; only false is supported");
  check("gemma2", R"({"query_pre_attn_scalar": -4})",
        "config.json: query_pre_attn_scalar is -4; expected a positive number");
  check("mistral", R"({"sliding_window": 0})",
        "config.json: sliding_window is 0; expected 1 or more");
  check("gpt_neox", R"({"num_key_value_heads": 4, "rotary_pct": 1.5})",
        "config.json: rotary fraction is 1.5; expected more than 0, at most 1");
  check("mamba", "{}",
        "config.json: model_type is \"mamba\"; known: bert, distilbert, gemma, gemma2, gemma3, "
        "gemma3_text, gpt2, gpt_neox, lamina, llama, mistral, qwen2, qwen3, roberta");
  check("bert", R"({"architectures": ["BertForTokenClassification"]})",
        "config.json: architectures is [\"BertForTokenClassification\"]; known: BertModel, "
        "BertForMaskedLM, BertForPreTraining, BertForSequenceClassification");
  check("bert", R"({"position_embedding_type": "relative_key"})",
        "config.json: position_embedding_type is \"relative_key\"; only \"absolute\" is supported");
  check("bert", R"({"is_decoder": true})",
        "config.json: is_decoder is true; only false is supported");
  check("bert", R"({"architectures": ["BertForSequenceClassification"],
                    "id2label": {"0": "no", "2": "yes"}})",
        "config.json: id2label is {\"0\":\"no\",\"2\":\"yes\"}; no text for label 1 of 2");
  check("roberta", R"({"pad_token_id": 0})", "config.json: pad_token_id is 0; only 1 is supported");
  EXPECT_EQ(
      message(R"({"model_type": "gpt2", "n_layer": 2, "n_embd": 10, "n_head": 3, "vocab_size": 9,
                        "n_positions": 8})"),
      "config.json: n_head is 3; n_embd = 10 must be a multiple of it");
  EXPECT_EQ(
      message(R"({"model_type": "gpt2", "n_layer": 2, "n_embd": 10, "n_head": 2, "vocab_size": 9,
                        "n_positions": 8, "scale_attn_by_inverse_layer_idx": true})"),
      "config.json: scale_attn_by_inverse_layer_idx is true; only false is supported");
  EXPECT_EQ(message("[1]"), "config.json: expected a JSON object, found [1]");
}

TEST(Refusals, Canonical) {
  const auto check = [](std::string_view json, std::string_view expected) {
    nlohmann::json base = {
        {"model_type", "lamina"}, {"n_layers", 1}, {"d_model", 8}, {"n_heads", 2}, {"d_head", 4},
        {"d_vocab", 10},          {"n_ctx", 16}};
    base.update(nlohmann::json::parse(json));
    EXPECT_EQ(message(base.dump()), expected) << json;
  };
  check(R"({"norm": "batch"})",
        "config.json: norm is \"batch\"; expected one of: none, layer, rms");
  check(R"({"norm": "none", "norm_place": "pre"})",
        "config.json: norm is none but stands before each sublayer");
  check(R"({"norm": "none", "final_norm": true})",
        "config.json: final_norm is true; norm is \"none\"");
  check(R"({"parallel": true, "norm_place": "post"})",
        "config.json: a parallel block cannot have its norms after each residual addition");
  check(R"({"causal": false, "window": 3})",
        "config.json: layer 0: a window of 3 in a bidirectional model");
  check(R"({"attn_scale": 0})", "config.json: attention scale is 0; expected a positive number");
  check(R"({"d_mlp": 8, "gated": true, "act": "solu"})",
        "config.json: a gated MLP with the activation SoLU");
  check(R"({"head": "classifier"})",
        "config.json: a classifier with 0 labels; expected 1 to 65536");
  check(R"({"labels": ["a"]})", "config.json: 1 labels without a classifier's head");
  check(R"({"head": "none", "head_dense": true})", "config.json: parts of a head without a head");
  check(R"({"norm": "none", "embed_norm": true})",
        "config.json: a norm on the embeddings in a model whose norm is none");
  check(R"({"head": "classifier", "labels": ["a", "b"], "tied": true})",
        "config.json: a head that is tied to the embedding but gives no words");
  check(R"({"normalise_scores": true})",
        "config.json: normalise_scores is true; lamina does not know this setting and will not "
        "guess that "
        "it is harmless");
}

TEST(Refusals, HarmlessKeysPass) {
  EXPECT_EQ(message(with_base("llama", R"({"use_cache": true, "transformers_version": "4.40.0",
    "torch_dtype": "bfloat16", "attention_dropout": 0.0, "pretraining_tp": 1, "license": "mit",
    "unsloth_fixed": true, "_flash_attn_2_enabled": true, "embedding_dropout": 0.1, "initializer_factor": 1.0, "num_experts": 0, "rope_scaling": null, "layer_types": []})")),
            "accepted");
}

}  // namespace
}  // namespace lamina
