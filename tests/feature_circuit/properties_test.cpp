// What must hold for every model and dictionary.

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <numeric>

#include "circuits/random_transcoders.h"
#include "lamina/circuits/feature_circuit.h"
#include "lamina/core/error.h"
#include "patching/support.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;

Transcoder autoencoder(const ModelConfig& model, SiteKind kind, std::int32_t layer,
                       FeatureActivation activation = FeatureActivation::relu) {
  Transcoder t = testing::random_transcoder(
      model, layer,
      {.input = kind, .norm_weights = false, .activation = activation, .features = 40},
      17 + static_cast<std::uint64_t>(kind));
  t.config.name = site_name({kind, layer});
  t.config.output = t.config.input;
  return t;
}

class FeatureCircuitProperties : public ::testing::TestWithParam<testing::TinyConfig> {
 protected:
  FeatureCircuitProperties() : model_(testing::tiny_model(GetParam(), 3)), forward_(model_) {
    const ModelConfig& c = model_.config();
    for (std::int32_t l = 0; l < c.n_layers; ++l) {
      dictionaries_.push_back(autoencoder(c, SiteKind::attn_out, l, FeatureActivation::jump_relu));
      dictionaries_.push_back(autoencoder(c, SiteKind::mlp_out, l, FeatureActivation::topk));
      dictionaries_.push_back(autoencoder(c, SiteKind::resid_post, l));
    }
    const std::vector<std::int64_t> lengths = {5, 8, 6, 5};
    const auto clean = testing::random_prompts(lengths, c.d_vocab, 1);
    const auto corrupted = testing::random_prompts(lengths, c.d_vocab, 2);
    for (std::size_t i = 0; i < clean.size(); ++i) {
      Pair pair;
      pair.id = std::to_string(i);
      pair.clean = clean[i];
      pair.corrupted = corrupted[i];
      pair.correct = {3};
      pair.wrong = {7};
      pairs_.push_back(pair);
    }
    metric_.emplace(MetricKind::logit_diff, pairs_, c.d_vocab);
  }
  FeatureStudy study() { return {forward_, dictionaries_, pairs_, *metric_}; }

  Model model_;
  Forward forward_;
  std::vector<Transcoder> dictionaries_;
  std::vector<Pair> pairs_;
  std::optional<Metric> metric_;
};

// The whole circuit is the model, an empty one with the pair's values the corrupted run, bit for
// bit; a circuit of all nodes that differ is the model too.
TEST_P(FeatureCircuitProperties, TheEndsOfTheScale) {
  const FeatureEffects effects = feature_effects(study(), {.methods = {FeatureMethod::atp}});
  for (const FeatureBaseline baseline : {FeatureBaseline::pair, FeatureBaseline::mean}) {
    const FeatureCircuit circuits[] = {{.nodes = {}, .complement = true},
                                       {.nodes = {}, .complement = false},
                                       {.nodes = effects.nodes, .complement = false},
                                       {.nodes = effects.nodes, .complement = true}};
    const std::vector<double> metric =
        run_feature_circuits(study(), circuits, {.baseline = baseline});
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      EXPECT_EQ(metric[p], effects.clean[p]);
      if (baseline != FeatureBaseline::pair) continue;
      EXPECT_EQ(metric[pairs_.size() + p], effects.corrupted[p]);
      EXPECT_NEAR(metric[2 * pairs_.size() + p], effects.clean[p], 1e-5);
      EXPECT_NEAR(metric[3 * pairs_.size() + p], effects.corrupted[p], 1e-5);
    }
  }
}

