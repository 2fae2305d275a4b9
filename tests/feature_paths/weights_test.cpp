// Connections by weights: against a prompt's contributions, and the collected report.

#include <cmath>

#include "circuits/random_transcoders.h"
#include "gtest/gtest.h"
#include "lamina/circuits/paths.h"
#include "lamina/circuits/weight_report.h"
#include "lamina/core/error.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::RandomDictionary;

TEST(FeatureWeights, Hops) {
  EXPECT_EQ(parse_hop("3.57"), (Hop{false, 3, 57}));
  EXPECT_EQ(parse_hop("a12.h0"), (Hop{true, 12, 0}));
  for (const char* text : {"3.57", "a12.h0", "0.0"}) EXPECT_EQ(hop_name(parse_hop(text)), text);
  for (const char* text : {"", "3", "3.", ".3", "a3.2", "3.h2", "a.h", "3.57x", "-1.2", "3.-2",
                           "a3.h2.1", "99999999999.1"})
    EXPECT_THROW(parse_hop(text), UsageError) << text;
}

TEST(FeatureWeights, Extremes) {
  const std::vector<float> values = {1, -2, 5, 5, 0};
  const Extremes e = extremes(values, 2);
  ASSERT_EQ(e.top.size(), 2U);
  EXPECT_EQ(e.top[0].index, 2);
  EXPECT_EQ(e.top[1].index, 3);
  EXPECT_EQ(e.bottom[0].index, 1);
  EXPECT_EQ(e.bottom[0].value, -2);
  EXPECT_EQ(e.bottom[1].index, 4);
  EXPECT_EQ(extremes(values, 9).top.size(), 5U);
}

// A prompt's contribution is activation × gain by weights / denominators (× pattern): for every
// feature, directly and through one head, and for the token.
TEST(FeatureWeights, AreAPromptsContributionsWithoutTheDenominators) {
  for (const testing::TinyConfig& config : testing::varied_configs()) {
    if (!config.causal || config.norm_place == "post" || config.norm == "none") continue;
    const Model model = testing::tiny_model(config, 3);
    const ModelConfig& c = model.config();
    if (c.d_mlp == 0 || c.norm == NormKind::none) continue;
    std::vector<Transcoder> transcoders = testing::random_transcoders(c, {}, 11);
    for (Transcoder& t : transcoders) bind_dictionary(t.config, model, true);
    Forward forward(model);
    const auto ids = testing::random_prompts({5}, config.d_vocab, 5).front();
    const Replacement replacement(forward, transcoders, ids);
    const PathFinder finder(replacement);
    const std::int32_t at = 4;
    const Transcoder& target = transcoders[2];
    const StreamReader reader = feature_reader(model, target, 6);
    const PathCursor root = finder.feature(2, at, 6);
    EXPECT_EQ(root.reader.point, reader.point);
    const bool shared = target.config.input.site.kind == SiteKind::ln1_normalized;
    const double s2 =
        replacement.scale(shared ? SiteKind::ln1_scale : SiteKind::ln2_scale, 2)[std::size_t{at}];
    const std::vector<float> gains = feature_gains(model, transcoders[0], reader),
                             tokens = token_gains(model, reader);
    const auto parts = finder.contributions(std::span(&root, 1)).front();
    double magnitude = 0;
    for (const PathContribution& p : parts) magnitude += std::abs(p.value);
    int seen = 0;
    const auto compare = [&](const std::vector<PathContribution>& all, double factor,
                             const std::vector<float>& by_feature,
                             const std::vector<float>& by_token, std::int32_t position) {
      for (const PathContribution& p : all) {
        if (p.node.kind == PathNodeKind::token) {
          EXPECT_NEAR(p.value, by_token[static_cast<std::size_t>(p.node.index)] * factor,
                      2e-6 * magnitude)
              << config.label;
          ++seen;
        }
        if (p.node.kind != PathNodeKind::feature || p.node.layer != 0) continue;
        double z = 0;
        for (const ActiveFeature& f : replacement.features())
          if (f.layer == 0 && f.position == position && f.feature == p.node.index) z = f.activation;
        EXPECT_NEAR(p.value, z * by_feature[static_cast<std::size_t>(p.node.index)] * factor,
                    2e-6 * magnitude)
            << config.label;
        ++seen;
      }
    };
    compare(parts, 1 / s2, gains, tokens, at);
    for (const PathContribution& p : parts) {
      if (p.node.kind != PathNodeKind::head || p.node.layer != 1 || p.node.position != 1) continue;
      const StreamReader below = through_head(model, reader, 1, p.node.index);
      const PathCursor next = finder.follow(root, p);
      // Whatever the pattern and the denominators are, they are one factor.
      double factor = 0, most = 0;
      for (std::size_t i = 0; i < below.vector.size(); ++i) {
        if (std::abs(below.vector[i]) <= most) continue;
        most = std::abs(below.vector[i]);
        factor = next.reader.vector[i] / below.vector[i];
      }
      EXPECT_GT(factor, 0) << config.label;
      compare(finder.contributions(std::span(&next, 1)).front(), factor,
              feature_gains(model, transcoders[0], below), token_gains(model, below), 1);
    }
    EXPECT_GT(seen, 20) << config.label;
  }
}

