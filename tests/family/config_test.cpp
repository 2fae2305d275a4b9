// What each family's config.json means. The JSONs are cut down from published ones; keys of other
// meaning are left in to show that they are tolerated.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "family/registry.h"

namespace lamina {
namespace {

ModelConfig parse(std::string_view text) {
  return parse_config(text, "config.json");
}

TEST(Gpt2Config, PublishedKeys) {
  const ModelConfig c = parse(R"({"model_type": "gpt2", "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
    "summary_use_proj": true, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}})");
  EXPECT_EQ(c.n_layers, 12);
  EXPECT_EQ(c.d_head, 64);
  EXPECT_EQ(c.n_kv_heads, 12);
  EXPECT_EQ(c.d_mlp, 3072);
  EXPECT_EQ(c.norm, NormKind::layer);
  EXPECT_EQ(c.positions, Positions::learned);
  EXPECT_EQ(c.act, Activation::gelu_tanh);
  EXPECT_TRUE(c.tied && c.qkv_bias && c.out_bias && c.mlp_bias);
  EXPECT_FALSE(c.gated || c.parallel || c.head_bias);
  EXPECT_DOUBLE_EQ(c.attn_scale, 0.125);
}

TEST(BertConfig, PublishedKeys) {
  const std::string keys = R"("attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
    "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true,
    "vocab_size": 30522)";
  const ModelConfig words = parse("{\"architectures\": [\"BertForMaskedLM\"], " + keys + "}");
  EXPECT_EQ(words.norm_place, NormPlace::post);
  EXPECT_EQ(words.norm, NormKind::layer);
  EXPECT_EQ(words.n_types, 2);
  EXPECT_EQ(words.act, Activation::gelu);
  EXPECT_EQ(words.head_act, Activation::gelu);
  EXPECT_TRUE(words.embed_norm && words.tied && words.head_bias && words.head_dense);
  EXPECT_TRUE(words.final_norm && words.qkv_bias && words.out_bias && words.mlp_bias);
  EXPECT_FALSE(words.causal);
  EXPECT_EQ(words.d_out(), 30522);
  const ModelConfig classes =
      parse("{\"architectures\": [\"BertForSequenceClassification\"], " + keys + "}");
  EXPECT_EQ(classes.labels, (std::vector<std::string>{"LABEL_0", "LABEL_1"}));
  EXPECT_EQ(classes.head_act, Activation::tanh);
  EXPECT_EQ(classes.d_out(), 2);
  EXPECT_FALSE(classes.tied || classes.final_norm);
  const ModelConfig bare = parse("{" + keys + "}");
  EXPECT_EQ(bare.head, Head::none);
  EXPECT_EQ(bare.d_out(), 0);
}

TEST(RobertaConfig, PublishedKeys) {
  const ModelConfig c = parse(R"({"architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514,
    "model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
    "type_vocab_size": 1, "vocab_size": 50265})");
  EXPECT_EQ(c.n_ctx, 512);
  EXPECT_EQ(c.n_types, 1);
  EXPECT_DOUBLE_EQ(c.norm_eps, 1e-5);
}

TEST(DistilBertConfig, PublishedKeys) {
  const ModelConfig c = parse(R"({"activation": "gelu", "attention_dropout": 0.1,
    "architectures": ["DistilBertForSequenceClassification"], "dim": 768, "dropout": 0.1,
    "finetuning_task": "sst-2", "hidden_dim": 3072, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "initializer_range": 0.02, "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6,
    "output_past": true, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": false, "tie_weights_": true, "vocab_size": 30522})");
  EXPECT_EQ(c.labels, (std::vector<std::string>{"NEGATIVE", "POSITIVE"}));
  EXPECT_EQ(c.head_act, Activation::relu);
  EXPECT_EQ(c.n_types, 0);
  EXPECT_EQ(c.d_head, 64);
}

TEST(GptNeoxConfig, Pythia) {
  const ModelConfig c = parse(R"({"model_type": "gpt_neox", "hidden_act": "gelu",
    "hidden_size": 512, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
    "torch_dtype": "float16", "use_cache": true, "use_parallel_residual": true,
    "vocab_size": 50304, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "classifier_dropout": 0.1, "rope_scaling": null})");
  EXPECT_EQ(c.rotary_dim, 16);
  EXPECT_EQ(c.act, Activation::gelu);
  EXPECT_TRUE(c.parallel && c.qkv_bias && c.out_bias && c.mlp_bias);
  EXPECT_FALSE(c.tied || c.shared_parallel_norm);
  const ModelConfig sequential = parse(R"({"model_type": "gpt_neox", "hidden_size": 32,
    "intermediate_size": 64, "max_position_embeddings": 64, "num_attention_heads": 4,
    "num_hidden_layers": 1, "vocab_size": 96, "use_parallel_residual": false,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}})");
  EXPECT_FALSE(sequential.parallel);
  EXPECT_EQ(sequential.rotary_dim, 4);
  EXPECT_DOUBLE_EQ(sequential.ropes.at(0).theta, 500);
}

