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

}  // namespace
}  // namespace lamina::testing
