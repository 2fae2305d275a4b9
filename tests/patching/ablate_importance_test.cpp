// Layer importance: LIM, ZD, rank correlation, relevance.

#include "lamina/patching/layer_importance.h"

#include <algorithm>
#include <cmath>

#include "lamina/core/threads.h"
#include "patching/ablate_support.h"

namespace lamina::testing {
namespace {

TEST(LayerImportance, LimEqualsTransformers) {
  const Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward(model);
  const PathPrompts prompts = golden_prompts();
  const std::vector<float> want = ablate_golden("lim");
  const std::vector<double> got = layer_input_metric(forward, prompts, false);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t l = 0; l < want.size(); ++l) EXPECT_NEAR(got[l], want[l], 1e-6) << l;
  EXPECT_EQ(layer_input_metric(forward, prompts, false, 1), got);  // one prompt at a time
  set_threads(1);
  EXPECT_EQ(layer_input_metric(forward, prompts, false), got);
  set_threads(2);
  EXPECT_NE(layer_input_metric(forward, prompts, true), got);
}

TEST(LayerImportance, ZdEqualsNumpy) {
  const Model model = Model::load(ablate_folder() / "ablate_model");
  for (const bool two_sided : {false, true}) {
    const std::vector<float> want = ablate_golden(two_sided ? "zd_two_sided" : "zd");
    const std::vector<double> got = weight_outliers(model, two_sided);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t l = 0; l < want.size(); ++l) EXPECT_NEAR(got[l], want[l], 1e-7) << l;
    for (const int threads : {1, 3}) {
      set_threads(threads);
      EXPECT_EQ(weight_outliers(model, two_sided), got);
    }
    set_threads(2);
  }
}

TEST(LayerImportance, MatricesAreTheFilesOnes) {
  const TempDir folder;
  write_tiny_model(folder.path(), {}, 6);
  const Model model = Model::load(folder.path());
  const TensorStore store = open_safetensors(folder.path() / "model.safetensors");
  std::vector<std::string> names;
  for (const MatrixInfo& m : model.layer_matrices(1)) names.push_back(m.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"1.q", "1.k", "1.v", "1.o", "1.gate", "1.in", "1.out"}));
  // W_out of the canonical family stands as [M, D]: its transpose multiplies.
  const TensorInfo* tensor = store.find("blocks.1.mlp.W_out");
  ASSERT_NE(tensor, nullptr);
  std::vector<float> file(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, file);
  std::vector<float> rows(24 * 40);
  model.matrix_rows("1.out", 0, 24, rows);
  for (std::size_t r = 0; r < 24; ++r) {
    for (std::size_t c = 0; c < 40; ++c) ASSERT_EQ(rows[r * 40 + c], file[c * 24 + r]);
  }
  std::vector<float> some(2 * 40);
  model.matrix_rows("1.out", 5, 2, some);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), rows.begin() + 5 * 40));
  EXPECT_THROW(model.matrix_rows("1.out", 23, 2, some), UsageError);
  EXPECT_THROW(model.matrix_rows("1.out", 0, 3, some), UsageError);
  EXPECT_THROW(model.matrix_rows("1.up", 0, 2, some), UsageError);
  EXPECT_THROW(model.matrix_rows("3.out", 0, 2, some), UsageError);
  EXPECT_THROW(model.layer_matrices(3), UsageError);
}

TEST(LayerImportance, RankCorrelation) {
  const std::vector<double> a = {1, 2, 3, 4, 5}, cubes = {1, 8, 27, 64, 125},
                            down = {9, 7, 5, 3, 1};
  EXPECT_DOUBLE_EQ(rank_correlation(a, cubes), 1.0);
  EXPECT_DOUBLE_EQ(rank_correlation(a, down), -1.0);
  // By hand: ranks 2, 3.5, 3.5, 5, 1 and 2, 1, 5, 3.5, 3.5; covariance 1, squares 9.5 each.
  const std::vector<double> x = {1, 2, 2, 4, 0}, y = {3, 1, 5, 4, 4};
  EXPECT_NEAR(rank_correlation(x, y), 1 / 9.5, 1e-15);
  const std::vector<double> flat = {2, 2, 2, 2, 2};
  EXPECT_TRUE(std::isnan(rank_correlation(a, flat)));
  EXPECT_THROW(rank_correlation(a, std::span(a).first(2)), Error);
}

// The share of a token's sublayer output in the objective is its derivative by a factor at that
// output: finite differences of plain passes.
class Relevance : public ::testing::Test {
 protected:
  Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward{model};
  PathPrompts prompts = golden_prompts();

