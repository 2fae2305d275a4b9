// Integrated gradients of the answer over what layers write: against a transcription of the
// authors' code with autograd in double precision, and their sum.

#include "lamina/probes/depth_gradients.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "effects_support.h"
#include "lamina/core/error.h"
#include "lamina/core/threads.h"

namespace lamina {
namespace {

using testing::as_prompts;
using testing::effects_golden;
using testing::golden_model;

std::vector<Prompt> golden_prompts() {
  std::vector<Prompt> prompts = as_prompts(effects_golden()["prompts"]);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    prompts[p].given -= effects_golden()["answers"][p].get<std::int64_t>();
  }
  return prompts;
}

TEST(DepthGradients, EqualTheAuthorsAlgorithm) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = golden_prompts();
  DepthGradientOptions options;
  options.steps = effects_golden()["gradient_steps"];
  options.prompts = 3;
  options.batch_tokens = 100;
  for (const auto& [part, want] : effects_golden()["gradients"].items()) {
    options.part = parse_effect_part(part);
    const DepthGradients r = measure_depth_gradients(forward, prompts, options);
    ASSERT_EQ(r.maps.size(), 3u);
    for (std::size_t p = 0; p < 3; ++p) {
      const std::size_t n = prompts[p].ids.size();
      double largest = 0;
      for (const auto& row : want[p]) {
        for (const double v : row) largest = std::max(largest, std::abs(v));
      }
      ASSERT_GT(largest, 0.0);
      for (std::size_t l = 0; l < 3; ++l) {
        for (std::size_t t = 0; t < n; ++t) {
          // Gradients in float against double: relative to the prompt's largest.
          EXPECT_NEAR(r.maps[p].attribution[l * n + t], want[p][l][t].get<double>(), 2e-5 * largest)
              << part << ", prompt " << p << ", layer " << l << ", token " << t;
        }
      }
    }
  }
}

// The sum over tokens is F − F(baseline); the error of the left Riemann sum falls as 1/steps.
TEST(DepthGradients, AddUpToTheChangeOfTheAnswer) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = golden_prompts();
  std::vector<double> missing;
  for (const std::int64_t steps : {32, 512}) {
    DepthGradientOptions options;
    options.steps = steps;
    const DepthGradients r = measure_depth_gradients(forward, prompts, options);
    const DepthGradientMap& map = r.maps.at(0);
    const std::size_t n = prompts[0].ids.size();
    double worst = 0;
    for (std::size_t l = 0; l < 3; ++l) {
      double sum = 0;
      for (std::size_t t = 0; t < n; ++t) sum += map.attribution[l * n + t];
      worst = std::max(worst, std::abs(sum - (map.probability - map.baseline[l])));
    }
    missing.push_back(worst);
  }
  EXPECT_LT(missing[1], missing[0] / 8);  // 16 in the limit
  EXPECT_LT(missing[1], 1e-3);
}

TEST(DepthGradients, DependOnNeitherThreadsNorBatches) {
  const Model model = golden_model();
  Forward forward(model);
  std::vector<Prompt> prompts = golden_prompts();
  DepthGradientOptions options;
  options.steps = 8;
  const int before = threads();
  set_threads(1);
  const DepthGradients one = measure_depth_gradients(forward, prompts, options);
  set_threads(2);
  options.batch_tokens = 70;
  const DepthGradients two = measure_depth_gradients(forward, prompts, options);
  set_threads(before);
  EXPECT_EQ(one.maps[0].attribution, two.maps[0].attribution);
  EXPECT_EQ(one.maps[0].baseline, two.maps[0].baseline);
  // A target is an answer that is not among the tokens.
  Prompt target = prompts[0];
  target.ids.pop_back();
  target.target = prompts[0].ids.back();
  target.given = static_cast<std::int64_t>(target.ids.size());
  EXPECT_GT(measure_depth_gradients(forward, {&target, 1}, options).maps[0].probability, 0.0);
  target.target.reset();
  EXPECT_THROW(measure_depth_gradients(forward, {&target, 1}, options), Error);
}

}  // namespace
}  // namespace lamina
