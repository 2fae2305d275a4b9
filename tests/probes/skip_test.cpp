// Skipping voids against runs made by hand: layer by layer with Forward's own steps.

#include "lamina/probes/skip.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/core/run.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::TinyConfig;

Batch batch_of(const std::vector<std::vector<std::int32_t>>& prompts) {
  Batch batch;
  for (const auto& ids : prompts) batch.add(ids);
  return batch;
}

std::vector<float> copy(std::span<const float> values) {
  return {values.begin(), values.end()};
}

std::vector<float> logits_of(Forward& forward, std::int64_t tokens) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens));
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> out(rows.size() * static_cast<std::size_t>(forward.model().config().d_vocab));
  forward.run_logits(rows, out);
  return out;
}

// The stream after the embedding, as the first layer gets it.
std::vector<float> entering(Forward& forward, const Batch& batch) {
  std::vector<float> x;
  Hooks hooks;
  hooks.read({SiteKind::resid_pre, 0}, [&](SiteView& v) { x = copy(v.values); });
  forward.run(batch, hooks);
  return x;
}

std::vector<float> one_layer(Forward& forward, const Batch& batch, const std::vector<float>& x,
                             std::int32_t layer) {
  const Step steps[] = {{.layer = layer}};
  return copy(forward.run(batch, {}, RunOptions{.steps = steps, .start = x}));
}

double norm_of(const std::vector<float>& x, std::int64_t t, std::int64_t d) {
  return row_norm(
      std::span(x).subspan(static_cast<std::size_t>(t * d), static_cast<std::size_t>(d)));
}

// Deeper than the others, so that there is something to skip.
std::vector<TinyConfig> configs() {
  std::vector<TinyConfig> all = testing::varied_configs();
  std::erase_if(all, [](const TinyConfig& c) { return c.norm_place == "post"; });
  for (TinyConfig& config : all) config.n_layers = 6;
  return all;
}

class Skip : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model{testing::tiny_model(GetParam(), 5)};
  Forward forward{model};
  const ModelConfig& config = model.config();
  Batch batch = batch_of(testing::random_prompts({7, 1, 12}, config.d_vocab, 4));
  std::int64_t tokens = batch.tokens(), d = config.d_model, layers = config.n_layers;
};

TEST_P(Skip, NoneOnlyLooks) {
  const std::vector<float> plain = copy(forward.run(batch));
  SkipRun run(config, {SkipMode::none, 0.8, VoidRule::l2, {}});
  EXPECT_EQ(copy(forward.run(batch, run.hooks())), plain);
  std::vector<float> x = entering(forward, batch);
  std::vector<VoidDetector> detectors(static_cast<std::size_t>(tokens), VoidDetector(0.8));
  std::int64_t voids = 0;
  forward.run(batch, run.hooks());
  for (std::int32_t l = 0; l < layers; ++l) {
    const std::vector<float> y = one_layer(forward, batch, x, l);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double delta = norm_of(y, t, d) - norm_of(x, t, d);
      EXPECT_EQ(run.deltas()[t * layers + l], delta);
      const bool active = detectors[t].active(delta);
      EXPECT_EQ(run.active()[t * layers + l], active);
      voids += !active;
    }
    x = y;
  }
  EXPECT_GT(voids, 0);
  EXPECT_LT(voids, tokens * layers);
  const auto at = run.active_at(0.8);
  EXPECT_TRUE(std::ranges::equal(at, run.active()));
  SkipRun other(config, {SkipMode::none, 0.2, VoidRule::l2, {}});
  forward.run(batch, other.hooks());
  EXPECT_TRUE(std::ranges::equal(run.active_at(0.2), other.active()));
}

TEST_P(Skip, LastActiveSendsTheLastActiveLayerToTheHead) {
  for (VoidRule rule : {VoidRule::l2, VoidRule::lac}) {
    SkipRun run(config, {SkipMode::last_active, 0.8, rule, {}});
    const std::vector<float> got = copy(forward.run(batch, run.hooks()));
    const std::vector<float> logits = logits_of(forward, tokens);
    std::vector<float> x = entering(forward, batch), kept = x;
    for (std::int32_t l = 0; l < layers; ++l) {
      x = one_layer(forward, batch, x, l);  // nothing is skipped on the way
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (run.active()[t * layers + l]) std::copy_n(x.begin() + t * d, d, kept.begin() + t * d);
      }
    }
    EXPECT_EQ(got, kept);
    EXPECT_NE(kept, x);
    std::vector<float> want(logits.size());
    forward.logits(kept, want);
    EXPECT_EQ(logits, want);
  }
}