// The keys that all tests of Llama-like families share.
std::string llama_like(std::string_view type, std::string_view more) {
  return fmt::format(R"({{"model_type": "{}", "hidden_size": 64, "intermediate_size": 128,
    "max_position_embeddings": 4096, "num_attention_heads": 4, "num_hidden_layers": 8,
    "vocab_size": 100{}{}}})",
                     type, more.empty() ? "" : ", ", more);
}

TEST(LlamaConfig, OldAndNewKeys) {
  const ModelConfig c = parse(llama_like("llama", R"("pretraining_tp": 1, "rope_scaling": null,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "torch_dtype": "bfloat16")"));
  EXPECT_EQ(c.n_kv_heads, 4);
  EXPECT_EQ(c.d_head, 16);
  EXPECT_EQ(c.norm, NormKind::rms);
  EXPECT_DOUBLE_EQ(c.ropes.at(0).theta, 10000.0);
  EXPECT_EQ(c.ropes.at(0).scaling, RopeScaling::none);
  EXPECT_FALSE(c.tied || c.qkv_bias || c.mlp_bias);

  const ModelConfig three = parse(llama_like("llama", R"("num_key_value_heads": 2, "head_dim": 32,
    "rope_theta": 500000.0, "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"})"));
  EXPECT_EQ(three.n_kv_heads, 2);
  EXPECT_EQ(three.d_attn(), 128);
  EXPECT_TRUE(three.tied && three.qkv_bias && three.out_bias && three.mlp_bias);
  EXPECT_EQ(three.ropes.at(0).scaling, RopeScaling::llama3);
  EXPECT_DOUBLE_EQ(three.ropes.at(0).theta, 500000.0);
  EXPECT_DOUBLE_EQ(three.ropes.at(0).factor, 32.0);
  EXPECT_EQ(three.ropes.at(0).original_ctx, 8192);

  const ModelConfig linear =
      parse(llama_like("llama", R"("rope_scaling": {"type": "linear", "factor": 2.5})"));
  EXPECT_EQ(linear.ropes.at(0).scaling, RopeScaling::linear);
  EXPECT_DOUBLE_EQ(linear.ropes.at(0).factor, 2.5);
}

TEST(MistralConfig, Windows) {
  EXPECT_EQ(parse(llama_like("mistral", R"("num_key_value_heads": 2, "sliding_window": 7)"))
                .layers.at(3)
                .window,
            7);
  EXPECT_EQ(parse(llama_like("mistral", R"("num_key_value_heads": 2, "sliding_window": null)"))
                .layers.at(3)
                .window,
            0);
  EXPECT_EQ(parse(llama_like("mistral", R"("num_key_value_heads": 2)")).layers.at(3).window, 4096);
}

TEST(Qwen2Config, WindowsBeginAtMaxWindowLayers) {
  const auto windows = [](std::string_view more) {
    std::string out;
    for (const LayerConfig& l : parse(llama_like("qwen2", more)).layers)
      out += fmt::format("{} ", l.window);
    return out;
  };
  EXPECT_EQ(windows(R"("use_sliding_window": false, "sliding_window": 9, "max_window_layers": 2)"),
            "0 0 0 0 0 0 0 0 ");
  EXPECT_EQ(windows(R"("use_sliding_window": true, "sliding_window": 9, "max_window_layers": 5)"),
            "0 0 0 0 0 9 9 9 ");
  EXPECT_EQ(windows(R"("use_sliding_window": true, "sliding_window": 9, "layer_types":
    ["full_attention", "sliding_attention", "full_attention", "full_attention", "full_attention",
     "full_attention", "full_attention", "sliding_attention"])"),
            "0 9 0 0 0 0 0 9 ");
  const ModelConfig c = parse(llama_like("qwen2", ""));
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.out_bias || c.mlp_bias || c.qk_norm);
}

TEST(Qwen3Config, HeadsOf128AndNorms) {
  const ModelConfig c = parse(llama_like("qwen3", R"("num_key_value_heads": 2)"));
  EXPECT_EQ(c.d_head, 128);
  EXPECT_TRUE(c.qk_norm);
  EXPECT_FALSE(c.qkv_bias);
}

