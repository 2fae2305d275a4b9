// Greedy removal of sublayers.

#include "lamina/patching/finercut.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lamina/core/threads.h"
#include "patching/ablate_support.h"

namespace lamina::testing {
namespace {

class FinerCut : public ::testing::TestWithParam<DistanceKind> {
 protected:
  Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward{model};
  PathPrompts prompts = golden_prompts();
};

TEST_P(FinerCut, EqualsTransformersWithHooks) {
  PathJudge judge(forward, prompts, {.distance = GetParam()});
  const std::vector<Removal> removals = finercut(judge, model.config(), {});
  const std::string kind(distance_name(GetParam()));
  const std::vector<float> order = ablate_golden("order." + kind);
  const std::vector<float> trace = ablate_golden("trace." + kind);
  ASSERT_EQ(removals.size(), order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const Sublayer& s = removals[i].sublayer;
    EXPECT_EQ(2 * s.layer + (s.mlp ? 1 : 0), static_cast<std::int32_t>(order[i]))
        << "removal " << i;
    EXPECT_NEAR(removals[i].distance, trace[i], 1e-5 * trace[i] + 1e-7) << "removal " << i;
    EXPECT_EQ(removals[i].distance, removals[i].left.distance);
    EXPECT_DOUBLE_EQ(removals[i].left.layers, 4 - 0.5 * static_cast<double>(i + 1));
  }
}

INSTANTIATE_TEST_SUITE_P(All, FinerCut,
                         ::testing::Values(DistanceKind::angular, DistanceKind::norm,
                                           DistanceKind::kl, DistanceKind::js),
                         [](const auto& kind) { return std::string(distance_name(kind.param)); });

// The plain way: every candidate by a full run with hooks that write zeros.
TEST(FinerCutOrder, EqualsBruteForceWithHooks) {
  for (const TinyConfig& tiny : varied_configs()) {
    if (tiny.norm_place == "post") continue;  // a removed sublayer takes its norm along there
    SCOPED_TRACE(tiny.label);
    const Model model = tiny_model(tiny, 3);
    Forward forward(model);
    const PathPrompts prompts = random_path_prompts({6, 9}, tiny.d_vocab, 8);
    const Batch batch = batch_of(prompts);
    const auto v = static_cast<std::size_t>(tiny.d_vocab);
    const auto logits_without = [&](const std::set<Sublayer>& removed) {
      Hooks hooks;
      for (const Sublayer& s : removed) {
        hooks.write({s.mlp ? SiteKind::mlp_out : SiteKind::attn_out, s.layer},
                    [](SiteView& view) { std::ranges::fill(view.values, 0.0f); });
      }
      const auto out = forward.run(batch, hooks);
      std::vector<float> logits(static_cast<std::size_t>(batch.tokens()) * v);
      forward.logits(out, logits);
      return logits;
    };
    const std::vector<float> whole = logits_without({});
    PathJudge judge(forward, prompts, {.distance = DistanceKind::angular});
    std::set<Sublayer> removed;
    for (const Removal& removal : finercut(judge, model.config(), {})) {
      double best = 1e9;
      std::size_t i = 0;
      for (const Sublayer& s : all_sublayers(model.config())) {
        const double got = removal.candidates[i++];
        if (removed.contains(s)) {
          EXPECT_TRUE(std::isnan(got));
          continue;
        }
        std::set<Sublayer> tried = removed;
        tried.insert(s);
        const std::vector<float> logits = logits_without(tried);
        double sum = 0;
        for (std::size_t at = 0; at < logits.size(); at += v) {
          sum += output_distance(DistanceKind::angular, std::span(whole).subspan(at, v),
                                 std::span(logits).subspan(at, v));
        }
        const double distance = sum / static_cast<double>(batch.tokens());
        EXPECT_EQ(got, distance) << sublayer_name(s);
        best = std::min(best, distance);
      }
      EXPECT_EQ(removal.distance, best);
      removed.insert(removal.sublayer);
    }
    EXPECT_EQ(removed.size(), all_sublayers(model.config()).size());
  }
}

// Sublayers whose output weights are zero do nothing: they go first, and nothing changes.
TEST(FinerCutOrder, IdleSublayersGoFirstAtDistanceZero) {
  const TempDir folder;
  write_tiny_model(folder.path(), {}, 4);
  {
    const TensorStore store = open_safetensors(folder.path() / "model.safetensors");
    std::vector<std::vector<float>> values;
    std::vector<F32Tensor> tensors;
    values.reserve(store.tensors().size());
    for (const TensorInfo& tensor : store.tensors()) {
      std::vector<float>& v = values.emplace_back(tensor.elements());
      expand_to_f32(tensor.dtype, tensor.bytes, v);
      if (tensor.name == "blocks.0.mlp.W_out" || tensor.name == "blocks.1.attn.W_O") {
        std::ranges::fill(v, 0.0f);
      }
      tensors.push_back({tensor.name, tensor.shape, v});
    }
    write_safetensors(folder.path() / "idle.safetensors", tensors);
  }
  std::filesystem::rename(folder.path() / "idle.safetensors", folder.path() / "model.safetensors");
  const Model model = Model::load(folder.path());
  Forward forward(model);
  const PathPrompts prompts = random_path_prompts({8, 5}, 61, 2);
  for (const DistanceKind kind : {DistanceKind::angular, DistanceKind::norm, DistanceKind::js}) {
    PathJudge judge(forward, prompts, {.distance = kind});
    const std::vector<Removal> removals = finercut(judge, model.config(), {.remove = 3});
    ASSERT_EQ(removals.size(), 3u);
    EXPECT_EQ(removals[0].sublayer, (Sublayer{1, false}));  // of equals the later one
    EXPECT_EQ(removals[1].sublayer, (Sublayer{0, true}));
    EXPECT_EQ(removals[0].distance, 0.0);
    EXPECT_EQ(removals[1].distance, 0.0);
    EXPECT_EQ(removals[1].left.agreement, 1.0);
    EXPECT_GT(removals[2].distance, 0.0);
  }
}

TEST(FinerCutOrder, StopsGoesOnAndDoesNotDependOnThreads) {
  const Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward(model);
  const PathPrompts prompts = golden_prompts();
  PathJudge judge(forward, prompts, {});
  const ModelConfig& config = model.config();
  const std::vector<Removal> all = finercut(judge, config, {});
  ASSERT_EQ(all.size(), 8u);

  EXPECT_EQ(finercut(judge, config, {.remove = 0}).size(), 0u);
  EXPECT_EQ(finercut(judge, config, {.remove = 5}).size(), 5u);
  EXPECT_EQ(finercut(judge, config, {.limit = all[3].distance}).size(), 4u);
  EXPECT_EQ(finercut(judge, config, {.limit = all[3].distance * 0.999}).size(), 3u);

  FinerCutOptions rest;
  for (int i = 0; i < 3; ++i) rest.first.push_back(all[static_cast<std::size_t>(i)].sublayer);
  std::int64_t told = 0;
  rest.removed = [&](const Removal&) { return ++told < 4; };
  const std::vector<Removal> later = finercut(judge, config, rest);
  ASSERT_EQ(later.size(), 4u);
  for (std::size_t i = 0; i < later.size(); ++i) {
    EXPECT_EQ(later[i].sublayer, all[i + 3].sublayer);
    EXPECT_EQ(later[i].distance, all[i + 3].distance);
  }

  for (const int threads : {1, 4}) {
    set_threads(threads);
    PathJudge small(forward, prompts, {.memory = 1});
    const std::vector<Removal> again = finercut(small, config, {});
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(again[i].sublayer, all[i].sublayer);
      EXPECT_EQ(again[i].distance, all[i].distance);
      EXPECT_EQ(again[i].left.nll, all[i].left.nll);
    }
  }
  set_threads(2);
}

}  // namespace
}  // namespace lamina::testing
