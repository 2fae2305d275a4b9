#include "transcoder/file_config.h"

#include <gtest/gtest.h>

#include "transcoder/support.h"

namespace lamina::transcoder_files {
namespace {

using lamina::testing::error_of;
using lamina::testing::expect_message;

TEST(FlatYaml, ReadsWhatConfigurationsHold) {
  const auto values = parse_flat_yaml(
      "---\n# a comment\nmodel_name: \"google/gemma-2-2b\"  # behind\nk: 5\nempty:\n"
      "scan: [a, 'b c', \"d, e\"]\ntranscoders:\n  - hf://x/y/layer_0.safetensors?revision=main\n"
      "- 'two # no comment'\nurl: http://x/y\r\n\nlast: ''\n",
      "c.yaml");
  EXPECT_EQ(values.at("model_name").items, std::vector<std::string>{"google/gemma-2-2b"});
  EXPECT_EQ(values.at("k").items, std::vector<std::string>{"5"});
  EXPECT_TRUE(values.at("empty").items.empty());
  EXPECT_EQ(values.at("scan").items, (std::vector<std::string>{"a", "b c", "d, e"}));
  EXPECT_EQ(
      values.at("transcoders").items,
      (std::vector<std::string>{"hf://x/y/layer_0.safetensors?revision=main", "two # no comment"}));
  EXPECT_EQ(values.at("url").items, std::vector<std::string>{"http://x/y"});
  EXPECT_EQ(values.at("last").items, std::vector<std::string>{""});
}

TEST(FlatYaml, RefusesTheRestWithItsLine) {
  const auto refuses = [](const std::string& text, const std::string& part) {
    expect_message(error_of([&] { parse_flat_yaml(text, "c.yaml"); }), part);
  };
  refuses("a: 1\na: 2\n", "c.yaml: line 2: key \"a\" appears twice");
  refuses("a:\nb: 1\na:\n", "line 3: key \"a\" appears twice");
  refuses("- 1\n", "line 1: expected a key before list items, found \"- 1\"");
  refuses("a: 1\n- 1\n", "line 2: expected a key before list items");
  refuses("a:\n  b: 1\n", "line 2: expected a key at the line's beginning");
  refuses("a: &x 1\n", "line 1: expected a plain or quoted value, found \"&x 1\"");
  refuses("a: !!python/object:os.system\n", "expected a plain or quoted value");
  refuses("a: |\n", "expected a plain or quoted value");
  refuses("a: {b: 1}\n", "expected a plain or quoted value");
  refuses("a: b: c\n", "expected a value without a mapping");
  refuses("a: [1, 2\n", "expected ',' or ']'");
  refuses("a: [1, [2]]\n", "expected a plain or quoted value");
  refuses("a: \"x\n", "expected a closing quote");
  refuses("a: \"x\" y\n", "expected the end of the line");
  refuses("a: \"x\\n\"\n", "without escapes");
  refuses("a\n", "expected key: value");
  refuses("a:1\n", "expected key: value");
  refuses("a: 1\n---\n", "expected key: value, found \"---\"");
  refuses(std::string("a: b\0c\n", 7), "expected text");
  refuses("a: \xff\n", "it is no UTF-8 text");
}

constexpr const char* kGood = R"({"architecture": "topk", "d_in": 4, "d_sae": 8, "k": 2)";

TEST(SaeLensConfig, RefusesWhatIsNotComputed) {
  const auto refuses = [](const std::string& text, const std::string& part) {
    expect_message(error_of([&] { parse_saelens_config(text, "cfg.json"); }), part);
  };
  const auto with = [](const std::string& more) { return std::string(kGood) + more + "}"; };
  EXPECT_EQ(parse_saelens_config(with(""), "cfg.json").k, 2);
  refuses("[]", "cfg.json: the text: expected an object, found \"[]\"");
  refuses("{", "cfg.json: no valid JSON at byte");
  refuses("{}", "cfg.json: no d_in");
  refuses(with(R"(, "k": 3)"), "key \"k\" appears twice");
  refuses(R"({"architecture": "gated", "d_in": 4})",
          "architecture: expected one of standard, topk, batchtopk, jumprelu, transcoder");
  refuses(R"({"architecture": "gated", "d_in": 4})", "found \"gated\"");
  refuses(R"({"architecture": "topk", "d_in": 4})", "architecture topk without k");
  refuses(R"({"architecture": "transcoder", "d_in": 4})", "architecture transcoder without d_out");
  refuses(R"({"architecture": "transcoder", "d_in": 4, "d_out": 5, "apply_b_dec_to_input": true})",
          "apply_b_dec_to_input with d_in 4 and d_out 5, which must be equal");
  refuses(R"({"d_in": 4.5})", "d_in: expected a whole number from 1 to 1048576, found \"4.5\"");
  refuses(R"({"d_in": -1})", "found \"-1\"");
  refuses(R"({"d_in": 1e300})", "found \"1e+300\"");
  refuses(R"({"d_in": "4"})", "d_in: expected a whole number");
  refuses(R"({"d_in": 4, "d_sae": 99999999999})", "d_sae: expected a whole number");
  refuses(with(R"(, "normalize_activations": "layer_norm")"),
          "normalize_activations: expected none or expected_average_only_in, found \"layer_norm\"");
  refuses(with(R"(, "normalize_activations": "constant_norm_rescale")"), "constant_norm_rescale");
  refuses(with(R"(, "normalize_activations": "covariance_whitening")"), "covariance_whitening");
  refuses(with(R"(, "activation_fn": "tanh-relu")"),
          "activation_fn: expected relu or topk, found \"tanh-relu\"");
  refuses(with(R"(, "metadata": {"hook_head_index": 3})"),
          "hook_head_index: expected null: dictionaries of one head are not read, found \"3\"");
  refuses(with(R"(, "metadata": [])"), "the text: expected an object");
  refuses(with(R"(, "apply_b_dec_to_input": 1)"), "apply_b_dec_to_input: expected true or false");
  refuses(with(R"(, "reshape_activations": "x")"), "reshape_activations: expected none or hook_z");
  refuses(R"({"d_in": 4, "hook_point": "blocks.{layer}.hook_resid_pre"})",
          "without hook_point_layer");
  EXPECT_TRUE(
      parse_saelens_config(with(R"(, "normalize_activations": true)"), "c").expected_average);
  EXPECT_EQ(parse_saelens_config(
                R"({"d_in": 4, "hook_point": "blocks.{layer}.hook_resid_pre",
                    "hook_point_layer": 7})",
                "c")
                .hook_name,
            "blocks.7.hook_resid_pre");
}

