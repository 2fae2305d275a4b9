// Distance of block Jacobians from the identity: exact against autograd, estimates against exact.

#include "lamina/probes/block_jacobian.h"

#include <gtest/gtest.h>

#include <cmath>

#include "effects_support.h"
#include "lamina/core/threads.h"

namespace lamina {
namespace {

using testing::as_prompts;
using testing::effects_golden;
using testing::golden_model;
using testing::random_prompts;
using testing::tiny_model;

TEST(BlockJacobian, ExactEqualsAutograd) {
  const Model model = golden_model();
  Forward forward(model);
  const auto& golden = effects_golden();
  const std::vector<Prompt> prompts = as_prompts(golden["jacobian_prompts"]);
  JacobianOptions options;
  options.probes = 0;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    const BlockJacobian r = measure_block_jacobian(forward, {&prompts[p], 1}, options);
    EXPECT_TRUE(r.exact);
    for (std::size_t l = 0; l < 3; ++l) {
      const double d = static_cast<double>(model.config().d_model);
      const double own = std::sqrt(golden["jacobian"][p][0][l].get<double>() / d);
      const double all = std::sqrt(golden["jacobian"][p][1][l].get<double>() / d);
      // Gradients in float against double.
      EXPECT_NEAR(r.own[l], own, 1e-5 * own) << "prompt " << p << ", layer " << l;
      EXPECT_NEAR(r.all[l], all, 1e-5 * all) << "prompt " << p << ", layer " << l;
      EXPECT_EQ(r.own_error[l], 0.0);
    }
  }
  // Both prompts in one batch: the mean of their squares, by tokens.
  const BlockJacobian both = measure_block_jacobian(forward, prompts, options);
  EXPECT_EQ(both.tokens, 11);
  for (std::size_t l = 0; l < 3; ++l) {
    const double square = (golden["jacobian"][0][0][l].get<double>() * 7 +
                           golden["jacobian"][1][0][l].get<double>() * 4) /
                          11 / static_cast<double>(model.config().d_model);
    EXPECT_NEAR(both.own[l], std::sqrt(square), 1e-5 * std::sqrt(square));
  }
}

// The estimates agree with the exact values within what their standard errors say, and these are
// small enough to mean something and no smaller than the spread between seeds.
TEST(BlockJacobian, EstimatesAgreeWithExact) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = as_prompts(effects_golden()["jacobian_prompts"]);
  JacobianOptions options;
  options.probes = 0;
  const BlockJacobian exact = measure_block_jacobian(forward, prompts, options);
  options.probes = 64;
  constexpr int kSeeds = 20;
  double own_chi = 0, all_chi = 0;  // mean of squared deviations in standard errors: about 1
  for (int seed = 0; seed < kSeeds; ++seed) {
    options.seed = static_cast<std::uint64_t>(seed);
    const BlockJacobian r = measure_block_jacobian(forward, prompts, options);
    for (std::size_t l = 0; l < 3; ++l) {
      EXPECT_GT(r.own_error[l], 0.0);
      EXPECT_LT(r.own_error[l], 0.15 * exact.own[l]) << l;
      EXPECT_LT(r.all_error[l], 0.10 * exact.all[l]) << l;
      const double own = (r.own[l] - exact.own[l]) / r.own_error[l];
      const double all = (r.all[l] - exact.all[l]) / r.all_error[l];
      EXPECT_LT(std::abs(own), 4.5) << "seed " << seed << ", layer " << l;
      EXPECT_LT(std::abs(all), 4.5) << "seed " << seed << ", layer " << l;
      own_chi += own * own / (3 * kSeeds);
      all_chi += all * all / (3 * kSeeds);
    }
  }
  EXPECT_GT(own_chi, 0.4);
  EXPECT_LT(own_chi, 2.0);
  EXPECT_GT(all_chi, 0.4);
  EXPECT_LT(all_chi, 2.0);
}

// The Jacobian behind the distances is the derivative of the block: vᵀ(J − I)u against differences.
TEST(BlockJacobian, IsTheDerivativeOfTheBlock) {
  const Model model = tiny_model({.label = "one layer", .n_layers = 1, .d_model = 12});
  Forward forward(model);
  const std::int64_t d = 12, n = 3;
  Prompt prompt = as_prompts(random_prompts({n}, 61, 4))[0];
  Batch batch;
  batch.add(prompt.ids);
  RunState state;
  forward.run(batch, {}, {.keep = &state});
  const Step step{.layer = 0};
  const auto block = [&](const std::vector<float>& x) {
    const auto out = forward.run(batch, {}, {.steps = {&step, 1}, .start = x});
    return std::vector<float>(out.begin(), out.end());
  };
  // Central differences; h balances truncation (h²) and rounding (ε/h) of float.
  constexpr float kStep = 4e-3f;
  double own = 0, all = 0;
  for (std::int64_t in = 0; in < n * d; ++in) {
    std::vector<float> up = state.resid[0], down = up;
    up[static_cast<std::size_t>(in)] += kStep;
    down[static_cast<std::size_t>(in)] -= kStep;
    const double width =
        double{up[static_cast<std::size_t>(in)]} - down[static_cast<std::size_t>(in)];
    const auto a = block(up), b = block(down);
    for (std::int64_t out = 0; out < n * d; ++out) {
      const auto o = static_cast<std::size_t>(out);
      const double j = (double{a[o]} - b[o]) / width - (in == out);
      all += j * j;
      if (in / d == out / d) own += j * j;
    }
  }
  JacobianOptions options;
  options.probes = 0;
  const BlockJacobian r = measure_block_jacobian(forward, {&prompt, 1}, options);
  EXPECT_NEAR(r.own[0], std::sqrt(own / (n * d)), 1e-3 * r.own[0]);
  EXPECT_NEAR(r.all[0], std::sqrt(all / (n * d)), 1e-3 * r.all[0]);
}

TEST(BlockJacobian, AnIdentityBlockIsAtDistanceZero) {
  const Model model = testing::with_identity_layer({.label = "identity", .n_layers = 4}, 2);
  Forward forward(model);
  const auto prompts = as_prompts(random_prompts({9, 5}, 61, 2));
  const BlockJacobian r = measure_block_jacobian(forward, prompts);
  EXPECT_EQ(r.own[2], 0.0);
  EXPECT_EQ(r.all[2], 0.0);
  EXPECT_EQ(r.own_error[2], 0.0);
  EXPECT_GT(r.own[1], 0.1);
  EXPECT_GT(r.all[3], 0.1);
}

TEST(BlockJacobian, DependsOnNeitherThreadsNorBatches) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = as_prompts(effects_golden()["prompts"]);
  JacobianOptions options;
  options.probes = 3;
  const int before = threads();
  set_threads(1);
  const BlockJacobian one = measure_block_jacobian(forward, prompts, options);
  set_threads(2);
  const BlockJacobian two = measure_block_jacobian(forward, prompts, options);
  options.batch_tokens = 40;
  const BlockJacobian apart = measure_block_jacobian(forward, prompts, options);
  set_threads(before);
  EXPECT_EQ(one.own, two.own);
  EXPECT_EQ(one.all_error, two.all_error);
  EXPECT_EQ(one.own, apart.own);
  EXPECT_EQ(one.all, apart.all);
  options.probes = 1;
  EXPECT_TRUE(std::isnan(measure_block_jacobian(forward, prompts, options).own_error[0]));
  options.seed = 1;
  EXPECT_NE(measure_block_jacobian(forward, prompts, options).own, one.own);
}

}  // namespace
}  // namespace lamina
