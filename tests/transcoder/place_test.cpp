#include <gtest/gtest.h>

#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/forward.h"
#include "support/tiny_model.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::expect_message;
using testing::tiny_model;
using testing::TinyConfig;

TEST(Place, NamesAreThoseOfTheFieldsPrograms) {
  const auto expect = [](const char* name, std::int32_t layer, Site site, bool weights) {
    EXPECT_EQ(parse_dictionary_place(name, layer), (DictionaryPlace{site, weights})) << name;
  };
  expect("blocks.3.ln2.hook_normalized", -1, {SiteKind::ln2_normalized, 3}, false);
  expect("blocks.3.ln2.hook_normalized·w", -1, {SiteKind::ln2_normalized, 3}, true);
  expect("blocks.12.mlp.hook_in", -1, {SiteKind::ln2_normalized, 12}, true);
  expect("mlp.hook_in", 4, {SiteKind::ln2_normalized, 4}, true);
  expect("mlp.hook_out", 4, {SiteKind::mlp_out, 4}, false);
  expect("hook_resid_mid", 0, {SiteKind::resid_mid, 0}, false);
  expect("blocks.5.attn.hook_z", 2, {SiteKind::z, 5}, false);
  expect("hook_embed", -1, {SiteKind::embed, -1}, false);
  for (std::int32_t layer : {0, 7}) {  // names are read as they are written
    for (bool weights : {false, true}) {
      const DictionaryPlace place{{SiteKind::ln1_normalized, layer}, weights};
      EXPECT_EQ(parse_dictionary_place(dictionary_place_name(place)), place);
    }
  }
  for (const char* name : {"", "blocks.1", "blocks.-1.hook_resid_pre", "blocks.1.hook_nothing",
                           "hook_resid_mid", "blocks.1.hook_embed", "blocks.99999999999.hook_z",
                           "blocks.1x.hook_resid_pre", "mlp.hook_in"}) {
    expect_message(error_of([&] { parse_dictionary_place(name); }), "no place that a dictionary");
  }
}

TEST(Place, NormWeightsAndBiasMakeWhatTheMlpReads) {
  TinyConfig tiny;
  tiny.label = "layer norm";
  tiny.norm = "layer";
  tiny.gated = false;
  tiny.act = "gelu";
  const Model model = tiny_model(tiny);
  const std::int64_t d = model.config().d_model, m = model.config().d_mlp;
  std::vector<float> bias(d);
  model.norm_bias(SiteKind::ln2_normalized, 1, bias);
  EXPECT_NE(bias, std::vector<float>(d)) << "the test model's norms have no bias";
  Forward forward(model);
  Batch batch;
  batch.add(testing::random_prompts({9}, tiny.d_vocab, 3)[0]);
  Hooks hooks;
  std::vector<float> x, pre;
  hooks.read({SiteKind::ln2_normalized, 1},
             [&](SiteView& view) { x.assign(view.values.begin(), view.values.end()); });
  hooks.read({SiteKind::mlp_pre, 1},
             [&](SiteView& view) { pre.assign(view.values.begin(), view.values.end()); });
  forward.run(batch, hooks);
  apply_place(model, {{SiteKind::ln2_normalized, 1}, true}, x);
  std::vector<float> w(m * d);
  model.matrix_rows("1.in", 0, m, w);
  for (std::int64_t r = 0; r < 9; ++r) {
    for (std::int64_t j = 0; j < m; ++j) {
      double sum = 0;
      for (std::int64_t i = 0; i < d; ++i) sum += double{w[j * d + i]} * x[r * d + i];
      ASSERT_NEAR(pre[r * m + j], sum, 2e-5) << r << " " << j;
    }
  }
  EXPECT_THROW(apply_place(model, {{SiteKind::resid_post, 1}, true}, x), UsageError);
}

TEST(Place, ADictionaryOfAnotherModelIsRefusedWithBothValues) {
  TinyConfig tiny;
  tiny.label = "tiny";
  const Model model = tiny_model(tiny);
  TranscoderConfig c = testing::small_config(FeatureActivation::relu);
  c.d_in = c.d_out = 24;
  TranscoderConfig good = c;
  bind_dictionary(good, model);
  EXPECT_EQ(good, c);
  const auto refuses = [&](const TranscoderConfig& config, const std::string& part) {
    expect_message(error_of([&] {
                     TranscoderConfig copy = config;
                     bind_dictionary(copy, model);
                   }),
                   part);
  };
  TranscoderConfig bad = c;
  bad.model_id = "org/Other";
  refuses(bad,
          fmt::format("small: it was trained on model 'org/Other', this one is '{}'", model.id()));
  bind_dictionary(bad, model, /*other_model=*/true);
  bad = c;
  bad.model_id = "Org/" + model.id();
  bind_dictionary(bad, model);
  bad = c;
  bad.input.site.layer = bad.output.site.layer = 3;
  refuses(bad, "it reads blocks.3.hook_resid_post, but model");
  refuses(bad, "has 3 layers");
  bad = c;
  bad.d_in = 12;
  refuses(bad, "it reads 12 values at blocks.1.hook_resid_post, model");
  refuses(bad, "has 24 there");
  bad = c;
  bad.output = {{SiteKind::mlp_out, 1}, false};
  bad.d_out = 20;
  refuses(bad, "it rebuilds 20 values at blocks.1.hook_mlp_out");
  bad = c;
  bad.input = {{SiteKind::ln1_post_normalized, 1}, false};
  refuses(bad, "which model");
  bad = c;
  bad.input = {{SiteKind::pattern, 1}, false};
  refuses(bad, "it reads 24 values at blocks.1.attn.hook_pattern");
  bad = c;
  bad.output = {{SiteKind::ln2_normalized, 1}, true};
  refuses(bad, "what follows a norm's weights cannot be replaced at a site");
}

TEST(Place, ASharedNormIsNamedAsTheModelNamesIt) {
  for (const TinyConfig& tiny : testing::varied_configs()) {
    const Model model = tiny_model(tiny);
    if (!model.config().shared_parallel_norm) continue;
    TranscoderConfig c = testing::small_config(FeatureActivation::relu);
    c.d_in = c.d_out = model.config().d_model;
    c.input = {{SiteKind::ln2_normalized, 0}, true};
    c.output = {{SiteKind::mlp_out, 0}, false};
    bind_dictionary(c, model);
    EXPECT_EQ(c.input.site.kind, SiteKind::ln1_normalized);
  }
}

}  // namespace
}  // namespace lamina