TEST_P(FeatureCircuitProperties, FaithfulnessAtTheEndsOfASweep) {
  const FeatureEffects effects = feature_effects(study(), {});
  const std::int64_t all = std::ssize(effects.nodes);
  const std::vector<double> thresholds = {1e9};
  const std::vector<std::int64_t> counts = {0, 7, all};
  const FeatureSweep sweep =
      sweep_feature_circuits(study(), effects, thresholds, counts, ErrorNodes::ranked,
                             {.baseline = FeatureBaseline::pair});
  for (std::size_t m = 0; m < 3; ++m) {
    const FeatureCircuitPoint *none = &sweep.by_threshold[m], *zero = &sweep.by_count[3 * m],
                              *some = zero + 1, *whole = zero + 2;
    EXPECT_EQ(none->nodes, 0);
    for (const FeatureCircuitPoint* empty : {none, zero}) {
      EXPECT_EQ(empty->faithfulness, 0.0);
      EXPECT_EQ(empty->completeness, 1.0);
    }
    EXPECT_EQ(some->nodes, 7);
    EXPECT_EQ(whole->nodes, all);
    EXPECT_EQ(whole->errors, static_cast<std::int64_t>(dictionaries_.size()));
    EXPECT_NEAR(whole->faithfulness, 1.0, 1e-5);
    EXPECT_NEAR(whole->completeness, 0.0, 1e-5);
  }
}

// What all nodes of a residual stream do together is what the pair does, as steps grow.
TEST_P(FeatureCircuitProperties, IntegratedGradientsAddUp) {
  const std::vector<Transcoder> one = {
      autoencoder(model_.config(), SiteKind::resid_post, 1, FeatureActivation::topk)};
  const FeatureEffects effects = feature_effects({forward_, one, pairs_, *metric_},
                                                 {.methods = {FeatureMethod::ig}, .ig_steps = 400});
  const auto mean = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
  };
  const double sum = std::accumulate(effects.effects.begin(), effects.effects.end(), 0.0);
  const double whole = mean(effects.clean) - mean(effects.corrupted);
  EXPECT_NEAR(sum, whole, 0.02 * (1 + std::abs(whole)));
  EXPECT_GT(std::abs(whole), 0.05);
}

TEST_P(FeatureCircuitProperties, IndependentOfBatchesAndThreads) {
  FeatureEffectOptions options{.baseline = FeatureBaseline::mean, .by_position = true};
  options.batch_tokens = 1;
  FeatureRunOptions run{.batch_tokens = 1};
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const FeatureEffects apart = feature_effects(study(), options);
  const std::vector<FeatureCircuit> circuits = {{largest_nodes(apart, 1, 60)},
                                                {largest_nodes(apart, 2, 60), true}};
  const std::vector<FeatureNode> some(apart.nodes.begin(), apart.nodes.begin() + 50);
  const std::vector<double> metric = run_feature_circuits(study(), circuits, run),
                            exact = exact_feature_effects(study(), some, run);
  omp_set_num_threads(3);
  options.batch_tokens = run.batch_tokens = 10000;
  const FeatureEffects together = feature_effects(study(), options);
  EXPECT_EQ(apart.nodes, together.nodes);
  EXPECT_EQ(apart.effects, together.effects);
  EXPECT_EQ(metric, run_feature_circuits(study(), circuits, run));
  EXPECT_EQ(exact, exact_feature_effects(study(), some, run));
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(
    Models, FeatureCircuitProperties,
    ::testing::Values(testing::TinyConfig{.label = "gated"},
                      testing::TinyConfig{.label = "sandwich", .norm_place = "sandwich"},
                      testing::TinyConfig{.label = "parallel", .parallel = true}),
    [](const auto& model) { return model.param.label; });

// Nothing stands between the site and the logits but the unembedding: every estimate is exact.
TEST(FeatureCircuit, ExactWhereTheModelIsLinear) {
  const Model model = testing::tiny_model({.label = "linear", .final_norm = false}, 4);
  Forward forward(model);
  const std::vector<Transcoder> dictionaries = {
      autoencoder(model.config(), SiteKind::resid_post,
                  static_cast<std::int32_t>(model.config().n_layers) - 1)};
  Pair pair;
  pair.id = "p";
  pair.clean = testing::random_prompts({6}, 61, 5)[0];
  pair.corrupted = testing::random_prompts({6}, 61, 6)[0];
  pair.correct = {3};
  pair.wrong = {7};
  const std::vector<Pair> pairs = {pair};
  const Metric metric(MetricKind::logit_diff, pairs, model.config().d_vocab);
  const FeatureStudy study{forward, dictionaries, pairs, metric};
  for (const FeatureBaseline baseline : {FeatureBaseline::pair, FeatureBaseline::zero}) {
    const FeatureEffects effects = feature_effects(study, {.baseline = baseline});
    const std::vector<double> exact =
        exact_feature_effects(study, effects.nodes, {.baseline = baseline});
    double largest = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      largest = std::max(largest, std::abs(exact[i]));
      for (std::size_t m = 0; m < 3; ++m) EXPECT_NEAR(effects.of(m)[i], exact[i], 1e-5);
    }
    EXPECT_GT(largest, 0.01);
  }
}

