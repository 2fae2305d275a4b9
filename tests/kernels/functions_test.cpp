// Errors of the elementary functions against double, on a fine grid of the whole float range.
#include "kernels/support.h"

namespace lamina::kernels {
namespace {

/// Every `step`-th float (by bit pattern) between ±bound, both signs.
Floats grid(float bound, std::uint32_t step) {
  Floats out;
  const auto last = std::bit_cast<std::uint32_t>(bound);
  for (std::uint32_t b = 0; b <= last; b += step) {
    out.push_back(std::bit_cast<float>(b));
    out.push_back(-std::bit_cast<float>(b));
  }
  return out;
}

template <class Exact>
void expect_within(const Floats& x, const Floats& y, double limit, Exact exact) {
  double worst = 0;
  float at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double e = ulps(y[i], exact(static_cast<double>(x[i])));
    if (e > worst) worst = e, at = x[i];
  }
  EXPECT_LE(worst, limit) << "at " << std::hexfloat << at;
  ::testing::Test::RecordProperty("worst_ulps", std::to_string(worst));
  std::printf("  worst %.3f ulp at %.9g\n", worst, static_cast<double>(at));
}

TEST(Functions, Exp) {
  const Floats x = grid(120.0f, 997);
  const Floats y = everywhere_the_same([&] {
    Floats out = x;
    exp_inplace(out.data(), static_cast<std::int64_t>(out.size()));
    return out;
  });
  expect_within(x, y, 1.0, [](double v) { return std::exp(v); });
}

TEST(Functions, ExpAtTheEnds) {
  Floats x = {-INFINITY, INFINITY, std::nanf(""), -1e30f, 1e30f, 0.0f, -0.0f, 88.72283f, 88.7229f};
  exp_inplace(x.data(), static_cast<std::int64_t>(x.size()));
  EXPECT_EQ(x[0], 0.0f);
  EXPECT_EQ(x[1], INFINITY);
  EXPECT_TRUE(std::isnan(x[2]));
  EXPECT_EQ(x[3], 0.0f);
  EXPECT_EQ(x[4], INFINITY);
  EXPECT_EQ(x[5], 1.0f);
  EXPECT_EQ(x[6], 1.0f);
  EXPECT_TRUE(std::isfinite(x[7]));
  EXPECT_EQ(x[8], INFINITY);
}

TEST(Functions, Tanh) {
  const Floats x = grid(1e4f, 997);
  const Floats y = everywhere_the_same([&] {
    Floats out(x.size());
    table().tanh(x.data(), static_cast<std::int64_t>(x.size()), out.data());
    return out;
  });
  expect_within(x, y, 2.0, [](double v) { return std::tanh(v); });
}

TEST(Functions, Erf) {
  const Floats x = grid(100.0f, 997);
  const Floats y = everywhere_the_same([&] {
    Floats out(x.size());
    table().erf(x.data(), static_cast<std::int64_t>(x.size()), out.data());
    return out;
  });
  expect_within(x, y, 2.0, [](double v) { return std::erf(v); });
}

TEST(Functions, NonFiniteArguments) {
  const Floats x = {INFINITY, -INFINITY, std::nanf("")};
  Floats y(3);
  table().tanh(x.data(), 3, y.data());
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], -1.0f);
  EXPECT_TRUE(std::isnan(y[2]));
  table().erf(x.data(), 3, y.data());
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], -1.0f);
  EXPECT_TRUE(std::isnan(y[2]));
}

TEST(Functions, Softcap) {
  const Floats x = random_floats(1001, 3, 60.0f);
  const Floats y = everywhere_the_same([&] {
    Floats out = x;
    softcap(out.data(), static_cast<std::int64_t>(out.size()), 30.0f);
    return out;
  });
  expect_within(x, y, 4.0, [](double v) { return 30.0 * std::tanh(v / 30.0); });
}

}  // namespace
}  // namespace lamina::kernels
