#include "lamina/core/math.h"

#include <algorithm>
#include <limits>

#include "kernels/support.h"

namespace lamina::kernels {
namespace {

struct Exact {
  double log_sum, entropy;
  std::vector<double> log_p;
};

Exact exact(const Floats& x) {
  const double top = *std::max_element(x.begin(), x.end());
  long double sum = 0;
  for (float v : x) sum += std::exp(static_cast<long double>(v) - top);
  Exact e{static_cast<double>(top + std::log(sum)), 0, {}};
  long double entropy = 0;
  for (float v : x) {
    const double l = v - e.log_sum;
    e.log_p.push_back(l);
    if (std::exp(l) > 0) entropy -= std::exp(static_cast<long double>(l)) * l;
  }
  e.entropy = static_cast<double>(entropy);
  return e;
}

double exact_kl(const Exact& p, const Exact& q) {
  long double sum = 0;
  for (std::size_t i = 0; i < p.log_p.size(); ++i) {
    if (std::exp(p.log_p[i]) > 0) {
      sum += std::exp(static_cast<long double>(p.log_p[i])) * (p.log_p[i] - q.log_p[i]);
    }
  }
  return static_cast<double>(sum);
}

// A term's exp errs by half an ulp or so of float; the sum cannot err by more than all of them.
TEST(Statistics, AgreeWithLongDouble) {
  for (std::size_t n : {1, 5, 16, 100, 49152, 262144}) {
    const Floats x = random_floats(n, 1, 4.0f), y = random_floats(n, 2, 3.0f);
    const Exact ex = exact(x), ey = exact(y);
    std::vector<double> first;
    for (const std::string& name : isas()) {
      select_isa(name.c_str());
      const double lx = math::log_sum_exp(x), ly = math::log_sum_exp(y);
      EXPECT_NEAR(lx, ex.log_sum, 0x1p-23) << n;
      EXPECT_NEAR(math::entropy(x, lx), ex.entropy, 0x1p-22 * (1 + ex.entropy)) << n;
      const double kl = exact_kl(ex, ey);
      EXPECT_NEAR(math::kl_divergence(x, lx, y, ly), kl, 0x1p-22 * (1 + kl) * 4) << n;
      EXPECT_NEAR(math::kl_divergence(x, lx, x, lx), 0.0, 1e-15) << n;
      const std::vector<double> values = {lx, ly, math::entropy(x, lx),
                                          math::kl_divergence(x, lx, y, ly)};
      if (first.empty()) first = values;
      EXPECT_EQ(first, values) << name << ' ' << n;
    }
    select_isa("");
  }
}

TEST(Statistics, MaskedLogitsCountNothing) {
  const float inf = std::numeric_limits<float>::infinity();
  Floats x = {1.0f, 1.0f, -inf, -inf}, y = {1.0f, 1.0f, 1.0f, 1.0f};
  const double lx = math::log_sum_exp(x), ly = math::log_sum_exp(y);
  EXPECT_NEAR(lx, 1 + std::log(2.0), 1e-7);
  EXPECT_NEAR(math::entropy(x, lx), std::log(2.0), 1e-7);
  EXPECT_NEAR(math::kl_divergence(x, lx, y, ly), std::log(2.0), 1e-7);
  EXPECT_EQ(math::kl_divergence(y, ly, x, lx), INFINITY);
  EXPECT_NEAR(math::kl_divergence(x, lx, x, lx), 0, 1e-12);
  EXPECT_EQ(math::log_sum_exp(Floats(5, -inf)), -INFINITY);
  EXPECT_EQ(math::log_sum_exp({}), -INFINITY);
  EXPECT_EQ(math::log_sum_exp(Floats{0.0f, inf}), INFINITY);
  EXPECT_TRUE(std::isnan(math::log_sum_exp(Floats{0.0f, std::nanf(""), 1.0f})));
  EXPECT_TRUE(std::isnan(math::log_sum_exp(Floats{inf, std::nanf(""), 1.0f})));
  EXPECT_THROW(math::kl_divergence(x, lx, Floats(3), 0.0), Error);
}

TEST(Statistics, LogSumExpOfRows) {
  const std::int64_t rows = 5, n = 9000, ld = 9007;
  const Floats x = random_floats(rows * ld, 3);
  const Floats out = everywhere_the_same([&] {
    Floats o(rows);
    log_sum_exp(x.data(), ld, rows, n, o.data());
    return o;
  });
  for (std::int64_t r = 0; r < rows; ++r) {
    EXPECT_EQ(out[r], static_cast<float>(math::log_sum_exp(std::span(x).subspan(r * ld, n))));
  }
}

TEST(TopK, IsTheHeadOfTheStableSort) {
  for (std::size_t n : {1, 2, 63, 64, 65, 1000, 5000}) {
    for (float spread : {0.01f, 1.0f, 1e6f}) {
      Floats x = random_floats(n, 4, spread);
      for (float& v : x) v = std::round(v * 100);  // ties
      std::vector<std::int32_t> order(n);
      for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::int32_t>(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](std::int32_t a, std::int32_t b) { return x[a] > x[b]; });
      for (std::size_t k : {std::size_t{0}, std::size_t{1}, std::min<std::size_t>(n, 10), n}) {
        std::vector<std::int32_t> ids(k);
        Floats values(k);
        math::top_k(x, ids, values);
        EXPECT_EQ(ids, std::vector<std::int32_t>(order.begin(), order.begin() + k))
            << n << ' ' << k;
        for (std::size_t i = 0; i < k; ++i) EXPECT_EQ(values[i], x[ids[i]]);
      }
    }
  }
}

TEST(TopK, NanComesLast) {
  Floats x(200, std::nanf(""));
  x[150] = -INFINITY;
  x[7] = -3.0f;
  std::vector<std::int32_t> ids(3);
  Floats values(3);
  math::top_k(x, ids, values);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{7, 150, 0}));
  std::vector<std::int32_t> many(201);
  Floats more(201);
  EXPECT_THROW(math::top_k(x, many, more), Error);
}

}  // namespace
}  // namespace lamina::kernels