TEST(FeatureCircuit, Names) {
  const Model model = testing::tiny_model({.label = "tiny"}, 1);
  const std::vector<Transcoder> one = {autoencoder(model.config(), SiteKind::mlp_out, 2)};
  EXPECT_EQ(feature_node_name({.dictionary = 0, .feature = 17}, one), "blocks.2.hook_mlp_out/17");
  EXPECT_EQ(feature_node_name({.dictionary = 0, .position = -3}, one),
            "blocks.2.hook_mlp_out/error@-3");
}

TEST(FeatureCircuit, WhatIsRefused) {
  const Model model = testing::tiny_model({.label = "tiny"}, 1);
  Forward forward(model);
  Pair pair;
  pair.id = "p";
  pair.clean = pair.corrupted = {1, 2, 3};
  pair.correct = {3};
  pair.wrong = {7};
  const std::vector<Pair> pairs = {pair};
  const Metric metric(MetricKind::logit_diff, pairs, model.config().d_vocab);
  const auto message = [&](const std::vector<Transcoder>& dictionaries) {
    return message_of<UsageError>([&] {
      check_feature_study({forward, dictionaries, pairs, metric});
    });
  };
  const auto of = [&](SiteKind kind) { return autoencoder(model.config(), kind, 1); };
  expect_message(message({}), "at least one dictionary");
  expect_message(message({of(SiteKind::mlp_out), of(SiteKind::mlp_out)}), "two dictionaries",
                 "blocks.1.hook_mlp_out");
  Transcoder skip = of(SiteKind::mlp_out);
  skip.config.skip = true;
  expect_message(message({skip}), "skip transcoder");
  Transcoder late = of(SiteKind::mlp_out);
  late.config.input.site.kind = SiteKind::resid_post;
  expect_message(message({late}), "reads blocks.1.hook_resid_post, which comes after");
  Transcoder wide = of(SiteKind::mlp_out);
  wide.config.d_out = 23;
  expect_message(message({wide}), "rebuilds 23 values", "has 24");
  Transcoder weighted = of(SiteKind::ln2_normalized);
  weighted.config.input.norm_weights = weighted.config.output.norm_weights = true;
  expect_message(message({weighted}), "norm's weights");
  Transcoder deep = of(SiteKind::mlp_out);
  deep.config.output.site.layer = deep.config.input.site.layer = 9;
  expect_message(message({deep}), "has no blocks.9.hook_mlp_out");

  const std::vector<Transcoder> good = {of(SiteKind::mlp_out)};
  const FeatureStudy study{forward, good, pairs, metric};
  const auto run = [&](std::vector<FeatureNode> nodes) {
    const FeatureCircuit circuits[] = {{.nodes = std::move(nodes)}};
    return message_of<UsageError>([&] { run_feature_circuits(study, circuits); });
  };
  expect_message(run({{.dictionary = 3}}), "dictionary 3", "there are 1");
  expect_message(run({{.dictionary = 0, .feature = 40}}), "feature 40", "it has 40");
  expect_message(run({{.dictionary = 0, .position = -1}, {.dictionary = 0}}),
                 "some nodes have a position");
  expect_message(message_of<UsageError>([&] { parse_feature_method("eap"); }), "'eap'",
                 "atp, ig, relp");
}

}  // namespace
}  // namespace lamina
