#include "lamina/core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "builders.h"
#include "lamina/core/safetensors.h"

namespace lamina {
namespace {

using test::message_of;

/// Equal bit for bit; any NaN equals any other, for their payloads depend on the processor.
::testing::AssertionResult same(std::span<const float> got, std::span<const float> expected) {
  if (got.size() != expected.size()) {
    return ::testing::AssertionFailure() << got.size() << " values, expected " << expected.size();
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
    if (std::bit_cast<std::uint32_t>(got[i]) != std::bit_cast<std::uint32_t>(expected[i])) {
      return ::testing::AssertionFailure()
             << "value " << i << " is " << got[i] << ", expected " << expected[i];
    }
  }
  return ::testing::AssertionSuccess();
}

const TensorStore& goldens() {
  static const TensorStore store =
      open_safetensors(LAMINA_SOURCE_DIR "/tests/files/goldens.safetensors");
  return store;
}

const TensorInfo& golden(const std::string& name) {
  const TensorInfo* found = goldens().find(name);
  if (found == nullptr) throw std::runtime_error("no golden " + name);
  return *found;
}

std::vector<float> expanded(const TensorInfo& tensor) {
  std::vector<float> values(tensor.elements());
  expand_to_f32(tensor.dtype, tensor.bytes, values);
  return values;
}

class Quantised : public ::testing::TestWithParam<DType> {};

TEST_P(Quantised, EqualsReference) {
  const std::string name(dtype_name(GetParam()));
  const TensorInfo& blocks = golden(name + ".blocks");
  const std::vector<float> expected = expanded(golden(name + ".values"));
  ASSERT_GE(expected.size(), 2048u);
  std::vector<float> got(expected.size());
  expand_to_f32(GetParam(), blocks.bytes, got);
  EXPECT_TRUE(same(got, expected)) << name;

  // The same from an odd address and with the block order turned round.
  const std::size_t size = block_bytes(GetParam()), elements = block_elements(GetParam());
  const std::size_t count = blocks.bytes.size() / size;
  std::vector<std::byte> turned(blocks.bytes.size() + 1);
  for (std::size_t b = 0; b < count; ++b) {
    std::memcpy(turned.data() + 1 + b * size, blocks.bytes.data() + (count - 1 - b) * size, size);
  }
  expand_to_f32(GetParam(), std::span(turned).subspan(1), got);
  for (std::size_t b = 0; b < count; ++b) {
    EXPECT_TRUE(same(std::span(got).subspan(b * elements, elements),
                     std::span(expected).subspan((count - 1 - b) * elements, elements)))
        << name << " block " << b;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Quantised,
                         ::testing::Values(DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1,
                                           DType::q8_0, DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& one) { return std::string(dtype_name(one.param)); });

TEST(Half, EveryPatternExpandsExactly) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float got = f16_to_f32(static_cast<std::uint16_t>(bits));
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      continue;
    }
    const double expected = exponent == 31  ? sign * std::numeric_limits<double>::infinity()
                            : exponent == 0 ? sign * std::ldexp(fraction, -24)
                                            : sign * std::ldexp(1024 + fraction, exponent - 25);
    ASSERT_EQ(got, expected) << bits;
    ASSERT_EQ(std::signbit(got), sign < 0) << bits;
    ASSERT_EQ(f32_to_f16(got), bits);
  }
}

// Between two neighbouring halves: the midpoint goes to the even one, anything nearer to its own.
TEST(Half, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float low = f16_to_f32(static_cast<std::uint16_t>(bits));
    const float high = bits == 0x7bff ? 65536.0f : f16_to_f32(static_cast<std::uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    for (int sign : {0, 0x8000}) {
      const float s = sign == 0 ? 1 : -1;
      ASSERT_EQ(f32_to_f16(s * middle), sign | ((bits & 1) == 0 ? bits : bits + 1)) << bits;
      ASSERT_EQ(f32_to_f16(s * std::nextafter(middle, low)), sign | bits) << bits;
      ASSERT_EQ(f32_to_f16(s * std::nextafter(middle, high)), sign | (bits + 1)) << bits;
    }
  }
}

