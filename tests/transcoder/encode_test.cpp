#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "lamina/core/threads.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

using testing::dense;
using testing::random_transcoder;
using testing::random_values;
using testing::small_config;

// u in double, the plain way.
std::vector<double> plain_pre_activations(const Transcoder& t, const std::vector<float>& x) {
  const std::int64_t d = t.config.d_in, f = t.config.features;
  const auto rows = static_cast<std::int64_t>(x.size()) / d;
  std::vector<double> u(static_cast<std::size_t>(rows * f));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < f; ++j) {
      double sum = t.encoder_bias[j];
      for (std::int64_t i = 0; i < d; ++i) {
        const double shift = t.config.subtract_decoder_bias ? t.decoder_bias[i] : 0.0F;
        sum += t.encoder[j * d + i] * (x[r * d + i] - shift);
      }
      u[r * f + j] = sum;
    }
  }
  return u;
}

// What the activation leaves, from pre-activations in float: the definition, without blocks.
std::vector<float> plain_features(const Transcoder& t, const std::vector<float>& u) {
  const std::int64_t f = t.config.features;
  std::vector<float> z(u.size());
  for (std::size_t r = 0; r < u.size() / f; ++r) {
    const float* row = u.data() + r * f;
    std::vector<std::int64_t> order(f);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return row[a] > row[b]; });
    const bool topk = t.config.activation == FeatureActivation::topk;
    for (std::int64_t i = 0; i < (topk ? std::min(t.config.k, f) : f); ++i) {
      const std::int64_t j = order[i];
      if (row[j] > 0 && (t.threshold.empty() || row[j] > t.threshold[j])) z[r * f + j] = row[j];
    }
  }
  return z;
}

// Sizes around the blocks of 256 features and 512 rows.
struct Shape {
  std::int64_t d, features, rows;
};
constexpr Shape kShapes[] = {{12, 40, 7}, {5, 256, 1}, {33, 257, 3}, {16, 700, 513}, {9, 1, 1025}};

TEST(Encode, PreActivationsAreTheProductAtEveryShape) {
  for (const Shape& s : kShapes) {
    for (bool subtract : {false, true}) {
      TranscoderConfig c = small_config(FeatureActivation::relu);
      c.d_in = c.d_out = s.d;
      c.features = s.features;
      c.subtract_decoder_bias = subtract;
      const Transcoder t = random_transcoder(c, 3);
      const std::vector<float> x = random_values(s.rows * s.d, 4);
      std::vector<float> u(s.rows * s.features);
      t.pre_activations(x, u);
      const std::vector<double> expected = plain_pre_activations(t, x);
      // d products and sums, each off by 2⁻²⁴ of a partial sum of at most Σ|w x| + |b| < d + 3.
      const double tolerance = static_cast<double>((s.d + 3) * (s.d + 3)) * 6e-8;
      for (std::size_t i = 0; i < u.size(); ++i) {
        ASSERT_NEAR(u[i], expected[i], tolerance) << i << " of " << s.features;
      }
    }
  }
}

TEST(Encode, EveryActivationLeavesWhatItsDefinitionSays) {
  for (const Shape& s : kShapes) {
    for (FeatureActivation activation :
         {FeatureActivation::relu, FeatureActivation::topk, FeatureActivation::batch_topk,
          FeatureActivation::jump_relu}) {
      TranscoderConfig c = small_config(activation);
      c.d_in = c.d_out = s.d;
      c.features = s.features;
      const Transcoder t = random_transcoder(c, 5);
      const std::vector<float> x = random_values(s.rows * s.d, 6);
      std::vector<float> u(s.rows * s.features);
      t.pre_activations(x, u);
      const SparseRows z = t.encode(x);
      ASSERT_EQ(z.rows(), s.rows);
      EXPECT_EQ(dense(z, s.features), plain_features(t, u));
      for (std::int64_t r = 0; r < z.rows(); ++r) {
        for (std::int64_t e = z.offsets[r] + 1; e < z.offsets[r + 1]; ++e) {
          ASSERT_LT(z.feature[e - 1], z.feature[e]);
        }
      }
    }
  }
}

TEST(Encode, TiesGoToTheSmallerFeature) {
  TranscoderConfig c = small_config(FeatureActivation::topk);
  c.features = 600;  // three blocks, all the same feature
  c.k = 3;
  Transcoder t = random_transcoder(c, 1);
  for (std::int64_t j = 0; j < c.features; ++j) {
    std::copy_n(t.encoder.begin(), c.d_in, t.encoder.begin() + j * c.d_in);
    t.encoder_bias[j] = 100;
  }
  const SparseRows z = t.encode(random_values(c.d_in, 2));
  EXPECT_EQ(z.feature, (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(Encode, ARowDependsOnNothingElse) {
  TranscoderConfig c = small_config(FeatureActivation::topk);
  c.features = 300;
  c.subtract_decoder_bias = true;
  const Transcoder t = random_transcoder(c, 8);
  const std::int64_t rows = 530;
  const std::vector<float> x = random_values(rows * c.d_in, 9);
  const int before = threads();
  set_threads(1);
  const SparseRows one = t.encode(x);
  set_threads(2);
  const SparseRows two = t.encode(x);
  EXPECT_EQ(one.feature, two.feature);
  EXPECT_EQ(one.value, two.value);
  EXPECT_EQ(one.offsets, two.offsets);
  for (std::int64_t r : {0L, 1L, 511L, 512L, 529L}) {
    const SparseRows alone = t.encode(std::span(x).subspan(r * c.d_in, c.d_in));
    const auto first = one.offsets[r], last = one.offsets[r + 1];
    EXPECT_EQ(alone.value, std::vector<float>(one.value.begin() + first, one.value.begin() + last));
    EXPECT_EQ(alone.feature,
              std::vector<std::int32_t>(one.feature.begin() + first, one.feature.begin() + last));
  }
  set_threads(before);
}

TEST(Encode, FoldingTheSubtractionChangesNothing) {
  TranscoderConfig c = small_config(FeatureActivation::relu);
  c.subtract_decoder_bias = true;
  const Transcoder t = random_transcoder(c, 8);
  const Transcoder folded = t.without_subtraction();
  EXPECT_FALSE(folded.config.subtract_decoder_bias);
  const std::vector<float> x = random_values(20 * c.d_in, 9);
  std::vector<float> a(20 * c.features), b(a.size());
  t.pre_activations(x, a);
  folded.pre_activations(x, b);
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 5e-6);
}

TEST(Encode, WrongSizesAreRefusedWithBoth) {
  const Transcoder t = random_transcoder(small_config(FeatureActivation::relu), 8);
  const std::vector<float> x(13);
  testing::expect_message(testing::error_of([&] { t.encode(x); }),
                          "small: 13 values in, expected rows of 12");
  Transcoder broken = t;
  broken.decoder.pop_back();
  testing::expect_message(testing::error_of([&] { broken.check(); }),
                          "small: W_dec has 479 values, expected 480");
  broken = t;
  broken.encoder[3] = NAN;
  testing::expect_message(testing::error_of([&] { broken.check(); }), "small: W_enc holds nan");
  broken = t;
  broken.config.features = 0;
  testing::expect_message(testing::error_of([&] { broken.check(); }), "features is 0");
}

}  // namespace
}  // namespace lamina
