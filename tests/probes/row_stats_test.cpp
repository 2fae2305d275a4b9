#include "lens/row_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace lamina {
namespace {

std::vector<float> random_logits(std::size_t n, double spread, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.0, spread);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(normal(random));
  return x;
}

TEST(RowStats, ExpMatchesTheLibrary) {
  for (double x = 0; x > -708; x -= 0.37) {
    const double want = std::exp(x);
    EXPECT_NEAR(rows::exp_nonpositive(x), want, 1e-15 * want) << x;
  }
  EXPECT_EQ(rows::exp_nonpositive(0.0), 1.0);
  EXPECT_EQ(rows::exp_nonpositive(-709.0), 0.0);
  EXPECT_EQ(rows::exp_nonpositive(-std::numeric_limits<double>::infinity()), 0.0);
}

// Against sums in long double, written as the formulas stand.
TEST(RowStats, SoftmaxEntropyAndDivergences) {
  for (std::size_t n : {1U, 2U, 7U, 8U, 9U, 61U, 50257U}) {
    for (double spread : {0.01, 1.0, 30.0}) {
      const std::vector<float> a = random_logits(n, spread, n), b = random_logits(n, spread, n + 1);
      const auto logs = [](const std::vector<float>& x) {
        long double max = *std::max_element(x.begin(), x.end()), sum = 0;
        for (float v : x) sum += std::exp(v - max);
        std::vector<long double> out;
        for (float v : x) out.push_back(v - max - std::log(sum));
        return out;
      };
      const auto la = logs(a), lb = logs(b);
      long double entropy = 0, to = 0, from = 0;
      for (std::size_t i = 0; i < n; ++i) {
        entropy -= std::exp(la[i]) * la[i] / std::log(2.0L);
        to += std::exp(la[i]) * (la[i] - lb[i]);
        from += std::exp(lb[i]) * (lb[i] - la[i]);
      }
      const rows::Reference reference = rows::reference(b, 5);
      const rows::Comparison c = rows::compare(a, reference);
      // Terms are at most about 10·spread nats, each with a few rounding errors of double.
      const double tolerance = 1e-14 * (1 + 10 * spread);
      EXPECT_NEAR(c.softmax.entropy_bits(), static_cast<double>(entropy), tolerance) << n;
      EXPECT_NEAR(c.kl_to, static_cast<double>(to), tolerance) << n << " " << spread;
      EXPECT_NEAR(c.kl_from, static_cast<double>(from), tolerance) << n << " " << spread;
      EXPECT_NEAR(c.softmax.logprob(a[n / 2]), static_cast<double>(la[n / 2]), tolerance) << n;
      const rows::Softmax s = rows::softmax(a);
      EXPECT_EQ(s.log_sum, c.softmax.log_sum);
      EXPECT_EQ(s.mean, c.softmax.mean);
    }
  }
}

TEST(RowStats, ImpossibleTokensCountNothing) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {1.0F, -inf, 1.0F, -1e30F};
  const rows::Softmax s = rows::softmax(x);
  EXPECT_TRUE(s.valid());
  EXPECT_DOUBLE_EQ(s.entropy_bits(), 1.0);
  EXPECT_EQ(s.logprob(-inf), -inf);
}

TEST(RowStats, NonFiniteLogitsAreNoticed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (std::size_t at : {0U, 3U, 19U, 40U}) {
    std::vector<float> x(41, 0.5F);
    x[at] = nan;
    EXPECT_FALSE(rows::softmax(x).valid()) << at;
    x[at] = inf;
    EXPECT_FALSE(rows::softmax(x).valid()) << at;
  }
  EXPECT_FALSE(rows::softmax(std::vector<float>(20, -inf)).valid());
}

TEST(RowStats, TopKIsAStableSort) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> x(97);
    for (float& v : x) v = static_cast<float>(random() % 12);  // many ties
    std::vector<std::int32_t> order(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    std::vector<std::int32_t> top(13);
    rows::top_k(x, top);
    EXPECT_TRUE(std::equal(top.begin(), top.end(), order.begin()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(rows::rank(x, order[i]), static_cast<std::int32_t>(i) + 1);
    }
  }
}

}  // namespace
}  // namespace lamina
