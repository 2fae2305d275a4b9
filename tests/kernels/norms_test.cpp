#include "kernels/support.h"

namespace lamina::kernels {
namespace {

TEST(Norms, AgreeWithDouble) {
  for (std::int64_t d : {1, 3, 17, 64, 576, 5000}) {
    const std::int64_t rows = 9, ldx = d + 2;
    Floats x = random_floats(rows * ldx, 1);
    for (float& v : x) v += 3.0f;  // a mean that matters
    for (NormKind kind : {NormKind::layer, NormKind::rms}) {
      const double eps = 1e-5;
      const Floats result = everywhere_the_same([&] {
        Floats out(rows + rows * d);
        norm_scale(kind, eps, x.data(), ldx, rows, d, out.data());
        norm_normalize(kind, x.data(), ldx, out.data(), rows, d, out.data() + rows, d);
        return out;
      });
      for (std::int64_t r = 0; r < rows; ++r) {
        double mean = 0, squares = 0;
        for (std::int64_t i = 0; i < d; ++i) mean += x[r * ldx + i];
        mean = kind == NormKind::layer ? mean / static_cast<double>(d) : 0;
        for (std::int64_t i = 0; i < d; ++i) squares += std::pow(x[r * ldx + i] - mean, 2);
        const double scale = std::sqrt(squares / static_cast<double>(d) + eps);
        // The mean is rounded to float (half an ulp of ~3), so is the difference.
        const double centre = kind == NormKind::layer ? 8 * 0x1p-24 : 0;
        ASSERT_NEAR(result[r], scale, scale * 0x1p-23 + centre) << "d " << d << ", row " << r;
        for (std::int64_t i = 0; i < d; ++i) {
          const double v = (x[r * ldx + i] - mean) / scale;
          ASSERT_NEAR(result[rows + r * d + i], v,
                      std::fabs(v) * (0x1p-22 + centre / scale) + centre / scale)
              << "d " << d << ", row " << r << ", value " << i;
        }
      }
    }
  }
}

TEST(Norms, AffineAppliesOffsetWeightAndBias) {
  const std::int64_t rows = 3, d = 37;
  Floats x = random_floats(rows * d, 2);
  const Floats weight = random_floats(d, 3), bias = random_floats(d, 4);
  Floats y(rows * d);
  norm_affine(x.data(), d, rows, d, weight.data(), 1.0f, bias.data(), y.data(), d);
  for (std::int64_t i = 0; i < rows * d; ++i) {
    ASSERT_EQ(y[i], x[i] * (1.0f + weight[i % d]) + bias[i % d]) << i;
  }
  norm_affine(x.data(), d, rows, d, weight.data(), 0.0f, nullptr, y.data(), d);
  norm_affine(x.data(), d, rows, d, weight.data(), 0.0f, nullptr, x.data(), d);
  EXPECT_TRUE(same_bits(x, y));
}

TEST(Rotate, TurnsPairsByTheAngle) {
  const std::int64_t rows = 4, heads = 3, d_head = 10, rotary = 6, half = rotary / 2;
  const Floats x = random_floats(rows * heads * d_head, 5);
  const std::vector<std::int32_t> positions = {0, 7, 3, 11};
  std::vector<double> angles;
  Floats cosines, sines;
  for (int p = 0; p < 12; ++p) {
    for (int i = 0; i < half; ++i) {
      angles.push_back(p * std::pow(10000.0, -2.0 * i / rotary));
      cosines.push_back(static_cast<float>(std::cos(angles.back())));
      sines.push_back(static_cast<float>(std::sin(angles.back())));
    }
  }
  for (RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
    Floats y(x.size());
    rotate(style, x.data(), rows, heads, d_head, rotary, cosines.data(), sines.data(),
           positions.data(), y.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t at = (r * heads + h) * d_head;
        for (std::int64_t i = 0; i < half; ++i) {
          const std::int64_t a = at + (style == RopeStyle::half ? i : 2 * i);
          const std::int64_t b = style == RopeStyle::half ? a + half : a + 1;
          const double angle = angles[positions[r] * half + i];
          ASSERT_NEAR(y[a], x[a] * std::cos(angle) - x[b] * std::sin(angle), 5e-7) << r << ' ' << i;
          ASSERT_NEAR(y[b], x[b] * std::cos(angle) + x[a] * std::sin(angle), 5e-7) << r << ' ' << i;
        }
        for (std::int64_t i = rotary; i < d_head; ++i) ASSERT_EQ(y[at + i], x[at + i]);
      }
    }
    Floats in_place = x;
    rotate(style, in_place.data(), rows, heads, d_head, rotary, cosines.data(), sines.data(),
           positions.data(), in_place.data());
    EXPECT_TRUE(same_bits(in_place, y));
  }
}

}  // namespace
}  // namespace lamina::kernels
