// Agreement statistics against numpy and scipy (make_agreement_goldens.py), and their limits.

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lamina/core/error.h"
#include "lamina/patching/attribution.h"

namespace lamina {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<double> numbers(const nlohmann::json& list) {
  std::vector<double> out;
  for (const auto& v : list) out.push_back(v.is_null() ? kNan : v.get<double>());
  return out;
}

void expect_same(const std::string& what, const Agreement::Value& got, const nlohmann::json& want) {
  const std::vector<double> all = numbers(want);
  const double values[] = {got.value, got.low, got.high};
  for (std::size_t i = 0; i < 3; ++i) {
    if (std::isnan(all[i])) {
      EXPECT_TRUE(std::isnan(values[i])) << what << " " << i << ": " << values[i];
    } else {
      // "large offset" subtracts means of 10⁶ from values of 1: nine digits are left.
      EXPECT_NEAR(values[i], all[i], 1e-8) << what << " " << i;
    }
  }
}

TEST(Agreement, MatchesScipy) {
  std::ifstream file(std::string(LAMINA_SOURCE_DIR) + "/tests/patching/goldens/agreement.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  ASSERT_EQ(cases.size(), 6u);
  for (const auto& c : cases) {
    const std::string name = c["name"];
    const Agreement got =
        agreement(numbers(c["estimate"]), numbers(c["exact"]), c["k"], c["resamples"], c["seed"]);
    EXPECT_EQ(got.nodes, c["nodes"].get<std::int64_t>()) << name;
    EXPECT_EQ(got.k, std::min(c["k"].get<std::int64_t>(), got.nodes)) << name;
    expect_same(name + " pearson", got.pearson, c["pearson"]);
    expect_same(name + " spearman", got.spearman, c["spearman"]);
    expect_same(name + " sign", got.sign, c["sign"]);
    expect_same(name + " top_k", got.top_k, c["top_k"]);
  }
}

TEST(Agreement, SameWithAnyNumberOfThreads) {
  std::vector<double> x, y;
  for (int i = 0; i < 300; ++i) {
    x.push_back(std::sin(i));
    y.push_back(std::sin(i) + 0.7 * std::cos(17 * i));
  }
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Agreement one = agreement(x, y, 10, 300, 9);
  omp_set_num_threads(3);
  const Agreement three = agreement(x, y, 10, 300, 9);
  omp_set_num_threads(before);
  EXPECT_EQ(one.pearson.low, three.pearson.low);
  EXPECT_EQ(one.pearson.high, three.pearson.high);
  EXPECT_EQ(one.spearman.low, three.spearman.low);
  EXPECT_EQ(one.top_k.high, three.top_k.high);
  EXPECT_LT(one.pearson.low, one.pearson.value);
  EXPECT_LT(one.pearson.value, one.pearson.high);
  EXPECT_NE(one.pearson.low, agreement(x, y, 10, 300, 10).pearson.low);
}

TEST(Agreement, ConstantListsHaveNoCorrelation) {
  const std::vector<double> constant(20, 0.1);
  std::vector<double> y(20);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::cos(static_cast<double>(i));
  const Agreement got = agreement(constant, y, 3, 20, 1);
  EXPECT_TRUE(std::isnan(got.pearson.value));
  EXPECT_TRUE(std::isnan(got.pearson.low));
  EXPECT_TRUE(std::isnan(got.spearman.value));
  EXPECT_FALSE(std::isnan(got.sign.value));
}

TEST(Agreement, NothingToCompare) {
  const std::vector<double> none(3, kNan), zeros(3, 0.0);
  EXPECT_EQ(agreement(none, zeros, 2, 10, 1).nodes, 0);
  EXPECT_TRUE(std::isnan(agreement(none, zeros, 2, 10, 1).top_k.value));
  // Zero on both sides: no sign to agree about.
  EXPECT_TRUE(std::isnan(agreement(zeros, zeros, 2, 10, 1).sign.value));
}

TEST(Agreement, RefusesWhatCannotBeCompared) {
  const std::vector<double> two(2, 1.0), three(3, 1.0);
  EXPECT_THROW(agreement(two, three, 1, 0, 1), UsageError);
  EXPECT_THROW(agreement(two, two, 0, 0, 1), UsageError);
  EXPECT_THROW(agreement(two, two, 1, -1, 1), UsageError);
  const Agreement plain = agreement(two, two, 1, 0, 1);
  EXPECT_TRUE(std::isnan(plain.sign.low));
  EXPECT_EQ(plain.sign.value, 1.0);
}

}  // namespace
}  // namespace lamina