TEST(CircuitTracerConfig, ReadsYamlAndJsonAndRefusesTheRest) {
  for (const char* text :
       {"model_kind: transcoder_set\nactivation: topk\nk: 5\nscan: [a, b]\nn_layers: 3\n",
        R"({"model_kind": "transcoder_set", "activation": "topk", "k": 5, "scan": ["a"],
            "n_layers": {"x": 1}})"}) {
    const CircuitTracerConfig c = parse_circuit_tracer_config(text, "config");
    EXPECT_EQ(c.activation, "topk");
    EXPECT_EQ(c.k, 5);
    ASSERT_EQ(c.notes.size(), 1U);
    EXPECT_NE(c.notes[0].find("\"n_layers\""), std::string::npos);
  }
  const auto refuses = [](const std::string& text, const std::string& part) {
    expect_message(error_of([&] { parse_circuit_tracer_config(text, "config.yaml"); }), part);
  };
  refuses("a: 1\n", "model_kind: expected transcoder_set or cross_layer_transcoder, found \"\"");
  refuses("model_kind: x\n", "found \"x\"");
  refuses("model_kind: transcoder_set\nactivation: gelu\n",
          "activation: expected relu, topk or jump_relu, found \"gelu\"");
  refuses("model_kind: transcoder_set\nactivation: topk\n", "activation topk without k");
  refuses("model_kind: transcoder_set\nk: five\n", "k: expected a whole number from 1 to");
  refuses("model_kind: transcoder_set\nk: 0\n", "found \"0\"");
  refuses("model_kind: [a]\n", "model_kind: expected one value, found a list");
  refuses(R"({"model_kind": "transcoder_set", "k": {"a": 1}})", "a string, a number or a list");
}

}  // namespace
}  // namespace lamina::transcoder_files
