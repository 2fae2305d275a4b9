// Files that SAELens and circuit-tracer wrote, against what they compute with them
// (make_file_goldens.py), and files of ours read back.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "lamina/circuits/transcoder_file.h"
#include "support/tiny_model.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

using testing::dense;
using testing::file_golden;
using testing::kTranscoderGoldens;
using testing::random_transcoder;
using testing::random_values;
using testing::small_config;
using testing::TempDir;

// Sums of at most 40 products of values below 10, in fp32 on both sides.
constexpr double kTolerance = 2e-5;

void expect_near(const std::vector<float>& got, const std::vector<float>& expected,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], kTolerance) << what << " " << i;
  }
}

void expect_golden(const Transcoder& t, const std::string& name) {
  const std::vector<float> x = file_golden(name + ".x");
  const SparseRows z = t.encode(x);
  expect_near(dense(z, t.config.features), file_golden(name + ".features"), name + " features");
  std::vector<float> y(static_cast<std::size_t>(z.rows() * t.config.d_out));
  t.decode(z, x, y);
  expect_near(y, file_golden(name + ".y"), name + " reconstruction");
  // A golden without active features or with all of them would prove little.
  EXPECT_GT(z.value.size(), static_cast<std::size_t>(z.rows()));
  EXPECT_LT(z.value.size(), static_cast<std::size_t>(z.rows() * t.config.features * 3 / 4));
}

TEST(SaeLensFiles, ComputeWhatSaeLensComputes) {
  for (const char* name : {"standard", "jumprelu", "topk", "topk_rescaled", "transcoder",
                           "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
                           "batchtopk", "v5_standard", "v5_topk", "v2_standard"}) {
    const TranscoderSet set = TranscoderSet::open(kTranscoderGoldens / name);
    ASSERT_EQ(set.size(), 1U);
    EXPECT_EQ(set.config(0).name, name);
    EXPECT_EQ(set.config(0).model_id, "gpt2");
    EXPECT_EQ(set.config(0).d_in, 12);
    EXPECT_EQ(set.config(0).features, 40);
    const bool transcoder = std::string(name).ends_with("transcoder");
    EXPECT_EQ(dictionary_place_name(set.config(0).input),
              transcoder ? "blocks.1.ln2.hook_normalized" : "blocks.1.hook_resid_post");
    EXPECT_EQ(dictionary_place_name(set.config(0).output),
              transcoder ? "blocks.1.hook_mlp_out" : "blocks.1.hook_resid_post");
    expect_golden(set.load(0), name);
  }
}

TEST(SaeLensFiles, SayWhatTheModelWasLoadedWith) {
  const TranscoderSet set = TranscoderSet::open(kTranscoderGoldens / "v5_standard");
  ASSERT_EQ(set.origin(0).notes.size(), 1U);
  EXPECT_NE(set.origin(0).notes[0].find("center_writing_weights"), std::string::npos);
}

TEST(CircuitTracerFiles, ComputeWhatCircuitTracerComputes) {
  for (const auto& [name, layers] :
       {std::pair{"ct_relu", 2}, {"ct_jump_skip", 1}, {"ct_topk", 1}}) {
    const TranscoderSet set = TranscoderSet::open(kTranscoderGoldens / name);
    ASSERT_EQ(set.size(), static_cast<std::size_t>(layers)) << name;
    for (int l = 0; l < layers; ++l) {
      const TranscoderConfig& c = set.config(l);
      EXPECT_EQ(c.model_id, "openai-community/gpt2");
      EXPECT_EQ(c.input, (DictionaryPlace{{SiteKind::ln2_normalized, l}, true}));
      EXPECT_EQ(c.output, (DictionaryPlace{{SiteKind::mlp_out, l}, false}));
      expect_golden(set.load(l), std::string(name) + "." + std::to_string(l));
    }
  }
  // A single file finds the configuration beside it.
  const TranscoderSet one =
      TranscoderSet::open(kTranscoderGoldens / "ct_relu" / "layer_1.safetensors");
  ASSERT_EQ(one.size(), 1U);
  EXPECT_EQ(one.config(0).input.site.layer, 1);
  expect_golden(one.load(0), "ct_relu.1");
}

