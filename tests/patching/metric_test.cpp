#include "lamina/patching/metric.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "patching/support.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;

constexpr MetricKind kAll[] = {MetricKind::logit_diff, MetricKind::prob_diff, MetricKind::prob,
                               MetricKind::logprob,    MetricKind::nll,       MetricKind::kl};

Pair pair_of(std::vector<std::int32_t> correct, std::vector<std::int32_t> wrong,
             std::string id = "the pair") {
  Pair pair;
  pair.id = std::move(id);
  pair.clean = pair.corrupted = {0};
  pair.correct = std::move(correct);
  pair.wrong = std::move(wrong);
  return pair;
}

Metric metric_of(MetricKind kind, const Pair& pair, std::int64_t d_vocab) {
  return {kind, std::span(&pair, 1), d_vocab};
}

// Values and gradients of torch autograd in float64 (make_metric_goldens.py). Ours are computed in
// double; gradients are rounded to float once.
TEST(Metric, AgreesWithAutograd) {
  std::ifstream stream(LAMINA_SOURCE_DIR "/tests/patching/metrics.json");
  const auto cases = nlohmann::json::parse(stream);
  ASSERT_EQ(cases.size(), 5u);
  for (const auto& c : cases) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const auto logits = c["logits"].get<std::vector<float>>();
    const auto reference = c["reference"].get<std::vector<float>>();
    const Pair pair = pair_of(c["correct"], c["wrong"]);
    for (MetricKind kind : kAll) {
      const std::string name(metric_name(kind));
      SCOPED_TRACE(name);
      Metric metric = metric_of(kind, pair, static_cast<std::int64_t>(logits.size()));
      if (kind == MetricKind::kl) metric.set_reference(0, reference);
      const double want = c["values"][name];
      EXPECT_NEAR(metric.value(0, logits), want, 1e-12 * std::max(1.0, std::abs(want)));
      std::vector<float> gradient(logits.size(), 99.0F);
      EXPECT_EQ(metric.gradient(0, logits, gradient), metric.value(0, logits));
      const auto expected = c["gradients"][name].get<std::vector<double>>();
      // Half a unit in the last place of a float; and a probability is exp(logit − log-sum), of
      // which the exponent is rounded: its error is that of the largest logit.
      float largest = 0;
      for (float x : logits) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double rounding = 6.0e-8 * std::abs(expected[i]) + 2.2e-16 * largest;
        EXPECT_NEAR(gradient[i], expected[i], rounding) << i;
      }
    }
  }
}

// Central differences of the value, in the direction of every logit.
TEST(Metric, GradientIsTheSlope) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0.0F, 3.0F);
  constexpr std::int64_t kVocab = 29;
  for (int round = 0; round < 8; ++round) {
    std::vector<float> logits(kVocab), reference(kVocab);
    for (float& x : logits) x = normal(random);
    for (float& x : reference) x = normal(random);
    const Pair pair = pair_of({4, 17}, {2, 28, 0});
    for (MetricKind kind : kAll) {
      SCOPED_TRACE(metric_name(kind));
      Metric metric = metric_of(kind, pair, kVocab);
      if (kind == MetricKind::kl) metric.set_reference(0, reference);
      std::vector<float> gradient(kVocab);
      metric.gradient(0, logits, gradient);
      for (std::size_t i = 0; i < logits.size(); ++i) {
        std::vector<float> up = logits, down = logits;
        up[i] += 1.0F / 64;
        down[i] -= 1.0F / 64;
        const double step = double{up[i]} - down[i];
        const double slope = (metric.value(0, up) - metric.value(0, down)) / step;
        EXPECT_NEAR(gradient[i], slope, 1e-4) << i;  // third derivative × step² / 6
      }
    }
  }
}

TEST(Metric, DivergenceFromItselfIsExactlyZero) {
  const std::vector<float> logits = {1.5F, -3.0F, 0.25F, 1e4F};
  Metric metric = metric_of(MetricKind::kl, pair_of({}, {}), 4);
  metric.set_reference(0, logits);
  std::vector<float> gradient(4);
  EXPECT_EQ(metric.gradient(0, logits, gradient), 0.0);
  for (float g : gradient) EXPECT_EQ(g, 0.0F);
}

