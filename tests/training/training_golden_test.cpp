// Learning curves against a plain PyTorch loop (make_training_goldens.py): same first weights, same
// batches, every activation and both losses.

#include "training/training_support.h"

namespace lamina::test {
namespace {

class Curves : public ::testing::TestWithParam<TrainingVariant> {};

// fp32 sums in another order differ by some 1e-7 of their size; Adam feeds that back for 60 steps.
// The first step has no history.
constexpr double kFirst = 2e-6, kLater = 5e-5;

TEST_P(Curves, EqualPyTorch) {
  const TrainingVariant& v = GetParam();
  const TrainingGoldens golden;
  const TrainingCase data(golden, v);
  TranscoderTrainer trainer(data.initial, v.options);
  trainer.center(data.batch_x(0), data.batch_y(0));
  const std::vector<float> loss = golden(v.name + ".loss"), l0 = golden(v.name + ".l0");
  const std::vector<float> explained = golden(v.name + ".explained_variance");
  ASSERT_GE(loss.size(), 50U);
  for (std::int64_t s = 0; s < kSteps; ++s) {
    SCOPED_TRACE(::testing::Message() << v.name << ", step " << s);
    const auto i = static_cast<std::size_t>(s);
    const TrainingStep step = trainer.step(data.batch_x(s), data.batch_y(s));
    const double tolerance = s == 0 ? kFirst : kLater;
    ASSERT_NEAR(step.loss, loss[i], tolerance * loss[i]);
    ASSERT_NEAR(step.l0, l0[i], 1e-6);
    ASSERT_NEAR(step.explained_variance, explained[i], tolerance);
    if (golden.has(v.name + ".dead")) {
      ASSERT_NEAR(step.dead, golden(v.name + ".dead")[i], 1e-6);
    }
  }
  if (!golden.has(v.name + ".end.W_enc")) return;
  for (const auto& [name, values] : state_of(trainer)) {
    if (!golden.has(v.name + ".end." + name)) continue;
    const std::vector<float> expected = golden(v.name + ".end." + name);
    ASSERT_EQ(values.size(), expected.size()) << name;
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], expected[i], 2e-4) << name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Training, Curves, ::testing::ValuesIn(training_variants()),
                         [](const auto& variant) { return variant.param.name; });

}  // namespace
}  // namespace lamina::test
