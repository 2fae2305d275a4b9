#include "kernels/support.h"

namespace lamina::kernels {
namespace {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

double exact(Activation act, double x) {
  switch (act) {
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::quick_gelu:
      return x * sigmoid(1.702 * x);
    default:
      return x * sigmoid(x);
  }
}

constexpr Activation kElementwise[] = {Activation::relu, Activation::gelu, Activation::gelu_tanh,
                                       Activation::quick_gelu, Activation::silu};

// Relative to |x|, the natural size of the result: gelu and friends vanish for negative x, where a
// relative error of the result itself says nothing about what is added to the residual.
TEST(Activations, AgreeWithDouble) {
  Floats x = random_floats(20'000, 1, 3.0f);
  for (int i = -200; i <= 200; ++i) x.push_back(static_cast<float>(i) * 0.1f);
  const auto n = static_cast<std::int64_t>(x.size());
  for (Activation act : kElementwise) {
    const Floats y = everywhere_the_same([&] {
      Floats out(x.size());
      activate(act, x.data(), 1, n, out.data());
      return out;
    });
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double tolerance = 3 * 0x1p-24 * std::fabs(static_cast<double>(x[i])) + 1e-38;
      const double error = std::fabs(y[i] - exact(act, x[i]));
      worst = std::max(worst, error / tolerance);
      ASSERT_LE(error, tolerance) << "activation " << static_cast<int>(act) << " of " << x[i]
                                  << ": " << y[i] << ", exactly " << exact(act, x[i]);
    }
    std::printf("  activation %d: worst %.3f of the tolerance\n", static_cast<int>(act), worst);
  }
}

TEST(Activations, GatedIsTheProductAndMayBeInPlace) {
  const std::int64_t rows = 7, d = 1003;
  const Floats gate = random_floats(rows * d, 2), up = random_floats(rows * d, 3);
  for (Activation act : kElementwise) {
    Floats expected(gate.size());
    activate(act, gate.data(), rows, d, expected.data());
    for (std::size_t i = 0; i < up.size(); ++i) expected[i] *= up[i];
    const Floats y = everywhere_the_same([&] {
      Floats out = gate;
      activate_gated(act, out.data(), up.data(), rows, d, out.data());
      return out;
    });
    EXPECT_TRUE(same_bits(expected, y)) << static_cast<int>(act);
  }
}

TEST(Activations, SoluIsXTimesSoftmax) {
  const std::int64_t rows = 5, d = 83;
  const Floats x = random_floats(rows * d, 4, 2.0f);
  const Floats y = everywhere_the_same([&] {
    Floats out = x;
    activate(Activation::solu, out.data(), rows, d, out.data());
    return out;
  });
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::int64_t i = 0; i < d; ++i) sum += std::exp(static_cast<double>(x[r * d + i]));
    for (std::int64_t i = 0; i < d; ++i) {
      const double v = x[r * d + i], p = std::exp(v) / sum;
      // exp's argument x − max is rounded once: its size times ε, plus a few roundings.
      ASSERT_NEAR(y[r * d + i], v * p, std::fabs(v * p) * 0x1p-24 * 20) << r << ' ' << i;
    }
  }
}

TEST(Activations, NanStaysNan) {
  Floats x(40, 1.0f);
  x[5] = std::nanf("");
  for (Activation act : kElementwise) {
    Floats y(40);
    activate(act, x.data(), 1, 40, y.data());
    for (int i = 0; i < 40; ++i) EXPECT_EQ(std::isnan(y[i]), i == 5) << static_cast<int>(act);
  }
}

TEST(Elementwise, Add) {
  const Floats y = random_floats(30'001, 6);
  Floats x = random_floats(30'001, 5);
  Floats expected = x;
  for (std::size_t i = 0; i < x.size(); ++i) expected[i] = x[i] + y[i];
  add(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  EXPECT_TRUE(same_bits(expected, x));
}

}  // namespace
}  // namespace lamina::kernels