TEST_P(Skip, BlocksDropsWhatVoidBlocksAdd) {
  for (VoidRule rule : {VoidRule::l2, VoidRule::lac}) {
    SkipRun run(config, {SkipMode::blocks, 0.6, rule, {}});
    const std::vector<float> got = copy(forward.run(batch, run.hooks()));
    const auto active = std::vector<std::uint8_t>(run.active().begin(), run.active().end());
    std::vector<float> x = entering(forward, batch);
    std::vector<VoidDetector> detectors(static_cast<std::size_t>(tokens), VoidDetector(0.6, rule));
    std::int64_t voids = 0;
    for (std::int32_t l = 0; l < layers; ++l) {
      const std::vector<float> y = one_layer(forward, batch, x, l);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const bool on = detectors[t].active(norm_of(y, t, d) - norm_of(x, t, d));
        EXPECT_EQ(active[t * layers + l], on) << "token " << t << " layer " << l;
        if (on) std::copy_n(y.begin() + t * d, d, x.begin() + t * d);
        voids += !on;
      }
    }
    EXPECT_EQ(got, x);
    EXPECT_GT(voids, 0);
  }
}

TEST_P(Skip, LayersAreLeftOut) {
  SkipRun run(config, {SkipMode::none, 0.8, VoidRule::l2, {0, 3, 5}});
  const std::vector<float> got = copy(forward.run(batch, run.hooks()));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t l : {0, 3, 5}) {
      EXPECT_EQ(run.active()[t * layers + l], 0);
      EXPECT_TRUE(std::isnan(run.deltas()[t * layers + l]));
    }
  }
  const Step steps[] = {{.layer = 1}, {.layer = 2}, {.layer = 4}};
  EXPECT_EQ(got, copy(forward.run(batch, {}, RunOptions{.steps = steps})));
}

TEST_P(Skip, ACacheChangesNothing) {
  for (SkipMode mode : {SkipMode::none, SkipMode::last_active, SkipMode::blocks}) {
    SkipRun run(config, {mode, 0.6, VoidRule::l2, {2}});
    const std::vector<float> whole = copy(forward.run(batch, run.hooks()));
    KvCache cache(config, batch.prompts());
    Batch first, rest;
    std::vector<std::int64_t> sequences;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const auto ids = std::span(batch.ids).subspan(static_cast<std::size_t>(batch.offsets[p]),
                                                    static_cast<std::size_t>(batch.length(p)));
      first.add(ids.first(ids.size() / 2 + 1));
      if (ids.size() < 2) continue;
      rest.add(ids.subspan(ids.size() / 2 + 1));
      sequences.push_back(p);
    }
    forward.run(first, run.hooks(), &cache);
    const std::vector<float> tail = copy(forward.run(rest, run.hooks(), &cache, sequences));
    std::int64_t at = 0;
    for (std::int64_t p : sequences) {
      const std::int64_t skipped = batch.length(p) / 2 + 1, count = batch.length(p) - skipped;
      EXPECT_TRUE(std::equal(tail.begin() + at * d, tail.begin() + (at + count) * d,
                             whole.begin() + (batch.offsets[p] + skipped) * d))
          << "prompt " << p;
      at += count;
    }
  }
}

TEST_P(Skip, ThreadsAndBatchesChangeNothing) {
  SkipRun run(config, {SkipMode::blocks, 0.4, VoidRule::l2, {}});
  set_threads(1);
  const std::vector<float> one = copy(forward.run(batch, run.hooks()));
  set_threads(2);
  EXPECT_EQ(copy(forward.run(batch, run.hooks())), one);
  Batch last;
  last.add(std::span(batch.ids).last(12));
  const std::vector<float> alone = copy(forward.run(last, run.hooks()));
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), one.end() - 12 * d));
}

std::string name_of(const ::testing::TestParamInfo<TinyConfig>& info) {
  std::string name;
  for (char c : info.param.label) {
    if (std::isalnum(static_cast<unsigned char>(c))) name += c;
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Every, Skip, ::testing::ValuesIn(configs()), name_of);

std::vector<Prompt> prompts_of(const Batch& batch) {
  std::vector<Prompt> prompts;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    Prompt& prompt = prompts.emplace_back();
    prompt.id = std::to_string(p);
    prompt.ids.assign(batch.ids.begin() + batch.offsets[p],
                      batch.ids.begin() + batch.offsets[p + 1]);
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
  }
  return prompts;
}

