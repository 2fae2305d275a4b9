// Gradients of the first step: against PyTorch's autograd, and against differences of the loss.

#include "training/training_support.h"

namespace lamina::test {
namespace {

// With β₁ = β₂ = 0 Adam steps by rate·g/(|g| + ε); with rate = ε far above |g| that is g itself.
// The decoder's rows stay free: its constraint would change the gradient.
TrainingOptions plain_descent(TrainingOptions options) {
  options.beta1 = options.beta2 = 0;
  options.epsilon = options.learning_rate = 1e9;
  options.rate_warmup = options.rate_decay = 0;
  return options;
}

class Gradients : public ::testing::TestWithParam<TrainingVariant> {};

TEST_P(Gradients, EqualAutograd) {
  const TrainingVariant& v = GetParam();
  const TrainingGoldens golden;
  const TrainingCase data(golden, v);
  TrainingOptions options = plain_descent(v.options);
  TranscoderTrainer trainer(data.initial, options);
  trainer.center(data.batch_x(0), data.batch_y(0));
  const auto before = state_of(trainer);
  trainer.step(data.batch_x(0), data.batch_y(0));
  int compared = 0;
  for (const auto& [name, after] : state_of(trainer)) {
    if (!golden.has(v.name + ".gradient." + name)) continue;
    // A row renormalised after its step cannot be subtracted; the curves cover it.
    if (name == "W_dec" && options.unit_decoder) continue;
    const std::vector<float> expected = golden(v.name + ".gradient." + name);
    const std::vector<float>& start = before.at(name);
    ASSERT_EQ(after.size(), expected.size());
    double largest = 1e-3;
    for (float g : expected) largest = std::max(largest, std::abs(double{g}));
    for (std::size_t i = 0; i < after.size(); ++i) {
      const double gradient = double{start[i]} - after[i];
      // 1e-6 of the weight is lost in the subtraction.
      ASSERT_NEAR(gradient, expected[i],
                  2e-5 * largest + 2e-6 * (std::abs(double{start[i]}) + std::abs(expected[i])))
          << name << " " << i;
    }
    ++compared;
  }
  EXPECT_GE(compared, 3);
}

INSTANTIATE_TEST_SUITE_P(Training, Gradients, ::testing::ValuesIn(training_variants()),
                         [](const auto& variant) { return variant.param.name; });

// The smooth variants: loss(w + h) − loss(w − h) against 2h·gradient, along random directions.
TEST(Training, GradientsEqualDifferences) {
  const TrainingGoldens golden;
  for (const TrainingVariant& v : training_variants()) {
    const bool smooth = v.config.activation == FeatureActivation::relu ||
                        v.config.activation == FeatureActivation::topk;
    if (!smooth || v.options.dead != DeadFeatures::none) continue;
    TrainingOptions options = plain_descent(v.options);
    options.unit_decoder = false;
    const TrainingCase data(golden, v);
    TranscoderTrainer trainer(data.initial, options);
    trainer.center(data.batch_x(0), data.batch_y(0));
    const auto before = state_of(trainer);
    trainer.step(data.batch_x(0), data.batch_y(0));
    const auto after = state_of(trainer);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (const char* name : {"W_enc", "W_dec", "b_enc", "b_dec"}) {
      SCOPED_TRACE(v.name + " " + name);
      const std::vector<float>& start = before.at(name);
      std::vector<float> direction(start.size());
      for (float& d : direction) d = normal(random);
      double slope = 0;
      for (std::size_t i = 0; i < start.size(); ++i) {
        slope += (double{start[i]} - after.at(name)[i]) * direction[i];
      }
      const auto loss_at = [&](double h) {
        TranscoderTrainer moved(data.initial, options);
        moved.center(data.batch_x(0), data.batch_y(0));
        moved.state([&](const std::string& array, std::vector<float>& values) {
          if (array != name) return;
          for (std::size_t i = 0; i < values.size(); ++i) {
            values[i] = static_cast<float>(values[i] + h * direction[i]);
          }
        });
        return moved.step(data.batch_x(0), data.batch_y(0)).loss;
      };
      // Small enough that hardly an entry crosses its kink; fp32 leaves some 1e-7/h of the loss.
      const double h = 1e-4;
      const double difference = (loss_at(h) - loss_at(-h)) / (2 * h);
      EXPECT_NEAR(difference, slope, 2e-2 * std::abs(slope) + 1e-3 * loss_at(0));
    }
  }
}

}  // namespace
}  // namespace lamina::test