TEST(Half, EqualsReference) {
  const std::vector<float> values = expanded(golden("f32.values"));
  const TensorInfo &halves = golden("f32.as_f16"), &bfloats = golden("f32.as_bf16_bits");
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half, bfloat;
    std::memcpy(&half, halves.bytes.data() + 2 * i, 2);
    std::memcpy(&bfloat, bfloats.bytes.data() + 2 * i, 2);
    if (std::isnan(values[i])) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(values[i]))));
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(values[i]))));
      continue;
    }
    ASSERT_EQ(f32_to_f16(values[i]), half) << values[i];
    ASSERT_EQ(f32_to_bf16(values[i]), bfloat) << values[i];
  }
}

TEST(Half, BrainFloatEdges) {
  EXPECT_EQ(bf16_to_f32(0x3f80), 1.0f);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);  // tie to even
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(f32_to_bf16(-std::numeric_limits<float>::infinity()), 0xff80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7f800001u)), 0x7fc0);  // stays a NaN
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_f32(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(f32_to_bf16(value), bits);
  }
}

TEST(DTypes, PlainTypesExpand) {
  const std::string doubles = test::raw(1.5) + test::raw(1e300) + test::raw(1.0 + 0x1p-24);
  std::vector<float> out(3);
  expand_to_f32(DType::f64, test::bytes_of(doubles), out);
  EXPECT_EQ(out, (std::vector{1.5f, std::numeric_limits<float>::infinity(), 1.0f}));
  const std::string floats =
      std::string("x") + test::raw(1.5f) + test::raw(-0.0f) + test::raw(3e-42f);
  expand_to_f32(DType::f32, test::bytes_of(floats).subspan(1), out);
  EXPECT_EQ(out, (std::vector{1.5f, -0.0f, 3e-42f}));
  const std::string halves = std::string("x") + test::raw<std::uint16_t>(0x3c00) +
                             test::raw<std::uint16_t>(0xc000) + test::raw<std::uint16_t>(1);
  expand_to_f32(DType::f16, test::bytes_of(halves).subspan(1), out);
  EXPECT_EQ(out, (std::vector{1.0f, -2.0f, 0x1p-24f}));
  expand_to_f32(DType::bf16, test::bytes_of(halves).subspan(1), out);
  EXPECT_EQ(out, (std::vector{0x1p-7f, -2.0f, 0x1p-133f}));
  expand_to_f32(DType::q4_k, {}, {});
}

TEST(DTypes, SizesAndRefusals) {
  EXPECT_EQ(storage_bytes(DType::q6_k, 512), 420u);
  EXPECT_EQ(storage_bytes(DType::f64, 3), 24u);
  EXPECT_EQ(message_of([] { storage_bytes(DType::q4_0, 33); }),
            "33 q4_0 values are no whole number of blocks of 32");
  EXPECT_EQ(message_of([] { storage_bytes(DType::f64, std::uint64_t{1} << 62); }),
            "f64: 4611686018427387904 × 8 overflows 64 bits");
  std::vector<float> out(4);
  const std::string bytes(17, 'x');
  EXPECT_EQ(message_of([&] { expand_to_f32(DType::f32, test::bytes_of(bytes), out); }),
            "4 f32 values take 16 bytes, got 17");
  EXPECT_EQ(message_of([&] { expand_to_f32(DType::i32, test::bytes_of(bytes).subspan(1), out); }),
            "i32 values cannot be expanded to f32: a floating-point type is needed");
  EXPECT_EQ(message_of([] { dtype_name(static_cast<DType>(99)); }),
            "element type number 99 is not one of 18");
}

}  // namespace
}  // namespace lamina