TEST(SkipGenerate, EveryNewTokenIsSkippedFor) {
  TinyConfig tiny;
  tiny.n_layers = 6;
  const Model model = testing::tiny_model(tiny, 5);
  Forward forward(model);
  const Batch batch = batch_of(testing::random_prompts({7, 1, 12}, 61, 4));
  for (SkipMode mode : {SkipMode::last_active, SkipMode::blocks}) {
    SkipRun run(model.config(), {mode, 0.8, VoidRule::l2, {}});
    std::vector<Prompt> prompts = prompts_of(batch), plain = prompts;
    GenerateOptions options;
    options.max_new_tokens = 8;
    generate(forward, plain, options);
    options.hooks = &run.hooks();
    generate(forward, prompts, options);
    EXPECT_TRUE(prompts[0].ids != plain[0].ids || prompts[2].ids != plain[2].ids);
    for (const Prompt& prompt : prompts) {
      for (auto n = static_cast<std::size_t>(prompt.given); n < prompt.ids.size(); ++n) {
        Batch whole;
        whole.add(std::span(prompt.ids).first(n));
        forward.run(whole, run.hooks());
        std::vector<float> logits(61);
        const std::int64_t last = static_cast<std::int64_t>(n) - 1;
        forward.run_logits({&last, 1}, logits);
        EXPECT_EQ(prompt.ids[n], std::max_element(logits.begin(), logits.end()) - logits.begin());
      }
    }
  }
}

TEST(SkipNextTokens, SayWhatTheLogitsSay) {
  TinyConfig tiny;
  tiny.n_layers = 6;
  const Model model = testing::tiny_model(tiny, 5);
  Forward forward(model);
  const Batch batch = batch_of(testing::random_prompts({7, 1, 12}, 61, 4));
  std::vector<Prompt> prompts = prompts_of(batch);
  prompts[2].given = 5;
  SkipRun run(model.config(), {SkipMode::blocks, 0.8, VoidRule::l2, {}});
  const NextTokens next = next_tokens(forward, prompts, run, 8);
  forward.run(batch, run.hooks());
  const std::vector<float> logits = logits_of(forward, batch.tokens());
  ASSERT_EQ(next.best.size(), 20U);
  EXPECT_EQ(next.counts.tokens[0], 13);
  EXPECT_EQ(next.counts.tokens[1], 7);
  std::int64_t active = 0;
  for (std::uint8_t a : run.active()) active += a;
  EXPECT_EQ(std::accumulate(next.counts.active.begin(), next.counts.active.end(), std::int64_t{0}),
            active);
  for (std::int64_t t = 0; t < 20; ++t) {
    const auto row = std::span(logits).subspan(static_cast<std::size_t>(t) * 61, 61);
    EXPECT_EQ(next.best[t], std::max_element(row.begin(), row.end()) - row.begin());
    if (t == 6 || t == 7 || t == 19) {
      EXPECT_TRUE(std::isnan(next.logprob[t])) << t;
    } else {
      const double want = row[static_cast<std::size_t>(batch.ids[t + 1])] - math::log_sum_exp(row);
      EXPECT_FLOAT_EQ(next.logprob[t], static_cast<float>(want));
    }
  }
}

TEST(SkipSettings, PostNormIsRefused) {
  for (const TinyConfig& tiny : testing::varied_configs()) {
    if (tiny.norm_place != "post") continue;
    const Model model = testing::tiny_model(tiny, 5);
    EXPECT_THROW(SkipRun(model.config(), {}), UsageError);
    EXPECT_THROW(VoidProbe(model.config()), UsageError);
    return;
  }
  FAIL() << "no post-norm model among the configurations";
}

TEST(SkipSettings, AreChecked) {
  const Model model = testing::tiny_model({}, 5);
  EXPECT_THROW(SkipRun(model.config(), {SkipMode::none, 0.8, VoidRule::l2, {3}}), UsageError);
  EXPECT_THROW(SkipRun(model.config(), {SkipMode::none, -1, VoidRule::l2, {}}), UsageError);
  EXPECT_THROW(parse_skip_mode("block"), UsageError);
  for (SkipMode mode : {SkipMode::none, SkipMode::last_active, SkipMode::blocks}) {
    EXPECT_EQ(parse_skip_mode(skip_mode_name(mode)), mode);
  }
}

}  // namespace
}  // namespace lamina
