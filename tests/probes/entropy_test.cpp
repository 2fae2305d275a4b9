// Attention statistics, massive activations and output logits against transformers and numpy in
// double precision (make_entropy_goldens.py), and on made-up blocks.

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "attention/attention_row.h"
#include "lamina/core/error.h"
#include "lamina/core/model.h"
#include "lamina/probes/attention_stats.h"
#include "lamina/probes/massive.h"
#include "lamina/probes/output_stats.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kTests = fs::path(LAMINA_SOURCE_DIR) / "tests";
// Scores and weights are fp32 numbers of magnitude up to some 20.
constexpr double kTolerance = 2e-5;
// Shares are counts over counts; entropy.json has ten digits of them.
constexpr double kRounded = 1e-10;

const Json& goldens() {
  static const Json json = Json::parse(std::ifstream(kTests / "probes" / "entropy.json"));
  return json;
}

std::vector<Prompt> golden_prompts() {
  std::vector<Prompt> prompts;
  for (const auto& ids : goldens()["prompts"]) {
    Prompt prompt;
    prompt.id = std::to_string(prompts.size());
    prompt.ids = ids.get<std::vector<std::int32_t>>();
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

AttentionOptions golden_options() {
  const Json& o = goldens()["options"];
  AttentionOptions options;
  options.collapse = o["collapse"];
  options.overload = o["overload"];
  options.first_keys = o["first_keys"];
  options.key_queries = o["key_queries"];
  options.strongest = o["strongest"];
  return options;
}

MassiveOptions massive_options() {
  MassiveOptions options;
  options.least = goldens()["options"]["least"];
  options.ratio = goldens()["options"]["ratio"];
  return options;
}

void expect_value(double got, const Json& want, double tolerance, const std::string& what) {
  if (want.is_null()) {
    EXPECT_TRUE(std::isnan(got)) << what << " " << got;
  } else {
    EXPECT_NEAR(got, want.get<double>(), tolerance * std::max(1.0, std::abs(want.get<double>())))
        << what;
  }
}

void expect_spread(const Moments& m, const Json& want, const std::string& what) {
  const double got[] = {m.mean(), std::sqrt(m.variance()), m.lowest(), m.highest()};
  for (std::size_t i = 0; i < 4; ++i) expect_value(got[i], want[i], kTolerance, what);
}

class Golden : public testing::TestWithParam<int> {
 protected:
  Golden()
      : model_(Model::load(kTests / "goldens" / golden()["model"].get<std::string>())),
        forward_(model_) {}
  const Json& golden() const { return goldens()["cases"][static_cast<std::size_t>(GetParam())]; }
  const ModelConfig& config() const { return model_.config(); }
  void run(Probe& probe, std::int64_t batch_tokens = 1024) {
    run(probe, golden_prompts(), batch_tokens);
  }
  void run(Probe& probe, const std::vector<Prompt>& prompts, std::int64_t batch_tokens) {
    Probe* const probes[] = {&probe};
    LiveOptions options;
    options.batch_tokens = batch_tokens;
    run_probes(probes, forward_, prompts, options);
  }
  AttentionResults attention(AttentionSource source, std::int64_t batch_tokens = 1024) {
    AttentionOptions options = golden_options();
    options.source = source;
    AttentionProbe probe(config(), options);
    run(probe, batch_tokens);
    return probe.results();
  }

  Model model_;
  Forward forward_;
};

TEST_P(Golden, HeadsAreThoseOfTheReference) {
  for (const AttentionSource source :
       {AttentionSource::queries_keys, AttentionSource::scores, AttentionSource::pattern}) {
    const AttentionResults r = attention(source);
    const Json& layers = golden()["heads"];
    ASSERT_EQ(static_cast<std::size_t>(r.layers), layers.size());
    for (std::int64_t l = 0; l < r.layers; ++l) {
      for (std::int64_t h = 0; h < r.heads; ++h) {
        const Json& want = layers[static_cast<std::size_t>(l)][static_cast<std::size_t>(h)];
        const HeadStats& head = r.at(l, h);
        const std::string what = fmt::format("{} {} {}.{} ", golden()["model"].get<std::string>(),
                                             attention_source_name(source), l, h);
        expect_spread(head.entropy, want["entropy"], what + "entropy");
        expect_spread(head.normalized, want["normalized"], what + "normalized");
        EXPECT_EQ(head.entropy.count, want["queries"][0]) << what;
        EXPECT_EQ(head.normalized.count, want["queries"][1]) << what;
        expect_value(head.collapsed_share(), want["collapsed"], kRounded, what + "collapsed");
        expect_value(head.overloaded_share(), want["overloaded"], kRounded, what + "overloaded");
        expect_value(head.sink.mean(), want["sink"], kTolerance, what + "sink");
        expect_value(static_cast<double>(head.sink_top) / static_cast<double>(head.sink.count),
                     want["sink_top"], kRounded, what + "sink_top");
        expect_value(head.previous.mean(), want["previous"], kTolerance, what + "previous");
        expect_value(head.self.mean(), want["self"], kTolerance, what + "self");
        expect_value(head.duplicate.mean(), want["duplicate"], kTolerance, what + "duplicate");
        expect_value(head.induction.mean(), want["induction"], kTolerance, what + "induction");
        for (std::size_t k = 0; k < head.key_sum.size(); ++k) {
          expect_value(head.key_sum[k] / static_cast<double>(head.key_seen[k]), want["keys"][k],
                       kTolerance, what + "key");
        }
        for (std::size_t b = 0; b < head.bins.size(); ++b) {
          const Json& bin = want["bins"][b];
          expect_value(head.bins[b].entropy.mean(), bin[0], kTolerance, what + "bin");
          expect_value(head.bins[b].normalized.mean(), bin[1], kTolerance, what + "bin");
          EXPECT_EQ(head.bins[b].entropy.count, bin[2]) << what;
        }
        if (source == AttentionSource::pattern) {
          EXPECT_TRUE(std::isnan(head.logit_mean())) << what;
        } else {
          expect_value(head.logit_mean(), want["logits"][0], kTolerance, what + "logit mean");
          expect_value(head.logit_max, want["logits"][1], kTolerance, what + "logit max");
          EXPECT_EQ(head.logits, want["logits"][2]) << what;
        }
      }
    }
    const Json& strong = golden()["strong"];
    ASSERT_EQ(r.strong_keys.size(), strong.size());
    for (std::size_t i = 0; i < strong.size(); ++i) {
      expect_value(r.strong_keys[i].share, strong[i][0], kTolerance, "strong key");
      EXPECT_EQ(r.strong_keys[i].prompt_id, std::to_string(strong[i][1].get<int>()));
      EXPECT_EQ(r.strong_keys[i].position, strong[i][2]);
      EXPECT_EQ(r.strong_keys[i].token_id, strong[i][3]);
    }
  }
}

TEST_P(Golden, MassiveActivationsAreThoseOfTheReference) {
  MassiveProbe probe(config(), massive_options());
  run(probe, 20);
  const MassiveResults& r = probe.results();
  const Json& want = golden()["massive"];
  ASSERT_EQ(r.listed.size(), want.size());
  std::vector<std::int64_t> count(static_cast<std::size_t>(r.layers));
  for (std::size_t i = 0; i < want.size(); ++i) {
    const MassiveActivation& a = r.listed[i];
    EXPECT_NEAR(double{a.value}, want[i][0].get<double>(), 1e-4);
    EXPECT_EQ(a.layer, want[i][1]);
    EXPECT_EQ(a.dimension, want[i][2]);
    EXPECT_EQ(a.prompt_id, std::to_string(want[i][3].get<int>()));
    EXPECT_EQ(a.position, want[i][4]);
    EXPECT_EQ(a.token_id, want[i][5]);
    ++count[static_cast<std::size_t>(a.layer)];
  }
  for (std::size_t l = 0; l < r.layer.size(); ++l) {
    expect_value(r.layer[l].median.mean(), golden()["medians"][l], kTolerance, "median");
    EXPECT_EQ(r.layer[l].count, count[l]);
  }
}

TEST_P(Golden, OutputIsThatOfTheReference) {
  const std::unique_ptr<Readout> readout = model_readout(forward_);
  OutputProbe probe(config(), *readout);
  run(probe, 20);
  const OutputResults& r = probe.results();
  expect_spread(r.log_z, golden()["output"][0], "log Z");
  expect_spread(r.entropy, golden()["output"][1], "entropy");
  expect_spread(r.top, golden()["output"][2], "top");
  expect_spread(r.logit, golden()["output"][3], "logit");

  OutputStatsOptions third;
  third.every = 3;
  OutputProbe sampled(config(), *readout, third);
  run(sampled);
  std::int64_t rows = 0;
  for (const Prompt& p : golden_prompts())
    rows += (static_cast<std::int64_t>(p.ids.size()) + 2) / 3;
  EXPECT_EQ(sampled.results().tokens, rows);
  EXPECT_GE(sampled.results().log_z.min, r.log_z.min);
}

// Scores are those of the pass, bit for bit, so everything made from them is.
TEST_P(Golden, QueriesAndKeysGiveTheBitsOfTheScores) {
  AttentionResults made = attention(AttentionSource::queries_keys);
  const AttentionResults hooked = attention(AttentionSource::scores);
  for (HeadStats& head : made.head) {
    EXPECT_GT(head.query_norm.min, 0);
    EXPECT_EQ(head.key_norm.count, made.tokens);
    head.query_norm = head.key_norm = {};
  }
  EXPECT_TRUE(made == hooked);
}

TEST_P(Golden, NeitherThreadsNorBlocksChangeABit) {
  const int threads = omp_get_max_threads();
  const auto all = [&](std::int64_t batch_tokens) {
    MassiveProbe massive(config(), massive_options());
    run(massive, batch_tokens);
    const std::unique_ptr<Readout> readout = model_readout(forward_);
    OutputProbe output(config(), *readout);
    run(output, batch_tokens);
    return std::tuple(attention(AttentionSource::queries_keys, batch_tokens), massive.results(),
                      output.results());
  };
  omp_set_num_threads(1);
  const auto one = all(1024);
  omp_set_num_threads(2);
  EXPECT_TRUE(one == all(1024));
  EXPECT_TRUE(one == all(14));
  omp_set_num_threads(threads);
}

void expect_close(const Moments& a, const Moments& b) {
  EXPECT_EQ(a.count, b.count);
  EXPECT_NEAR(a.sum, b.sum, 1e-12 * std::abs(b.sum));
  EXPECT_NEAR(a.squares, b.squares, 1e-12 * b.squares);
  EXPECT_EQ(a.min, b.min);
  EXPECT_EQ(a.max, b.max);
}

TEST_P(Golden, PartsAddUp) {
  const std::vector<Prompt> prompts = golden_prompts();
  const std::vector<Prompt> first(prompts.begin(), prompts.begin() + 3),
      second(prompts.begin() + 3, prompts.end());
  const auto merged = [&](Probe& whole) {
    std::unique_ptr<Probe> a = whole.fresh(), b = whole.fresh();
    run(whole, prompts, 1024);
    run(*a, first, 1024);
    run(*b, second, 1024);
    a->merge(*b);
    return a;
  };
  AttentionProbe attention(config(), golden_options());
  const auto a = merged(attention);
  const AttentionResults& got = static_cast<AttentionProbe&>(*a).results();
  EXPECT_TRUE(got.strong_keys == attention.results().strong_keys);
  EXPECT_EQ(got.tokens, attention.results().tokens);
  for (std::size_t i = 0; i < got.head.size(); ++i) {
    const HeadStats &x = got.head[i], &y = attention.results().head[i];
    expect_close(x.entropy, y.entropy);
    expect_close(x.normalized, y.normalized);
    expect_close(x.sink, y.sink);
    expect_close(x.induction, y.induction);
    expect_close(x.bins[3].entropy, y.bins[3].entropy);
    EXPECT_EQ(x.collapsed, y.collapsed);
    EXPECT_EQ(x.key_seen, y.key_seen);
    EXPECT_NEAR(x.key_sum[1], y.key_sum[1], 1e-12 * y.key_sum[1]);
    EXPECT_EQ(x.logit_max, y.logit_max);
  }
  MassiveProbe massive(config(), massive_options());
  const auto m = merged(massive);
  const MassiveResults& found = static_cast<MassiveProbe&>(*m).results();
  EXPECT_TRUE(found.listed == massive.results().listed);
  for (std::size_t i = 0; i < found.dimension.size(); ++i) {
    expect_close(found.dimension[i].value, massive.results().dimension[i].value);
    EXPECT_EQ(found.dimension[i].first, massive.results().dimension[i].first);
  }
  const std::unique_ptr<Readout> readout = model_readout(forward_);
  OutputProbe output(config(), *readout);
  const auto o = merged(output);
  expect_close(static_cast<OutputProbe&>(*o).results().logit, output.results().logit);
  EXPECT_THROW(attention.merge(massive), Error);
  EXPECT_THROW(massive.merge(output), Error);
  EXPECT_THROW(output.merge(attention), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::Values(0, 1, 2, 3, 4));

// Made-up blocks: one layer, one head of width 2, one prompt.

ModelConfig small_config(bool causal = true, std::int64_t window = 0) {
  ModelConfig config;
  config.family = "llama";
  config.n_layers = config.n_heads = config.n_kv_heads = 1;
  config.d_head = config.d_model = 2;
  config.rotary_dim = 2;
  config.d_mlp = 4;
  config.d_vocab = 9;
  config.n_ctx = 512;
  config.attn_scale = 1;
  config.causal = causal;
  config.layers = {LayerConfig{window, 0}};
  return config;
}

struct Block {
  explicit Block(std::int64_t tokens) : prompts(1) {
    prompts[0].id = "p";
    for (std::int64_t i = 0; i < tokens; ++i) {
      prompts[0].ids.push_back(static_cast<std::int32_t>(i % 9));
    }
    block.batch.add(prompts[0].ids);
    block.prompts = prompts;
  }
  std::vector<float>& site(SiteKind kind, const ModelConfig& config, std::vector<float> values) {
    auto& held = block.sites[ActivationBlock::site_key({kind, 0})];
    held.shape = site_shape({kind, 0}, config);
    held.values = std::move(values);
    held.offsets = {0, static_cast<std::int64_t>(held.values.size())};
    return held.values;
  }
  std::vector<Prompt> prompts;
  ActivationBlock block;
};

HeadStats observe(const ModelConfig& config, const Block& block, AttentionOptions options = {}) {
  AttentionProbe probe(config, options);
  probe.observe(block.block);
  return probe.results().head[0];
}

TEST(AttentionStats, EvenAttentionHasEntropyOne) {
  for (const bool causal : {true, false}) {
    for (const std::int64_t window : {std::int64_t{0}, std::int64_t{5}}) {
      const ModelConfig config = small_config(causal, window);
      Block block(300);
      block.site(SiteKind::rot_q, config, std::vector<float>(600, 0.0F));
      block.site(SiteKind::rot_k, config, std::vector<float>(600, 0.7F));
      const HeadStats head = observe(config, block);
      EXPECT_NEAR(head.normalized.min, 1, 1e-6);
      EXPECT_LE(head.normalized.max, 1);
      EXPECT_EQ(head.overloaded, head.normalized.count);
      EXPECT_EQ(head.normalized.count, causal ? 299 : 300);
      EXPECT_EQ(head_state(head, {}), "overloaded");
      EXPECT_EQ(head.logit_max, 0);
      // Every visible key gets 1 / their number.
      if (causal && window > 0) {
        EXPECT_EQ(head.sink.count, 4);  // queries 1 to 4
        EXPECT_NEAR(head.sink.mean(), (1.0 / 2 + 1.0 / 3 + 1.0 / 4 + 1.0 / 5) / 4, 1e-6);
        EXPECT_NEAR(head.entropy.max, std::log(5.0), 1e-6);
      }
    }
  }
}

TEST(AttentionStats, OneKeyTakesAll) {
  const ModelConfig config = small_config();
  Block block(40);
  std::vector<float> q(80, 0.0F), k(80, 0.0F);
  for (std::size_t i = 0; i < 40; ++i) q[2 * i] = 30;
  k[0] = 30;  // only key 0 answers: 900 against 0
  block.site(SiteKind::rot_q, config, q);
  block.site(SiteKind::rot_k, config, k);
  const HeadStats head = observe(config, block);
  EXPECT_EQ(head.entropy.max, 0);
  EXPECT_EQ(head.collapsed, 39);
  EXPECT_EQ(head.sink_top, 39);
  EXPECT_EQ(head.sink.min, 1);
  EXPECT_EQ(head.logit_max, 900);
  EXPECT_EQ(head.query_norm.mean(), 30);
  EXPECT_EQ(head.key_norm.max, 30);
  EXPECT_EQ(head_state(head, {}), "collapsed");
  EXPECT_EQ(head_pattern(head, {}), "sink");
}

TEST(AttentionStats, RowsAgreeWithPlainSumsAndStayInBounds) {
  std::mt19937 random(3);
  for (std::size_t n = 1; n < 1200; n = n * 5 / 4 + 1) {
    for (const double scale : {0.01, 1.0, 12.0}) {
      std::normal_distribution<float> normal(0, static_cast<float>(scale));
      std::vector<float> scores(n), pattern(n);
      for (float& s : scores) s = normal(random);
      const double top = *std::max_element(scores.begin(), scores.end());
      double z = 0, want = 0;
      for (const float s : scores) z += std::exp(s - top);
      for (std::size_t i = 0; i < n; ++i) {
        const double p = std::exp(scores[i] - top) / z;
        pattern[i] = static_cast<float>(p);
        want -= p * (scores[i] - top - std::log(z));
      }
      const rows::AttentionSummary a = rows::summarise_attention(scores, pattern);
      const rows::AttentionSummary b = rows::summarise_attention(pattern);
      const auto where = std::max_element(scores.begin(), scores.end()) - scores.begin();
      EXPECT_EQ(a.top, where);
      EXPECT_EQ(pattern[static_cast<std::size_t>(b.top)], pattern[static_cast<std::size_t>(where)]);
      EXPECT_NEAR(a.entropy, want, 2e-6) << n << " " << scale;
      EXPECT_NEAR(b.entropy, want, 2e-6) << n << " " << scale;
      for (const double h : {a.entropy, b.entropy}) {
        EXPECT_GE(h, 0);
        EXPECT_LE(h, std::log(static_cast<double>(n)));
      }
      EXPECT_NEAR(a.score_sum, std::accumulate(scores.begin(), scores.end(), 0.0),
                  1e-5 * scale * static_cast<double>(n));
    }
  }
}

template <class Function>
std::string message(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(AttentionStats, WhatIsNoAttentionIsRefused) {
  const ModelConfig config = small_config();
  const auto with_pattern = [&](std::vector<float> values) {
    Block block(2);
    block.site(SiteKind::pattern, config, std::move(values));
    AttentionOptions options;
    options.source = AttentionSource::pattern;
    return message([&] { observe(config, block, options); });
  };
  const float nan = std::nanf(""), inf = HUGE_VALF;
  EXPECT_EQ(with_pattern({1, 0, 0.25F, 0.75F}), "");
  EXPECT_EQ(
      with_pattern({1, 0, 0.25F, 0.5F}),
      "entropy: prompt 'p', layer 0, head 0, query 1: the pattern adds up to 0.75, 1 expected");
  for (const float bad : {nan, inf, -0.5F, 1.5F}) {
    EXPECT_NE(with_pattern({1, 0, 0.25F, bad}).find("no distribution"), std::string::npos) << bad;
  }
  EXPECT_NE(with_pattern({1, 0, 1}).find("holds 3 values, 4 were expected"), std::string::npos);
  for (const float bad : {nan, inf, -inf}) {
    Block block(2);
    block.site(SiteKind::rot_q, config, {0, 0, bad, 0});
    block.site(SiteKind::rot_k, config, {0, 0, 1, 0});
    EXPECT_NE(message([&] { observe(config, block); }).find("no distribution"), std::string::npos);
    block.site(SiteKind::attn_scores, config, {0, -inf, 1, bad});
    AttentionOptions options;
    options.source = AttentionSource::scores;
    EXPECT_NE(message([&] { observe(config, block, options); }).find("no distribution"),
              std::string::npos);
  }
  Block empty(2);
  EXPECT_THROW(observe(config, empty), Error);

  AttentionOptions options;
  options.collapse = 0.95;
  EXPECT_THROW(AttentionProbe(config, options), UsageError);
  options = {};
  options.sink = std::nan("");
  EXPECT_THROW(AttentionProbe(config, options), UsageError);
  options = {};
  options.first_keys = 0;
  EXPECT_THROW(AttentionProbe(config, options), UsageError);
  options = {};
  options.bin_width = -1;
  EXPECT_THROW(AttentionProbe(config, options), UsageError);
  ModelConfig recorded = config;
  recorded.layers.clear();
  EXPECT_NE(message([&] { AttentionProbe{recorded}; }).find("take its model's"), std::string::npos);
}

TEST(AttentionStats, BinsOfAWidth) {
  ModelConfig config = small_config();
  config.n_ctx = 10;
  EXPECT_EQ(position_bins(config, 0), (std::vector<std::int64_t>{0, 1, 2, 4, 8}));
  EXPECT_EQ(position_bins(config, 4), (std::vector<std::int64_t>{0, 4, 8}));
  config.n_ctx = std::int64_t{1} << 40;
  EXPECT_EQ(position_bins(config, 1).size(), 4096U);
  // Positions behind the last bin fall into it.
  config.n_ctx = 8;
  Block block(20);
  block.site(SiteKind::rot_q, config, std::vector<float>(40, 0.0F));
  block.site(SiteKind::rot_k, config, std::vector<float>(40, 0.0F));
  const HeadStats head = observe(config, block);
  EXPECT_EQ(head.bins.back().entropy.count, 16);
}

TEST(Massive, MedianIsTheLowerMiddle) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (std::size_t n = 1; n < 5000; n = n * 3 / 2 + 1) {
    std::vector<float> x(n);
    for (float& v : x) v = std::exp2(10 * normal(random)) * (normal(random) < 0 ? -1.0F : 1.0F);
    if (n > 10) x[3] = 0, x[4] = -0.0F, x[5] = 1e-42F;
    std::vector<float> sorted;
    for (const float v : x) sorted.push_back(std::abs(v));
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(median_magnitude(x), sorted[(n - 1) / 2]) << n;
  }
  EXPECT_EQ(median_magnitude({}), 0);
}

TEST(Massive, PlantedActivationsAreFound) {
  ModelConfig config = small_config();
  config.d_model = 64;
  Block block(30);
  std::vector<float> x(30 * 64);
  std::mt19937 random(2);
  for (float& v : x) v = std::uniform_real_distribution<float>(0.15F, 0.25F)(random);
  x[0 * 64 + 7] = 2000;
  x[11 * 64 + 7] = -1500;
  x[11 * 64 + 60] = 150;  // large, but not 1000 × the median of about 0.2
  x[12 * 64 + 60] = 300;
  block.site(SiteKind::resid_post, config, x);
  MassiveProbe probe(config);
  probe.observe(block.block);
  const MassiveResults& r = probe.results();
  ASSERT_EQ(r.listed.size(), 3U);
  EXPECT_EQ(r.listed[0].value, 2000);
  EXPECT_EQ(r.listed[0].position, 0);
  EXPECT_EQ(r.listed[1].value, -1500);
  EXPECT_EQ(r.listed[1].position, 11);
  EXPECT_EQ(r.listed[1].dimension, 7);
  EXPECT_EQ(r.listed[1].token_id, 11 % 9);
  EXPECT_EQ(r.listed[2].dimension, 60);
  EXPECT_EQ(r.layer[0].count, 3);
  EXPECT_EQ(r.layer[0].tokens, 3);
  EXPECT_EQ(r.layer[0].largest, 2000);
  EXPECT_EQ(r.dimension[7].value.count, 2);
  EXPECT_EQ(r.dimension[7].first, 1);
  EXPECT_EQ(r.dimension[7].value.mean(), 250);

  MassiveOptions one;
  one.strongest = 1;
  MassiveProbe brief(config, one);
  brief.observe(block.block);
  EXPECT_EQ(brief.results().listed.size(), 1U);
  EXPECT_EQ(brief.results().layer[0].count, 3);
}

TEST(Massive, HostileNumbersAreRefused) {
  const ModelConfig config = small_config();
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    Block block(2);
    block.site(SiteKind::resid_post, config, {1, 2, 3, bad});
    EXPECT_NE(message([&] {
                MassiveProbe(config).observe(block.block);
              }).find("massive: prompt 'p', blocks.0.hook_resid_post, position 1"),
              std::string::npos);
  }
  Block block(2);
  block.site(SiteKind::resid_post, config, {1, 2, 3});
  EXPECT_NE(message([&] {
              MassiveProbe(config).observe(block.block);
            }).find("holds 3 values, 2 tokens × 2 were expected"),
            std::string::npos);
  block.site(SiteKind::resid_post, config, {3e38F, 3e38F, 3e38F, -3e38F});  // finite: taken
  EXPECT_EQ(message([&] { MassiveProbe(config).observe(block.block); }), "");
  MassiveOptions options;
  options.least = -1;
  EXPECT_THROW(MassiveProbe(config, options), UsageError);
  options = {};
  options.site = SiteKind::pattern;
  EXPECT_THROW(MassiveProbe(config, options), UsageError);
}

}  // namespace
}  // namespace lamina