TEST(GemmaConfig, One) {
  // The released files say "gelu" and mean its tanh form.
  const ModelConfig c = parse(llama_like("gemma", R"("head_dim": 256, "num_key_value_heads": 1,
    "hidden_act": "gelu", "hidden_activation": null, "rms_norm_eps": 1e-06)"));
  EXPECT_EQ(c.act, Activation::gelu_tanh);
  EXPECT_DOUBLE_EQ(c.embed_scale, 8.0);
  EXPECT_DOUBLE_EQ(c.norm_offset, 1.0);
  EXPECT_EQ(c.norm_place, NormPlace::pre);
  EXPECT_TRUE(c.tied && c.gated);
}

TEST(GemmaConfig, TwoAlternatesAndCaps) {
  const ModelConfig c = parse(llama_like("gemma2", R"("head_dim": 32, "num_key_value_heads": 2,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 144,
    "sliding_window": 512, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh")"));
  EXPECT_EQ(c.norm_place, NormPlace::sandwich);
  EXPECT_DOUBLE_EQ(c.attn_scale, 1.0 / 12.0);
  EXPECT_DOUBLE_EQ(c.attn_softcap, 50.0);
  EXPECT_DOUBLE_EQ(c.final_softcap, 30.0);
  for (std::size_t l = 0; l < 8; ++l) EXPECT_EQ(c.layers[l].window, l % 2 == 0 ? 512 : 0) << l;
  const ModelConfig off = parse(llama_like("gemma2", R"("attn_logit_softcapping": null,
    "final_logit_softcapping": null)"));
  EXPECT_EQ(off.attn_softcap, 0.0);
  EXPECT_EQ(off.final_softcap, 0.0);
}

TEST(GemmaConfig, ThreeHasTwoRotarySettings) {
  const std::string_view more = R"("head_dim": 32, "num_key_value_heads": 2,
    "query_pre_attn_scalar": 256, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 512,
    "sliding_window_pattern": 6)";
  const ModelConfig c = parse(llama_like("gemma3_text", more));
  EXPECT_TRUE(c.qk_norm);
  EXPECT_DOUBLE_EQ(c.attn_scale, 1.0 / 16.0);
  ASSERT_EQ(c.ropes.size(), 2u);
  EXPECT_DOUBLE_EQ(c.ropes[0].theta, 1.0e6);
  EXPECT_DOUBLE_EQ(c.ropes[0].factor, 8.0);
  EXPECT_EQ(c.ropes[1].scaling, RopeScaling::none);
  EXPECT_DOUBLE_EQ(c.ropes[1].theta, 1.0e4);
  for (std::size_t l = 0; l < 8; ++l) {
    EXPECT_EQ(c.layers[l].window, l == 5 ? 0 : 512) << l;
    EXPECT_EQ(c.layers[l].rope, l == 5 ? 0 : 1) << l;
  }
  // The same inside the picture-and-text model's file, and in the newer spelling.
  const ModelConfig nested = parse(fmt::format(
      R"({{"model_type": "gemma3", "text_config": {}, "vision_config": {{"hidden_size": 7}},
           "mm_tokens_per_image": 256, "image_token_index": 262144}})",
      llama_like("gemma3_text", more)));
  EXPECT_EQ(describe(nested), describe(c));
  const ModelConfig newer = parse(llama_like("gemma3_text", R"("head_dim": 32,
    "num_key_value_heads": 2, "sliding_window": 512, "_sliding_window_pattern": 6,
    "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1000000.0,
    "factor": 8.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})"));
  EXPECT_EQ(describe(newer), describe(c));
}

TEST(CanonicalConfig, DefaultsAndEverySetting) {
  const std::string sizes =
      R"("model_type": "lamina", "n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4,
         "d_vocab": 10, "n_ctx": 16)";
  const ModelConfig c = parse("{" + sizes + "}");
  EXPECT_EQ(c.d_mlp, 0);
  EXPECT_EQ(c.n_kv_heads, 2);
  EXPECT_EQ(c.norm_place, NormPlace::pre);
  EXPECT_TRUE(c.final_norm && c.causal);
  EXPECT_EQ(c.positions, Positions::learned);
  EXPECT_DOUBLE_EQ(c.attn_scale, 0.5);
  const ModelConfig all = parse("{" + sizes + R"(, "n_kv_heads": 1, "d_mlp": 12, "norm": "rms",
    "norm_place": "post", "norm_eps": 0.001, "final_norm": false, "positions": "rotary",
    "rope_theta": 100, "rotary_dim": 2, "rope_style": "interleaved", "causal": false,
    "attn_scale": 1.0, "attn_softcap": 5, "final_softcap": 6, "qk_norm": true, "window": 0,
    "qkv_bias": true, "out_bias": true, "mlp_bias": true, "gated": true, "act": "quick_gelu",
    "parallel": false, "embed_scale": 2.0, "tied": true, "head_bias": true})");
  EXPECT_EQ(all.norm_place, NormPlace::post);
  EXPECT_EQ(all.rope_style, RopeStyle::interleaved);
  EXPECT_EQ(all.act, Activation::quick_gelu);
  EXPECT_DOUBLE_EQ(all.attn_scale, 1.0);
  EXPECT_TRUE(all.tied && all.head_bias && all.gated && all.qk_norm && !all.causal &&
              !all.final_norm);
  const ModelConfig bare = parse("{" + sizes + R"(, "norm": "none", "attn_scale": null})");
  EXPECT_FALSE(bare.final_norm);
  EXPECT_EQ(bare.norm_place, NormPlace::none);
}

TEST(Describe, NamesWhatMatters) {
  const std::string text = describe(parse(llama_like("gemma2", R"("head_dim": 32)")));
  for (const char* part : {"family: gemma2", "soft-cap 50", "window: 4096 keys in 4 of 8 layers",
                           "before and after each sublayer", "weight + 1", "tied"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
}

}  // namespace
}  // namespace lamina
