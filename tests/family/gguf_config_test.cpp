// What the keys of a GGUF file mean, and which are refused.

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "family/gguf_reader.h"
#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using Values = std::map<std::string, GgufValue, std::less<>>;

// A file with these keys under `arch` and an embedding [11, 32]; `tensors` are [4] vectors of f32.
struct Fixture {
  explicit Fixture(std::string_view arch, Values more = {}, std::vector<std::string> tensors = {}) {
    const std::string p = std::string(arch) + ".";
    values = {{p + "block_count", std::uint64_t{8}},
              {p + "embedding_length", std::uint64_t{32}},
              {p + "attention.head_count", std::uint64_t{4}},
              {p + "feed_forward_length", std::uint64_t{64}},
              {p + "context_length", std::uint64_t{128}},
              {p + "attention.layer_norm_rms_epsilon", 1e-6},
              {p + "attention.layer_norm_epsilon", 1e-5}};
    for (const auto& [key, value] : more) values[p + key] = value;
    values.erase(p + (arch == "gpt2" || arch == "gptneox" ? "attention.layer_norm_rms_epsilon"
                                                          : "attention.layer_norm_epsilon"));
    std::vector<TensorInfo> infos;
    infos.push_back({"token_embd.weight", DType::f32, {11, 32}, {}});
    for (const std::string& name : tensors) {
      infos.push_back({name, DType::f32, {4}, std::as_bytes(std::span(data))});
    }
    file.metadata = GgufMetadata("tiny.gguf", values);
    file.store = TensorStore("tiny.gguf", std::move(infos), {});
    architecture = arch;
  }
  ModelConfig read() {
    for (const GgufFamily& family : gguf_families()) {
      if (family.architecture != architecture) continue;
      GgufReader reader(file, architecture);
      ModelConfig config = family.read(reader);
      reader.finish();
      validate(config, "tiny.gguf");
      return config;
    }
    fail("no family {}", architecture);
  }
  std::string message() {
    try {
      read();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  float data[4] = {1.0f, 1.5f, 4.0f, 8.0f};
  Values values;
  GgufFile file;
  std::string architecture;
};

TEST(GgufConfig, Llama) {
  Fixture f("llama",
            {{"attention.head_count_kv", std::uint64_t{2}},
             {"rope.freq_base", 500000.0},
             {"rope.dimension_count", std::uint64_t{8}},
             {"vocab_size", std::uint64_t{11}}},
            {"output.weight", "blk.0.attn_q.bias", "rope_freqs.weight"});
  const ModelConfig c = f.read();
  EXPECT_EQ(c.n_kv_heads, 2);
  EXPECT_EQ(c.d_vocab, 11);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.tied || c.out_bias || c.mlp_bias);
  EXPECT_DOUBLE_EQ(c.ropes.at(0).theta, 500000.0);
  EXPECT_EQ(c.ropes.at(0).frequency_divisors, (std::vector<float>{1.0f, 1.5f, 4.0f, 8.0f}));
}

TEST(GgufConfig, Gemma) {
  Fixture f("gemma3", {{"attention.key_length", std::uint64_t{16}},
                       {"attention.sliding_window", std::uint64_t{9}},
                       {"rope.freq_base", 1e6},
                       {"rope.scaling.type", std::string("linear")},
                       {"rope.scaling.factor", 8.0}});
  const ModelConfig c = f.read();
  EXPECT_EQ(c.norm_offset, 0.0);  // the + 1 is in the file's weights
  EXPECT_EQ(c.norm_place, NormPlace::sandwich);
  EXPECT_DOUBLE_EQ(c.attn_scale, 0.25);
  EXPECT_TRUE(c.tied && c.qk_norm);
  EXPECT_DOUBLE_EQ(c.ropes.at(0).factor, 8.0);
  EXPECT_DOUBLE_EQ(c.ropes.at(1).theta, 10000.0);
  EXPECT_EQ(c.ropes.at(1).scaling, RopeScaling::none);
  for (std::size_t l = 0; l < 8; ++l) EXPECT_EQ(c.layers[l].window, l == 5 ? 0 : 9);

  Fixture flags("gemma3", {{"attention.sliding_window_pattern",
                            std::vector<bool>{true, false, true, false, true, false, true, false}},
                           {"attention.sliding_window", std::uint64_t{9}}});
  for (std::size_t l = 0; l < 8; ++l) EXPECT_EQ(flags.read().layers[l].window, l % 2 == 0 ? 9 : 0);

  Fixture two("gemma2", {{"attn_logit_softcapping", 50.0},
                         {"final_logit_softcapping", 30.0},
                         {"attention.sliding_window", std::uint64_t{7}}});
  EXPECT_EQ(two.read().layers.at(0).window, 7);
  EXPECT_EQ(two.read().layers.at(1).window, 0);
  EXPECT_EQ(two.read().attn_softcap, 50.0);
}

TEST(GgufConfig, GptNeox) {
  Fixture f("gptneox",
            {{"rope.dimension_count", std::uint64_t{2}}, {"use_parallel_residual", true}});
  const ModelConfig c = f.read();
  EXPECT_EQ(c.family, "gpt_neox");
  EXPECT_EQ(c.rotary_dim, 2);
  EXPECT_TRUE(c.parallel);
}

TEST(GgufConfig, Refusals) {
  EXPECT_EQ(Fixture("llama", {{"expert_count", std::uint64_t{8}}}).message(),
            "tiny.gguf: llama.expert_count is 8; lamina does not know this setting and will not "
            "guess that "
            "it is harmless");
  EXPECT_EQ(Fixture("llama", {{"expert_count", std::uint64_t{0}}}).message(), "accepted");
  EXPECT_EQ(Fixture("llama", {{"rope.scaling.type", std::string("yarn")}}).message(),
            "tiny.gguf: llama.rope.scaling.type is \"yarn\"; known kinds of rotary scaling: none, "
            "linear");
  EXPECT_EQ(Fixture("llama", {{"rope.dimension_count", std::uint64_t{4}}}).message(),
            "tiny.gguf: llama.rope.dimension_count is 4; expected the head size, 8");
  EXPECT_EQ(Fixture("llama", {{"vocab_size", std::uint64_t{12}}}).message(),
            "tiny.gguf: llama.vocab_size is 12; token_embd.weight has 11 rows");
  EXPECT_EQ(Fixture("llama", {{"attention.value_length", std::uint64_t{16}}}).message(),
            "tiny.gguf: llama.attention.value_length is 16; expected the key length, 8");
  EXPECT_EQ(Fixture("llama", {{"block_count", std::uint64_t{1000000}}}).message(),
            "tiny.gguf: llama.block_count is 1000000; expected 1 to 4096");
  EXPECT_EQ(
      Fixture("gemma3", {{"attention.sliding_window_pattern", std::vector<bool>{true}}}).message(),
      "tiny.gguf: gemma3.attention.sliding_window_pattern is a list of 1; expected one flag for "
      "each of "
      "8 layers");
}

}  // namespace
}  // namespace lamina