TEST(FeatureWeights, RefusesWhatStandsBehind) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 3);
  const std::vector<Transcoder> t = testing::random_transcoders(model.config(), {}, 11);
  const StreamReader reader = feature_reader(model, t[1], 0);
  EXPECT_THROW(feature_reader(model, t[1], 64), UsageError);
  EXPECT_THROW(feature_gains(model, t[1], reader), UsageError);
  EXPECT_THROW(through_head(model, reader, 2, 0), UsageError);
  EXPECT_THROW(through_head(model, reader, 0, 4), UsageError);
  EXPECT_THROW(through_head(model, reader, -1, 0), UsageError);
  EXPECT_NO_THROW(through_head(model, reader, 1, 0));
  EXPECT_THROW(logit_reader(model, 61), Error);
  Transcoder other = t[1];
  other.config.input.site.kind = SiteKind::mlp_out;
  EXPECT_THROW(feature_reader(model, other, 0), UsageError);
}

TEST(FeatureWeights, ReportIsTheirCollection) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 3);
  const std::vector<Transcoder> t = testing::random_transcoders(model.config(), {}, 11);
  testing::TempDir folder;
  for (const Transcoder& one : t) write_saelens(folder.path() / one.config.name, one);
  const TranscoderSet set = TranscoderSet::open(folder.path());
  const Hop features[] = {{false, 2, 5}, {false, 0, 9}};
  WeightReportOptions options;
  options.top = 4;
  const WeightReport report = analyse_weights(model, set, features, options);
  ASSERT_EQ(report.features.size(), 2U);
  const FeatureConnections& f = report.features[0];
  EXPECT_EQ(f.direct.layers, (std::vector<std::int32_t>{0, 1}));
  const StreamReader reader = feature_reader(model, t[2], 5);
  const Extremes expected = extremes(feature_gains(model, t[1], reader), 4);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(f.direct.features[1].top[i].index, expected.top[i].index);
    EXPECT_EQ(f.direct.features[1].bottom[i].value, expected.bottom[i].value);
  }
  const auto top = f.direct.top(4);
  ASSERT_EQ(top.size(), 4U);
  for (std::size_t i = 1; i < 4; ++i) EXPECT_GE(top[i - 1].gain, top[i].gain);
  EXPECT_EQ(top[0].gain,
            std::max(f.direct.features[0].top[0].value, f.direct.features[1].top[0].value));
  ASSERT_EQ(f.heads.size(), 3U);
  for (std::size_t i = 1; i < 3; ++i) EXPECT_GE(f.heads[i - 1].norm, f.heads[i].norm);
  EXPECT_EQ(f.heads[0].connections.layers.size(), static_cast<std::size_t>(f.heads[0].layer));
  EXPECT_EQ(report.features[1].direct.layers.size(), 0U);
  // One head of layer 0 at least stands in front of a feature of layer 0.
  EXPECT_EQ(report.features[1].heads.size(), 3U);
  EXPECT_EQ(report.features[1].heads[0].layer, 0);

  // Pulled back through a feature: its own connections times the gain.
  options.pull_back = {{false, 1, 7}};
  const WeightReport back = analyse_weights(model, set, std::span(features, 1), options);
  EXPECT_EQ(back.features[0].direct.layers, (std::vector<std::int32_t>{0}));
  EXPECT_TRUE(back.features[0].logits.top.empty());
  const double gain = feature_gains(model, t[1], reader)[7];
  std::vector<float> scaled = token_gains(model, feature_reader(model, t[1], 7));
  for (float& v : scaled) v = static_cast<float>(v * gain);
  const Extremes tokens = extremes(scaled, 4);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(back.features[0].direct.tokens.top[i].index, tokens.top[i].index);
    EXPECT_NEAR(back.features[0].direct.tokens.top[i].value, tokens.top[i].value, 1e-6);
  }
  const Hop missing[] = {{false, 3, 0}}, head[] = {{true, 0, 0}};
  EXPECT_THROW(analyse_weights(model, set, missing, options), UsageError);
  EXPECT_THROW(analyse_weights(model, set, head, options), UsageError);
}

