// Running layer paths, and judging them.

#include <algorithm>
#include <cmath>

#include "lamina/core/threads.h"
#include "lamina/patching/path_runner.h"
#include "patching/ablate_support.h"

namespace lamina::testing {
namespace {

std::vector<float> run_path(Forward& forward, const Batch& batch, std::span<const Step> path) {
  RunOptions options;
  options.steps = path;
  const auto out = forward.run(batch, {}, options);
  return {out.begin(), out.end()};
}

class Paths : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model = tiny_model(GetParam());
  Forward forward{model};
  PathPrompts prompts = random_path_prompts({7, 3, 11}, GetParam().d_vocab, 5);
  Batch batch = batch_of(prompts);
};

TEST_P(Paths, TheWholeModelIsThePlainPass) {
  const auto plain = forward.run(batch);
  const std::vector<float> want(plain.begin(), plain.end());
  EXPECT_EQ(run_path(forward, batch, parse_layer_path("0-2", model.config())), want);
  PathRunner runner(forward, batch, 1 << 20);
  const auto stepwise = runner.run(all_steps(model.config()), true);
  EXPECT_TRUE(std::ranges::equal(stepwise, want));
}

TEST_P(Paths, RemovingASublayerIsZeroingItsOutput) {
  if (GetParam().norm_place == "post") GTEST_SKIP() << "there its norm goes with it";
  for (const Sublayer& sublayer : all_sublayers(model.config())) {
    Hooks hooks;
    hooks.write({sublayer.mlp ? SiteKind::mlp_out : SiteKind::attn_out, sublayer.layer},
                [](SiteView& view) { std::ranges::fill(view.values, 0.0f); });
    const auto zeroed = forward.run(batch, hooks);
    const std::vector<float> want(zeroed.begin(), zeroed.end());
    const std::vector<Sublayer> removed = {sublayer};
    EXPECT_EQ(run_path(forward, batch, path_without(removed, model.config())), want)
        << sublayer_name(sublayer);
  }
}

// The same by plain passes only: each layer of the path runs in a pass of its own, in which a hook
// puts the stream so far in front of it.
TEST_P(Paths, RepeatedAndReorderedLayersAreTheHandMadeRun) {
  if (GetParam().norm_place == "post") GTEST_SKIP() << "resid_post stands before its norm there";
  const std::vector<std::int32_t> order = {0, 2, 2, 1, 0};
  std::vector<float> stream;
  for (const std::int32_t layer : order) {
    Hooks hooks;
    if (!stream.empty()) {
      hooks.write({SiteKind::resid_pre, layer},
                  [&](SiteView& view) { std::ranges::copy(stream, view.values.begin()); });
    }
    std::vector<float> after;
    hooks.read({SiteKind::resid_post, layer},
               [&](SiteView& view) { after.assign(view.values.begin(), view.values.end()); });
    forward.run(batch, hooks);
    stream = after;
  }
  EXPECT_EQ(run_path(forward, batch, parse_layer_path("0,2*2,1-0", model.config())), stream);
}

TEST_P(Paths, ReuseChangesNoBit) {
  const ModelConfig& config = model.config();
  std::vector<LayerPath> paths;
  for (const char* text : {"0-2", "0,1,1,2", "0,1", "0-1,2,2", "0-2", "2,1,0", "0,1,1,0"}) {
    paths.push_back(parse_layer_path(text, config));
  }
  paths.push_back({{0, true, false}, {1, true, true}});
  const std::uint64_t state = static_cast<std::uint64_t>(batch.tokens() * config.d_model) * 4;
  for (const std::uint64_t memory : {std::uint64_t{0}, state, 3 * state, 100 * state}) {
    PathRunner runner(forward, batch, memory);
    for (const bool keep : {true, false, true}) {
      for (const LayerPath& path : paths) {
        const auto got = runner.run(path, keep);
        const std::vector<float> out(got.begin(), got.end());
        EXPECT_EQ(out, run_path(forward, batch, path)) << layer_path_text(path, config) << memory;
      }
    }
    if (memory == 100 * state) {
      // 0, 1, 2 · 1, 2 · 2 · 2, 1, 0 · 0 and 0a, 1; never again.
      EXPECT_EQ(runner.steps_run(), 12);
    }
    EXPECT_LE(runner.steps_run(), runner.steps_asked());
  }
  PathRunner runner(forward, batch, 0);
  EXPECT_THROW(runner.run({}, true), UsageError);
}

TEST_P(Paths, JudgementDependsOnNeitherMemoryNorThreads) {
  const LayerPath path = parse_layer_path("0,2,2a", model.config());
  const std::vector<LayerPath> candidates = {path, parse_layer_path("0,1", model.config())};
  PathQuality first;
  std::vector<double> first_distances;
  for (const int threads : {1, 3}) {
    set_threads(threads);
    for (const std::uint64_t memory :
         {std::uint64_t{1}, std::uint64_t{20000}, std::uint64_t{1} << 28}) {
      PathJudge judge(forward, prompts, {.distance = DistanceKind::js, .memory = memory});
      const PathQuality q = judge.judge(path);
      const std::vector<double> d = judge.distances(all_steps(model.config()), candidates);
      const std::vector<PathQuality> all = judge.judge_all(all_steps(model.config()), candidates);
      EXPECT_EQ(d[0], q.distance);
      EXPECT_EQ(all[0].distance, q.distance);
      EXPECT_EQ(all[0].prompt_kl, q.prompt_kl);
      EXPECT_EQ(all[1].distance, d[1]);
      if (first_distances.empty()) {
        first = q;
        first_distances = d;
      }
      EXPECT_EQ(d, first_distances);
      EXPECT_EQ(q.kl, first.kl);
      EXPECT_EQ(q.prompt_kl, first.prompt_kl);
      if (!GetParam().causal) {
        EXPECT_TRUE(std::isnan(q.nll));  // its tokens see what follows them
        continue;
      }
      EXPECT_EQ(q.nll, first.nll);
      EXPECT_EQ(q.prompt_nll, first.prompt_nll);
    }
  }
  set_threads(2);
}

INSTANTIATE_TEST_SUITE_P(Configs, Paths, ::testing::ValuesIn(varied_configs()),
                         [](const auto& config) { return std::to_string(config.index); });

TEST(PathJudge, EqualsTransformers) {
  const Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward(model);
  const PathPrompts prompts = golden_prompts();
  PathJudge judge(forward, prompts, {});
  std::vector<Sublayer> removed;
  for (const float s : ablate_golden("order.angular")) {
    if (removed.size() < 3) {
      removed.push_back({static_cast<std::int32_t>(s) / 2, static_cast<int>(s) % 2 == 1});
    }
  }
  const PathQuality q = judge.judge(path_without(removed, model.config()));
  EXPECT_NEAR(q.nll, ablate_golden("nll")[0], 1e-5);
  EXPECT_NEAR(q.perplexity, std::exp(ablate_golden("nll")[0]), 1e-3);
  EXPECT_NEAR(q.kl, ablate_golden("kl")[0], 1e-6);
  EXPECT_NEAR(q.distance, ablate_golden("trace.angular")[2], 1e-6);
  EXPECT_NEAR(q.agreement, ablate_golden("agreement")[0], 1e-7);
  EXPECT_DOUBLE_EQ(q.layers, 2.5);
  EXPECT_TRUE(std::isnan(q.accuracy));
  EXPECT_TRUE(std::isnan(q.metric));
  const PathQuality whole = judge.judge(all_steps(model.config()));
  EXPECT_EQ(whole.distance, 0.0);
  EXPECT_EQ(whole.kl, 0.0);
  EXPECT_EQ(whole.agreement, 1.0);
}

TEST(PathJudge, LastTokensAndAnswers) {
  const Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward(model);
  PathPrompts prompts = golden_prompts();
  const Batch batch = batch_of(prompts);
  forward.run(batch);
  std::vector<std::int64_t> rows;
  for (std::int64_t p = 0; p < 3; ++p)
    rows.push_back(batch.offsets[static_cast<std::size_t>(p + 1)] - 1);
  const std::size_t v = static_cast<std::size_t>(model.config().d_vocab);
  std::vector<float> logits(3 * v);
  forward.run_logits(rows, logits);
  // The model's own answer to prompt 0, two tokens for prompt 1, none for prompt 2.
  const auto top =
      std::max_element(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(v));
  prompts.answers[0] = {static_cast<std::int32_t>(top - logits.begin())};
  const auto worst = std::min_element(logits.begin() + static_cast<std::ptrdiff_t>(v),
                                      logits.begin() + static_cast<std::ptrdiff_t>(2 * v));
  const auto id = static_cast<std::int32_t>(worst - logits.begin()) - static_cast<std::int32_t>(v);
  prompts.answers[1] = {id, (id + 1) % 53};
  PathJudge judge(forward, prompts, {.last_only = true});
  EXPECT_EQ(judge.rows(), 3);
  const PathQuality q = judge.judge(all_steps(model.config()));
  double total[2] = {0, 0}, share[2] = {0, 0};
  for (std::size_t p = 0; p < 2; ++p) {
    for (std::size_t i = 0; i < v; ++i) total[p] += std::exp(double{logits[p * v + i]});
    for (const std::int32_t a : prompts.answers[p]) {
      share[p] += std::exp(double{logits[p * v + static_cast<std::size_t>(a)]});
    }
    EXPECT_NEAR(q.prompt_nll[p], -std::log(share[p] / total[p]), 1e-6);
  }
  EXPECT_TRUE(std::isnan(q.prompt_nll[2]));
  EXPECT_NEAR(q.nll, (q.prompt_nll[0] + q.prompt_nll[1]) / 2, 1e-12);
  EXPECT_DOUBLE_EQ(q.accuracy, 0.5);
}

TEST(PathJudge, LogitsThatAreNotFiniteAreNamed) {
  const Model model = tiny_model({.label = "no norm",
                                  .d_mlp = 0,
                                  .norm = "none",
                                  .norm_place = "none",
                                  .positions = "none",
                                  .rotary_dim = 0,
                                  .gated = false,
                                  .final_norm = false});
  Forward forward(model);
  const PathPrompts prompts = random_path_prompts({2, 4}, 61, 1);
  PathJudge judge(forward, prompts, {});
  try {  // doubles at every step, with no norm to hold it
    judge.judge(parse_layer_path("0-2*1000", model.config()));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("are not finite"), std::string::npos) << error.what();
  }
  EXPECT_THROW(judge.judge({}), UsageError);
  const PathPrompts none;
  EXPECT_THROW(PathJudge(forward, none, {}), Error);
}

}  // namespace
}  // namespace lamina::testing