TEST(Metric, ValuesByHand) {
  const std::vector<float> logits = {0.0F, std::log(2.0F), std::log(5.0F), 0.0F};  // p ∝ 1, 2, 5, 1
  const Pair pair = pair_of({2, 1}, {0});
  EXPECT_NEAR(metric_of(MetricKind::logit_diff, pair, 4).value(0, logits), std::log(10.0) / 2,
              1e-7);
  EXPECT_NEAR(metric_of(MetricKind::prob_diff, pair, 4).value(0, logits), 6.0 / 9, 1e-7);
  EXPECT_NEAR(metric_of(MetricKind::logprob, pair, 4).value(0, logits), std::log(7.0 / 9), 1e-7);
  EXPECT_NEAR(metric_of(MetricKind::nll, pair, 4).value(0, logits), std::log(9.0 / 7), 1e-7);
}

TEST(Metric, Names) {
  for (MetricKind kind : kAll) EXPECT_EQ(parse_metric(metric_name(kind)), kind);
  expect_message(message_of<UsageError>([] { parse_metric("logitdiff"); }), "'logitdiff'",
                 "logit_diff, prob_diff, prob, logprob, nll, kl");
}

TEST(Metric, AnswersThatDoNotFit) {
  const auto made = [](MetricKind kind, Pair pair) {
    return message_of<UsageError>([&] { metric_of(kind, pair, 10); });
  };
  expect_message(made(MetricKind::logit_diff, pair_of({1}, {})), "pair 'the pair'", "logit_diff",
                 "wrong");
  expect_message(made(MetricKind::prob_diff, pair_of({1}, {})), "prob_diff", "wrong");
  expect_message(made(MetricKind::nll, pair_of({}, {})), "nll", "correct");
  expect_message(made(MetricKind::nll, pair_of({10}, {})), "answer 10", "0 to 9");
  expect_message(made(MetricKind::nll, pair_of({-1}, {})), "answer -1");
  expect_message(made(MetricKind::nll, pair_of({1}, {1})), "answer 1 is given twice");
  EXPECT_NO_THROW(metric_of(MetricKind::nll, pair_of({1}, {}), 10));
  EXPECT_NO_THROW(metric_of(MetricKind::kl, pair_of({}, {}), 10));
}

TEST(Metric, NonFiniteValuesNameThePair) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const Pair pair = pair_of({0}, {1});
  const std::vector<float> fine = {1, 2, 3};
  for (MetricKind kind : kAll) {
    for (float bad : {nan, infinity, -infinity}) {
      Metric metric = metric_of(kind, pair, 3);
      if (kind == MetricKind::kl) metric.set_reference(0, fine);
      const std::vector<float> logits = {bad, 2, 3};
      expect_message(message_of([&] { metric.value(0, logits); }), "pair 'the pair'",
                     metric_name(kind), "not finite");
      std::vector<float> out(3);
      expect_message(message_of([&] { metric.gradient(0, logits, out); }), "not finite");
    }
  }
  Metric kl = metric_of(MetricKind::kl, pair, 3);
  const std::vector<float> bad = {1, nan, 3};
  expect_message(message_of([&] { kl.set_reference(0, bad); }), "pair 'the pair'", "not finite");
}

TEST(Metric, CallsThatDoNotFit) {
  const Pair pair = pair_of({0}, {1});
  Metric diff = metric_of(MetricKind::logit_diff, pair, 3);
  Metric kl = metric_of(MetricKind::kl, pair, 3);
  const std::vector<float> logits = {1, 2, 3}, few = {1, 2};
  std::vector<float> room(2);
  expect_message(message_of<UsageError>([&] { diff.value(1, logits); }), "pair 1 of 1");
  expect_message(message_of<UsageError>([&] { diff.value(-1, logits); }), "pair -1");
  expect_message(message_of<UsageError>([&] { diff.value(0, few); }), "3 logits expected, found 2");
  expect_message(message_of<UsageError>([&] { diff.gradient(0, logits, room); }), "found 2");
  expect_message(message_of<UsageError>([&] { kl.value(0, logits); }), "no reference");
  expect_message(message_of<UsageError>([&] { diff.set_reference(0, logits); }), "logit_diff");
}

}  // namespace
}  // namespace lamina