  // Σ log p of `targets` (row → token) with one token's output of one sublayer scaled.
  double objective(const std::vector<std::pair<std::int64_t, std::int32_t>>& targets,
                   Sublayer sublayer, std::int64_t token, float factor) {
    Hooks hooks;
    hooks.write({sublayer.mlp ? SiteKind::mlp_out : SiteKind::attn_out, sublayer.layer},
                [&](SiteView& view) {
                  for (std::size_t i = 0; i < 24; ++i) {
                    view.values[static_cast<std::size_t>(token) * 24 + i] *= factor;
                  }
                });
    const Batch batch = batch_of(prompts);
    forward.run(batch, hooks);
    std::vector<float> logits(53);
    double sum = 0;
    for (const auto& [row, target] : targets) {
      const std::int64_t rows[] = {row};
      forward.run_logits(rows, logits);
      double total = 0;
      for (const float x : logits) total += std::exp(double{x});
      sum += logits[static_cast<std::size_t>(target)] - std::log(total);
    }
    return sum;
  }

  void expect_differences(const SublayerRelevance& got,
                          const std::vector<std::pair<std::int64_t, std::int32_t>>& targets) {
    const Batch batch = batch_of(prompts);
    for (const Sublayer& sublayer : all_sublayers(model.config())) {
      double sum = 0;
      for (std::int64_t t = 0; t < batch.tokens(); ++t) {
        constexpr float kStep = 1.0f / 64;
        const double slope = (objective(targets, sublayer, t, 1 + kStep) -
                              objective(targets, sublayer, t, 1 - kStep)) /
                             (2.0 * kStep);
        sum += std::abs(slope);
      }
      const auto layer = static_cast<std::size_t>(sublayer.layer);
      const double want = sum / 3;
      EXPECT_NEAR(sublayer.mlp ? got.mlp[layer] : got.attention[layer], want, 2e-3 * want + 1e-3)
          << sublayer_name(sublayer);
    }
  }
};

TEST_F(Relevance, OfAllTokensIsFiniteDifferences) {
  prompts.answers[1] = {11};
  const Batch batch = batch_of(prompts);
  std::vector<std::pair<std::int64_t, std::int32_t>> targets;
  for (std::int64_t p = 0; p < 3; ++p) {
    const std::int64_t end = batch.offsets[static_cast<std::size_t>(p + 1)];
    for (std::int64_t t = batch.offsets[static_cast<std::size_t>(p)]; t + 1 < end; ++t) {
      targets.emplace_back(t, batch.ids[static_cast<std::size_t>(t + 1)]);
    }
    if (p == 1) targets.emplace_back(end - 1, 11);
  }
  expect_differences(sublayer_relevance(forward, prompts, nullptr, false, {}), targets);
}

TEST_F(Relevance, OfLastTokensIsFiniteDifferences) {
  prompts.answers[0] = {2};
  const Batch batch = batch_of(prompts);
  std::vector<float> logits(53);
  forward.run(batch);
  std::vector<std::pair<std::int64_t, std::int32_t>> targets = {{batch.offsets[1] - 1, 2}};
  for (std::size_t p = 1; p < 3; ++p) {  // the model's own answer
    const std::int64_t rows[] = {batch.offsets[p + 1] - 1};
    forward.run_logits(rows, logits);
    targets.emplace_back(
        rows[0], static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin()));
  }
  expect_differences(sublayer_relevance(forward, prompts, nullptr, true, {}), targets);
}

TEST_F(Relevance, OfAMetricIsThatOfItsGradient) {
  std::vector<Pair> pairs(3);
  for (std::size_t p = 0; p < 3; ++p) {
    pairs[p].id = std::to_string(p);
    pairs[p].clean = pairs[p].corrupted = prompts.tokens[p];
    pairs[p].correct = {static_cast<std::int32_t>(4 + p)};
  }
  const Metric metric(MetricKind::logprob, pairs, 53);
  const SublayerRelevance by_metric =
      sublayer_relevance(forward, path_prompts(pairs), &metric, false, {});
  const SublayerRelevance by_answers =
      sublayer_relevance(forward, path_prompts(pairs), nullptr, true, {});
  for (std::size_t l = 0; l < 4; ++l) {
    EXPECT_NEAR(by_metric.attention[l], by_answers.attention[l], 1e-5);
    EXPECT_NEAR(by_metric.mlp[l], by_answers.mlp[l], 1e-5);
  }
}

TEST_F(Relevance, DependsOnNeitherMemoryNorThreadsButOnTheRules) {
  const SublayerRelevance plain = sublayer_relevance(forward, prompts, nullptr, false, {});
  const SublayerRelevance relp =
      sublayer_relevance(forward, prompts, nullptr, false, BackwardRules::relp());
  EXPECT_NE(plain.mlp, relp.mlp);
  for (const int threads : {1, 3}) {
    set_threads(threads);
    const SublayerRelevance again = sublayer_relevance(forward, prompts, nullptr, false, {}, 1);
    EXPECT_EQ(again.attention, plain.attention);
    EXPECT_EQ(again.mlp, plain.mlp);
  }
  set_threads(2);
  const Model bare = tiny_model(varied_configs().back());  // no MLPs
  Forward other(bare);
  EXPECT_TRUE(sublayer_relevance(other, random_path_prompts({4, 5}, 61, 1), nullptr, false, {})
                  .mlp.empty());
}

}  // namespace
}  // namespace lamina::testing