TEST(CrossLayerFiles, ComputeWhatCircuitTracerComputes) {
  const TranscoderSet set = TranscoderSet::open(kTranscoderGoldens / "clt");
  ASSERT_NE(set.cross_layer(), nullptr);
  EXPECT_EQ(set.size(), 0U);
  const CrossLayerTranscoder& clt = *set.cross_layer();
  ASSERT_EQ(clt.layers(), 3);
  EXPECT_EQ(clt.encoder(2).config.input, (DictionaryPlace{{SiteKind::resid_mid, 2}, false}));
  const std::vector<float> x = file_golden("clt.x"), features = file_golden("clt.features"),
                           y = file_golden("clt.y");
  const std::size_t per_layer = 7 * 12, features_per_layer = 7 * 40;
  std::vector<SparseRows> z;
  for (std::int64_t l = 0; l < 3; ++l) {
    z.push_back(clt.encoder(l).encode(std::span(x).subspan(l * per_layer, per_layer)));
    expect_near(dense(z.back(), 40),
                {features.begin() + l * features_per_layer,
                 features.begin() + (l + 1) * features_per_layer},
                "features");
  }
  for (std::int64_t l = 0; l < 3; ++l) {
    std::vector<float> out(per_layer);
    clt.decode(l, z, out);
    expect_near(out, {y.begin() + l * per_layer, y.begin() + (l + 1) * per_layer},
                "reconstruction");
  }
  std::vector<float> row(12);
  const std::int32_t beyond[] = {40};
  testing::expect_message(testing::error_of([&] { clt.decoder_rows(0, 1, beyond, row); }),
                          "feature 40, expected 0 to 39");
  EXPECT_THROW(clt.decoder_rows(1, 0, std::span(beyond, 0), {}), UsageError);
}

// Every kind of dictionary there is, with widths that differ where they may.
std::vector<Transcoder> all_kinds() {
  std::vector<Transcoder> all;
  for (FeatureActivation activation :
       {FeatureActivation::relu, FeatureActivation::topk, FeatureActivation::batch_topk,
        FeatureActivation::jump_relu}) {
    for (int kind = 0; kind < 4; ++kind) {
      TranscoderConfig c = small_config(activation);
      c.name = std::string(feature_activation_name(activation)) + std::to_string(kind);
      c.model_id = "tiny";
      c.subtract_decoder_bias = kind == 1;
      if (kind >= 2) {
        c.input = {{SiteKind::ln2_normalized, 1}, kind == 3};
        c.output = {{SiteKind::mlp_out, 1}, false};
        c.d_out = 10;
        c.skip = kind == 3;
      }
      all.push_back(random_transcoder(c, 100 + all.size()));
    }
  }
  return all;
}

TEST(SaeLensFiles, OfOursComeBackTheSame) {
  // make_file_goldens.py's counterpart check_ours.py has SAELens read this folder.
  const char* keep = std::getenv("LAMINA_WRITE_DICTIONARIES");
  TempDir temporary;
  const std::filesystem::path folder = keep != nullptr ? keep : temporary.path().c_str();
  for (const Transcoder& t : all_kinds()) {
    write_saelens(folder / t.config.name, t, {{"lamina_note", "test"}});
    const TranscoderSet set = TranscoderSet::open(folder / t.config.name);
    ASSERT_EQ(set.size(), 1U);
    EXPECT_EQ(set.config(0), t.config) << t.config.name;
    const Transcoder back = set.load(0);
    EXPECT_EQ(back.encoder, t.encoder);
    EXPECT_EQ(back.encoder_bias, t.encoder_bias);
    EXPECT_EQ(back.decoder, t.decoder);
    EXPECT_EQ(back.decoder_bias, t.decoder_bias);
    EXPECT_EQ(back.threshold, t.threshold);
    EXPECT_EQ(back.skip, t.skip);
    if (keep == nullptr) continue;
    const std::vector<float> x = random_values(5 * 12, 7);
    const SparseRows z = t.encode(x);
    const std::vector<float> features = dense(z, 40);
    std::vector<float> y(5 * static_cast<std::size_t>(t.config.d_out));
    t.decode(z, x, y);
    const F32Tensor tensors[] = {{"x", {5, 12}, x},
                                 {"features", {5, 40}, features},
                                 {"y", {5, static_cast<std::uint64_t>(t.config.d_out)}, y}};
    write_safetensors(folder / t.config.name / "values.safetensors", tensors);
  }
  // A folder of such folders is a set.
  EXPECT_EQ(TranscoderSet::open(folder).size(), 16U);
}