// Of a cross-layer transcoder's feature, all it writes in front of the reader counts.
TEST(FeatureWeights, AcrossLayers) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 4);
  testing::TempDir folder;
  testing::write_random_cross_layer(model.config(), 24, 2, folder.path());
  CrossLayerTranscoder clt(folder.path(), "", "hook_resid_mid", "hook_mlp_out");
  clt.bind(model, true);
  const StreamReader reader = feature_reader(model, clt.encoder(2), 3);
  const std::vector<float> gains = feature_gains(clt, 0, reader);
  const std::size_t d = static_cast<std::size_t>(model.config().d_model);
  std::vector<float> row(d);
  for (const std::int32_t f : {0, 11}) {
    double expected = 0;
    for (const std::int64_t target : {0, 1}) {
      clt.decoder_rows(0, target, std::span(&f, 1), row);
      for (std::size_t i = 0; i < d; ++i) expected += double{row[i]} * reader.vector[i];
    }
    EXPECT_NEAR(gains[static_cast<std::size_t>(f)], expected, 1e-5);
  }
  EXPECT_THROW(feature_gains(clt, 2, reader), UsageError);

  TranscoderSet set = TranscoderSet::open(
      folder.path(), {.input_hook = "hook_resid_mid", .output_hook = "hook_mlp_out"});
  set.bind(model, true);
  WeightReportOptions options;
  options.top = 3;
  const Hop feature[] = {{false, 2, 3}};
  const WeightReport report = analyse_weights(model, set, feature, options);
  EXPECT_EQ(report.features[0].direct.layers, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(report.features[0].direct.features[0].top[0].index, extremes(gains, 1).top[0].index);
  // What a feature writes to all layers is what moves the logits.
  const Hop early[] = {{false, 0, 7}};
  std::vector<float> sum(d);
  for (const std::int64_t target : {0, 1, 2}) {
    const std::int32_t id = 7;
    clt.decoder_rows(0, target, std::span(&id, 1), row);
    for (std::size_t i = 0; i < d; ++i) sum[i] += row[i];
  }
  EXPECT_EQ(analyse_weights(model, set, early, options).features[0].logits.top[0].index,
            extremes(logit_gains(model, sum), 1).top[0].index);
}

// An autoencoder of the residual stream reads it as it is.
TEST(FeatureWeights, AutoencodersOfTheStream) {
  testing::TinyConfig config;
  config.norm = "layer";
  const Model model = testing::tiny_model(config, 4);
  Transcoder sae = testing::random_transcoder(model.config(), 1, {}, 3);
  sae.config.input = sae.config.output = {{SiteKind::resid_post, 1}, false};
  const StreamReader reader = feature_reader(model, sae, 2);
  EXPECT_EQ(reader.point, 4);
  const std::size_t d = reader.vector.size();
  EXPECT_TRUE(std::equal(reader.vector.begin(), reader.vector.end(),
                         sae.encoder.begin() + static_cast<std::ptrdiff_t>(2 * d)));
  EXPECT_EQ(writing_point(sae.config, model.config()), 4);
  // A norm in between lets no mean through.
  const StreamReader behind =
      feature_reader(model, testing::random_transcoder(model.config(), 2, {}, 3), 2);
  double mean = 0;
  for (const float x : behind.vector) mean += x;
  EXPECT_NEAR(mean, 0, 1e-6);
}

}  // namespace
}  // namespace lamina
