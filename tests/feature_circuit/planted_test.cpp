// A planted model with perfect dictionaries: the nodes with effects are the planted features.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/circuits/feature_circuit.h"
#include "lamina/patching/faithfulness.h"

namespace lamina {
namespace {

// Features ±e_i at one site: every value of the stream has a feature of its own, without error.
Transcoder slots(const ModelConfig& model, Site site) {
  Transcoder t;
  const auto d = static_cast<std::size_t>(model.d_model);
  t.config.name = site_name(site);
  t.config.input = t.config.output = {site, false};
  t.config.d_in = t.config.d_out = model.d_model;
  t.config.features = 2 * model.d_model;
  t.encoder.resize(2 * d * d);
  t.encoder_bias.resize(2 * d);
  t.decoder_bias.resize(d);
  for (std::size_t i = 0; i < d; ++i) {
    t.encoder[i * d + i] = 1;
    t.encoder[(d + i) * d + i] = -1;
  }
  t.decoder = t.encoder;
  return t;
}

class PlantedFeatures : public ::testing::Test {
 protected:
  PlantedFeatures()
      : model_(Model::load(LAMINA_SOURCE_DIR "/data/planted/majority")),
        forward_(model_),
        pairs_(read_pairs(LAMINA_SOURCE_DIR "/data/planted/majority/pairs.jsonl",
                          model_.tokenizer(), model_.config().d_vocab)),
        metric_(MetricKind::logit_diff, pairs_, model_.config().d_vocab) {
    std::ifstream file(LAMINA_SOURCE_DIR "/data/planted/majority/circuit.json");
    parts_ = nlohmann::json::parse(file)["residual_parts"];
    for (std::int32_t l = 0; l < 2; ++l)
      for (const SiteKind kind : {SiteKind::attn_out, SiteKind::mlp_out, SiteKind::resid_post})
        dictionaries_.push_back(slots(model_.config(), {kind, l}));
  }

  // What programs.py planted: the heads of layer 0 write `balance` and `first`, the MLP reads them
  // and writes `out`, the logits read `out` at the last position. Everything else moves no logit.
  // The two prompts of a pair begin with the same letter: no comparison of them can show `first`.
  bool planted(const FeatureNode& node, FeatureBaseline baseline) const {
    if (node.feature == kErrorNode || node.position != -1) return false;
    const std::int64_t slot = node.feature % model_.config().d_model;
    const auto in = [&](const char* part) {
      return slot >= parts_[part][0].get<std::int64_t>() &&
             slot < parts_[part][1].get<std::int64_t>();
    };
    const Site site = dictionaries_[static_cast<std::size_t>(node.dictionary)].config.output.site;
    if (site == Site{SiteKind::attn_out, 0}) {
      return in("balance") || (in("first") && baseline != FeatureBaseline::pair);
    }
    if (site == Site{SiteKind::mlp_out, 0}) return in("out");
    return site.kind == SiteKind::resid_post && in("out");
  }

  Model model_;
  Forward forward_;
  std::vector<Pair> pairs_;
  Metric metric_;
  nlohmann::json parts_;
  std::vector<Transcoder> dictionaries_;
};

TEST_F(PlantedFeatures, TheEffectsFindThem) {
  const FeatureStudy study{forward_, dictionaries_, pairs_, metric_};
  for (const FeatureBaseline baseline : {FeatureBaseline::pair, FeatureBaseline::zero}) {
    const FeatureEffects effects =
        feature_effects(study, {.baseline = baseline, .by_position = true});
    std::vector<std::uint8_t> known;
    std::int64_t count = 0;
    for (const FeatureNode& node : effects.nodes) {
      known.push_back(planted(node, baseline) ? 1 : 0);
      count += known.back();
    }
    EXPECT_GT(count, 20);
    EXPECT_GT(std::ssize(known) - count, 40);  // there is something to tell them from
    for (std::size_t m = 0; m < 3; ++m) {
      EXPECT_DOUBLE_EQ(auroc(effects.of(m), known), 1.0)
          << feature_baseline_name(baseline) << " "
          << feature_method_name(effects.options.methods[m]);
    }
    const std::vector<double> exact =
        exact_feature_effects(study, effects.nodes, {.baseline = baseline});
    EXPECT_DOUBLE_EQ(auroc(exact, known), 1.0) << feature_baseline_name(baseline);
  }
}

// The planted features alone do what the model does; without them nothing is left.
TEST_F(PlantedFeatures, TheirCircuitIsFaithfulAndComplete) {
  const FeatureStudy study{forward_, dictionaries_, pairs_, metric_};
  const FeatureEffects effects = feature_effects(study, {.by_position = true});
  std::int64_t count = 0;
  for (const FeatureNode& node : effects.nodes)
    count += planted(node, FeatureBaseline::pair) ? 1 : 0;
  const FeatureSweep sweep =
      sweep_feature_circuits(study, effects, {}, std::span(&count, 1), ErrorNodes::ranked,
                             {.baseline = FeatureBaseline::pair});
  EXPECT_GT(sweep.full - sweep.empty, 1.0);
  for (const FeatureCircuitPoint& point : sweep.by_count) {
    EXPECT_NEAR(point.faithfulness, 1.0, 1e-5);
    EXPECT_NEAR(point.completeness, 0.0, 1e-5);
  }
}

}  // namespace
}  // namespace lamina
