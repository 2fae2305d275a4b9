#include "kernels/support.h"

namespace lamina::kernels {
namespace {

struct Shape {
  std::int64_t rows, n_in, n_out;
};

PackedMatrix pack(const Floats& w, std::int64_t n_out, std::int64_t n_in) {
  PackedMatrix m(n_out, n_in);
  m.set_rows(0, n_out, w.data());
  return m;
}

Floats product(const Floats& x, std::int64_t rows, std::int64_t n_in, const PackedMatrix& w,
               const float* bias) {
  Floats y(static_cast<std::size_t>(rows * w.n_out()), -7.0f);
  multiply(x.data(), n_in, rows, w, bias, y.data(), w.n_out());
  return y;
}

// The definition, not an approximation: one fma chain over k from 0, then the bias.
TEST(Multiply, IsTheSequentialChainBitForBit) {
  for (const Shape s : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{7, 17, 31}, Shape{13, 16, 32},
                        Shape{14, 33, 33}, Shape{15, 64, 64}, Shape{29, 100, 97},
                        Shape{70, 129, 70}, Shape{5, 2500, 65}, Shape{40, 1030, 50}}) {
    const Floats x = random_floats(static_cast<std::size_t>(s.rows * s.n_in), 1);
    const Floats w = random_floats(static_cast<std::size_t>(s.n_out * s.n_in), 2);
    const Floats bias = random_floats(static_cast<std::size_t>(s.n_out), 3);
    const PackedMatrix packed = pack(w, s.n_out, s.n_in);
    for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
      Floats expected;
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t o = 0; o < s.n_out; ++o) {
          float sum = 0;
          for (std::int64_t k = 0; k < s.n_in; ++k) {
            sum = std::fma(x[r * s.n_in + k], w[o * s.n_in + k], sum);
          }
          expected.push_back(b == nullptr ? sum : sum + b[o]);
        }
      }
      const Floats y = everywhere_the_same([&] { return product(x, s.rows, s.n_in, packed, b); });
      EXPECT_TRUE(same_bits(expected, y)) << s.rows << " × " << s.n_in << " × " << s.n_out;
    }
  }
}

// Tolerance: each of n roundings errs by at most ε/2 of a partial sum ≤ ‖x‖‖w‖; random signs make
// it √n rather than n.
TEST(Multiply, AgreesWithDouble) {
  for (const Shape s : {Shape{3, 576, 100}, Shape{64, 2048, 96}, Shape{17, 8192, 33}}) {
    const Floats x = random_floats(static_cast<std::size_t>(s.rows * s.n_in), 4);
    const Floats w = random_floats(static_cast<std::size_t>(s.n_out * s.n_in), 5);
    const Floats y = product(x, s.rows, s.n_in, pack(w, s.n_out, s.n_in), nullptr);
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (std::int64_t o = 0; o < s.n_out; ++o) {
        double sum = 0, xx = 0, ww = 0;
        for (std::int64_t k = 0; k < s.n_in; ++k) {
          const double a = x[r * s.n_in + k], b = w[o * s.n_in + k];
          sum += a * b, xx += a * a, ww += b * b;
        }
        const double tolerance =
            std::sqrt(xx * ww) * 0x1p-24 * std::sqrt(static_cast<double>(s.n_in));
        ASSERT_NEAR(y[r * s.n_out + o], sum, tolerance) << "row " << r << ", output " << o;
      }
    }
  }
}

TEST(Multiply, RowsDoNotKnowTheirBatch) {
  const std::int64_t n_in = 75, n_out = 83, most = 70;
  const Floats x = random_floats(most * n_in, 6), w = random_floats(n_out * n_in, 7);
  const PackedMatrix packed = pack(w, n_out, n_in);
  const Floats all = product(x, most, n_in, packed, nullptr);
  for (std::int64_t rows = 1; rows <= most; ++rows) {
    const Floats some = product(x, rows, n_in, packed, nullptr);
    ASSERT_TRUE(same_bits(Floats(all.begin(), all.begin() + rows * n_out), some)) << rows;
  }
}

TEST(Multiply, StridesAndGapsAreRespected) {
  const std::int64_t rows = 9, n_in = 20, n_out = 37, ldx = 23, ldy = 50;
  const Floats x = random_floats(rows * ldx, 8), w = random_floats(n_out * n_in, 9);
  const PackedMatrix packed = pack(w, n_out, n_in);
  Floats dense;
  for (std::int64_t r = 0; r < rows; ++r) {
    dense.insert(dense.end(), x.begin() + r * ldx, x.begin() + r * ldx + n_in);
  }
  const Floats expected = product(dense, rows, n_in, packed, nullptr);
  Floats y(rows * ldy, -7.0f);
  multiply(x.data(), ldx, rows, packed, nullptr, y.data(), ldy);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < ldy; ++o) {
      ASSERT_EQ(y[r * ldy + o], o < n_out ? expected[r * n_out + o] : -7.0f) << r << ' ' << o;
    }
  }
}

TEST(Multiply, NothingLeaksFromNonFiniteRows) {
  const std::int64_t rows = 15, n_in = 40, n_out = 50;
  Floats x = random_floats(rows * n_in, 10);
  const Floats w = random_floats(n_out * n_in, 11);
  const PackedMatrix packed = pack(w, n_out, n_in);
  const Floats clean = product(x, rows, n_in, packed, nullptr);
  x[4 * n_in + 3] = std::nanf("");
  x[9 * n_in] = INFINITY;
  const Floats y = everywhere_the_same([&] { return product(x, rows, n_in, packed, nullptr); });
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < n_out; ++o) {
      const float v = y[r * n_out + o];
      if (r == 4) {
        ASSERT_TRUE(std::isnan(v));
      } else if (r == 9) {
        ASSERT_TRUE(std::isinf(v));
      } else {
        ASSERT_TRUE(same_bits(v, clean[r * n_out + o])) << r << ' ' << o;
      }
    }
  }
}

TEST(Multiply, NoInputsGiveTheBias) {
  const Floats bias = random_floats(40, 12);
  const PackedMatrix empty(40, 0);
  const Floats y = product({}, 2, 0, empty, bias.data());
  EXPECT_TRUE(same_bits(Floats(y.begin(), y.begin() + 40), bias));
}

TEST(PackedMatrix, RowsComeBackHoweverTheyWerePacked) {
  const std::int64_t n_out = 71, n_in = 19;
  const Floats w = random_floats(n_out * n_in, 13);
  PackedMatrix pieces(n_out, n_in);
  for (std::int64_t first = 0; first < n_out; first += 9) {
    pieces.set_rows(first, std::min<std::int64_t>(9, n_out - first), w.data() + first * n_in);
  }
  for (std::int64_t r = 0; r < n_out; ++r) {
    Floats row(n_in);
    pieces.copy_row(r, row.data());
    EXPECT_TRUE(same_bits(row, Floats(w.begin() + r * n_in, w.begin() + (r + 1) * n_in))) << r;
  }
  EXPECT_THROW(pieces.set_rows(70, 2, w.data()), Error);
  EXPECT_THROW(pieces.copy_row(71, nullptr), Error);
  EXPECT_THROW(PackedMatrix(-1, 3), Error);
}

}  // namespace
}  // namespace lamina::kernels
