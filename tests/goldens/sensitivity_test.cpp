// The goldens can tell: a model whose configuration differs in one setting must give other logits
// than the reference. A setting that this test does not feel would not be checked by golden_test.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

struct Edit {
  const char* folder;
  const char* pointer;  // JSON pointer into config.json
  const char* value;    // JSON
};

const Edit kEdits[] = {
    {"gpt2", "/activation_function", "\"gelu\""},
    {"gpt2", "/layer_norm_epsilon", "0.01"},
    {"gpt_neox", "/use_parallel_residual", "false"},
    {"gpt_neox", "/rope_parameters/partial_rotary_factor", "0.25"},
    {"gpt_neox", "/rope_parameters/rope_theta", "5000"},
    {"llama2", "/rms_norm_eps", "0.01"},
    {"llama3", "/rope_parameters/factor", "4.0"},
    {"llama3", "/rope_parameters/low_freq_factor", "1.5"},
    {"llama3", "/rope_parameters/high_freq_factor", "6.0"},
    {"llama3", "/rope_parameters/original_max_position_embeddings", "40"},
    {"llama_linear", "/rope_parameters/factor", "3.0"},
    {"mistral", "/sliding_window", "7"},
    {"mistral", "/sliding_window", "5"},
    {"qwen2", "/sliding_window", "6"},
    {"qwen2", "/layer_types/0", "\"sliding_attention\""},
    {"gemma", "/rope_parameters/rope_theta", "5000"},
    {"gemma2", "/attn_logit_softcapping", "2.2"},
    {"gemma2", "/final_logit_softcapping", "13.0"},
    {"gemma2", "/query_pre_attn_scalar", "6"},
    {"gemma2", "/sliding_window", "7"},
    {"gemma3", "/sliding_window", "5"},
    {"gemma3", "/rope_parameters/full_attention/factor", "7.0"},
    {"gemma3", "/rope_parameters/sliding_attention/rope_theta", "120.0"},
    {"bert", "/hidden_act", "\"relu\""},
    {"bert", "/layer_norm_eps", "0.003"},
    {"roberta", "/hidden_act", "\"gelu\""},
    {"distilbert_classifier", "/activation", "\"relu\""},
    {"lamina_classifier", "/head_act", "\"gelu\""},
    {"lamina_bidirectional", "/causal", "true"},
    {"lamina_post", "/norm_place", "\"pre\""},
    {"lamina_post", "/norm_eps", "0.003"},
    {"lamina_post", "/causal", "true"},
    {"lamina_post", "/act", "\"gelu_tanh\""},
    {"lamina_parallel", "/rope_style", "\"half\""},
    {"lamina_parallel", "/attn_scale", "0.6"},
    {"lamina_sandwich", "/window", "5"},
    {"lamina_sandwich", "/attn_softcap", "4.0"},
};

// Largest |difference| of the third prompt's logits, relative to their largest magnitude.
double logits_error(const fs::path& model_folder, const fs::path& golden_file) {
  const Model model = Model::load(model_folder);
  const TensorStore store = open_safetensors(golden_file);
  const TensorInfo* ids = store.find("p2/ids");
  const TensorInfo* want = store.find("p2/logits");
  Batch batch;
  batch.add({reinterpret_cast<const std::int32_t*>(ids->bytes.data()),
             static_cast<std::size_t>(ids->elements())});
  std::vector<float> expected(want->elements()), got(want->elements());
  expand_to_f32(want->dtype, want->bytes, expected);
  Forward forward(model);
  const auto residual = forward.run(batch);
  forward.logits(residual, got);
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - expected[i]));
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
  }
  return worst / largest;
}

TEST(GoldenSensitivity, EverySettingIsFelt) {
  for (const Edit& edit : kEdits) {
    const fs::path golden = fs::path(LAMINA_SOURCE_DIR) / "tests" / "goldens" / edit.folder;
    nlohmann::json config = nlohmann::json::parse(std::ifstream(golden / "config.json"));
    const nlohmann::json::json_pointer at(edit.pointer);
    ASSERT_TRUE(config.contains(at)) << edit.folder << edit.pointer;
    const nlohmann::json value = nlohmann::json::parse(edit.value);
    ASSERT_NE(config[at], value) << edit.folder << edit.pointer;
    config[at] = value;
    testing::TempDir folder;
    std::ofstream(folder.path() / "config.json") << config.dump();
    fs::copy_file(golden / "model.safetensors", folder.path() / "model.safetensors");
    // Five times what golden_test allows (two forms of GELU differ least; most settings give 1e-2).
    EXPECT_GT(logits_error(folder.path(), golden / "golden.safetensors"), 1e-4)
        << edit.folder << " " << edit.pointer << " = " << edit.value;
  }
}

}  // namespace
}  // namespace lamina