TEST(SaeLensFiles, FoldASubtractionThatSaeLensDoesNotKnow) {
  TranscoderConfig c = small_config(FeatureActivation::relu);
  c.input = {{SiteKind::ln2_normalized, 1}, false};
  c.output = {{SiteKind::mlp_out, 1}, false};
  c.subtract_decoder_bias = true;
  const Transcoder t = random_transcoder(c, 3);
  TempDir folder;
  write_saelens(folder.path() / "t", t);
  const Transcoder back = TranscoderSet::open(folder.path() / "t").load(0);
  EXPECT_FALSE(back.config.subtract_decoder_bias);
  EXPECT_EQ(back.encoder_bias, t.without_subtraction().encoder_bias);
}

TEST(CircuitTracerFiles, OfOursComeBackTheSame) {
  for (FeatureActivation activation :
       {FeatureActivation::relu, FeatureActivation::topk, FeatureActivation::jump_relu}) {
    for (bool skip : {false, true}) {
      std::vector<Transcoder> layers;
      for (std::int32_t l = 0; l < 2; ++l) {
        TranscoderConfig c = small_config(activation);
        c.name = "layer_" + std::to_string(l);
        c.model_id = "org/tiny";
        c.input = {{SiteKind::ln2_normalized, l}, true};
        c.output = {{SiteKind::mlp_out, l}, false};
        c.skip = skip;
        layers.push_back(random_transcoder(c, 50 + l));
      }
      TempDir folder;
      const Transcoder* both[] = {&layers[0], &layers[1]};
      write_circuit_tracer(folder.path(), both, "mine");
      const TranscoderSet set = TranscoderSet::open(folder.path());
      ASSERT_EQ(set.size(), 2U);
      for (std::size_t l = 0; l < 2; ++l) {
        EXPECT_EQ(set.config(l), layers[l].config);
        const Transcoder back = set.load(l);
        EXPECT_EQ(back.encoder, layers[l].encoder);
        EXPECT_EQ(back.decoder, layers[l].decoder);
        EXPECT_EQ(back.threshold, layers[l].threshold);
        EXPECT_EQ(back.skip, layers[l].skip);
      }
      layers[1].config.input.site.layer = 0;
      testing::expect_message(
          testing::error_of([&] { write_circuit_tracer(folder.path(), both, ""); }),
          "reads layer 0, a circuit-tracer folder needs layer 1 there");
    }
  }
}

TEST(SaeLensFiles, ScaleInputsByAFactorThatIsGiven) {
  TempDir folder;
  const Transcoder t = random_transcoder(small_config(FeatureActivation::relu), 3);
  write_saelens(folder.path() / "t", t);
  std::ifstream in(folder.path() / "t/cfg.json");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  text.replace(text.find("\"normalize_activations\": \"none\""), 31,
               "\"normalize_activations\": \"expected_average_only_in\"");
  std::ofstream(folder.path() / "t/cfg.json") << text;
  testing::expect_message(testing::error_of([&] { TranscoderSet::open(folder.path() / "t"); }),
                          "give it (--input-scale)");
  DictionaryReadOptions options;
  options.input_scale = 2;
  const Transcoder scaled = TranscoderSet::open(folder.path() / "t", options).load(0);
  std::vector<float> x = random_values(3 * 12, 5), doubled = x;
  for (float& v : doubled) v *= 2;
  const SparseRows z = scaled.encode(x), expected = t.encode(doubled);
  EXPECT_EQ(z.value, expected.value);  // a power of two: exact
  std::vector<float> y(36), y2(36);
  scaled.decode(z, x, y);
  t.decode(expected, doubled, y2);
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_FLOAT_EQ(y[i] * 2, y2[i]);
}

}  // namespace
}  // namespace lamina
