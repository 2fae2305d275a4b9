#include "lamina/core/gguf.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <ostream>
#include <random>

#include "builders.h"

namespace lamina {
namespace {

using test::GgufBytes;
using test::message_of;
using test::raw;

// An owned copy of exactly the bytes, so that AddressSanitizer sees a read beyond them.
GgufContent parse(const std::string& file) {
  const auto copy = std::make_unique<std::byte[]>(file.size());
  std::memcpy(copy.get(), file.data(), file.size());
  GgufContent content = parse_gguf({copy.get(), file.size()}, "m.gguf");
  for (TensorInfo& tensor : content.tensors) {
    test::read_all(tensor.bytes);
    tensor.bytes = {};
  }
  return content;
}

GgufBytes valid() {
  GgufBytes g;
  g.key("general.architecture", 8, GgufBytes::text("llama"))
      .key("u8", 0, raw<std::uint8_t>(255))
      .key("i8", 1, raw<std::int8_t>(-128))
      .key("u16", 2, raw<std::uint16_t>(65535))
      .key("i16", 3, raw<std::int16_t>(-32768))
      .key("u32", 4, raw<std::uint32_t>(4294967295))
      .key("i32", 5, raw<std::int32_t>(std::numeric_limits<std::int32_t>::min()))
      .key("f32", 6, raw(1e-5f))
      .key("yes", 7, raw<std::uint8_t>(1))
      .key("u64", 10, raw(~std::uint64_t{0}))
      .key("i64", 11, raw(std::numeric_limits<std::int64_t>::min()))
      .key("f64", 12, raw(0.1))
      .array("tokens", 8, 3, GgufBytes::text("a") + GgufBytes::text("") + GgufBytes::text("bc"))
      .array("scores", 6, 2, raw(0.5f) + raw(-1.0f))
      .array("types", 5, 2, raw<std::int32_t>(-3) + raw<std::int32_t>(1))
      .array("sizes", 10, 1, raw<std::uint64_t>(9))
      .array("bytes", 0, 2, "\x01\xff")
      .array("flags", 7, 2, std::string("\x01\x00", 2))
      .array("nothing", 5, 0, "");
  g.tensor("token_embd.weight", {32, 2}, 8, 0)  // Q8_0: 2 × 34 bytes
      .tensor("norm", {3}, 0, 96)
      .with_data(std::string(96 + 12, 'd'));
  return g;
}

TEST(Gguf, ReadsEveryValueType) {
  for (std::uint32_t version : {2u, 3u}) {
    GgufBytes bytes = valid();
    bytes.version = version;
    const GgufContent content = parse(bytes.file());
    const GgufMetadata& m = content.metadata;
    EXPECT_EQ(content.version, version);
    EXPECT_EQ(m.file(), "m.gguf");
    EXPECT_EQ(m.values().size(), 19u);
    EXPECT_EQ(m.text("general.architecture"), "llama");
    EXPECT_EQ(m.integer("u8"), 255);
    EXPECT_EQ(m.integer("i8"), -128);
    EXPECT_EQ(m.integer("u16"), 65535);
    EXPECT_EQ(m.integer("i16"), -32768);
    EXPECT_EQ(m.integer("u32"), 4294967295);
    EXPECT_EQ(m.integer("i32"), std::numeric_limits<std::int32_t>::min());
    EXPECT_EQ(m.number("f32"), double{1e-5f});
    EXPECT_EQ(m.number("i8"), -128.0);
    EXPECT_EQ(m.number("u64"), 18446744073709551615.0);
    EXPECT_EQ(m.boolean("yes"), true);
    EXPECT_EQ(m.integer("i64"), std::numeric_limits<std::int64_t>::min());
    EXPECT_EQ(m.number("f64"), 0.1);
    EXPECT_EQ(m.texts("tokens"), (std::vector<std::string>{"a", "", "bc"}));
    EXPECT_EQ(m.numbers("scores"), (std::vector{0.5, -1.0}));
    EXPECT_EQ(m.numbers("types"), (std::vector{-3.0, 1.0}));
    EXPECT_EQ(m.integers("types"), (std::vector<std::int64_t>{-3, 1}));
    EXPECT_EQ(m.integers("sizes"), (std::vector<std::int64_t>{9}));
    EXPECT_EQ(m.integers("bytes"), (std::vector<std::int64_t>{1, 255}));
    EXPECT_EQ(std::get<std::vector<bool>>(m.values().at("flags")), (std::vector{true, false}));
    EXPECT_TRUE(m.integers("nothing").empty());
    EXPECT_EQ(m.find_integer("u8"), 255);
    EXPECT_EQ(m.find_integer("absent"), std::nullopt);
    EXPECT_EQ(m.find_text("absent"), std::nullopt);
    EXPECT_EQ(m.find_boolean("yes"), true);
    EXPECT_EQ(m.find_number("f64"), 0.1);
  }
}

TEST(Gguf, LookUpsNameTheKeyAndBothTypes) {
  const GgufContent content = parse(valid().file());
  const GgufMetadata& m = content.metadata;
  EXPECT_EQ(message_of([&] { m.integer("absent"); }),
            "m.gguf: metadata key \"absent\" is missing (19 keys present)");
  EXPECT_EQ(message_of([&] { m.integer("f32"); }),
            "m.gguf: metadata key \"f32\": expected an integer, found a floating-point number");
  EXPECT_EQ(message_of([&] { m.integer("u64"); }),
            "m.gguf: metadata key \"u64\": 18446744073709551615 is more than 9223372036854775807");
  EXPECT_EQ(message_of([&] { m.number("yes"); }),
            "m.gguf: metadata key \"yes\": expected a number, found a boolean");
  EXPECT_EQ(message_of([&] { m.find_boolean("u8"); }),
            "m.gguf: metadata key \"u8\": expected a boolean, found an integer");
  EXPECT_EQ(message_of([&] { m.text("tokens"); }),
            "m.gguf: metadata key \"tokens\": expected a string, found an array of strings");
  EXPECT_EQ(message_of([&] { m.texts("general.architecture"); }),
            "m.gguf: metadata key \"general.architecture\": expected an array of strings, found a "
            "string");
  EXPECT_EQ(message_of([&] { m.numbers("flags"); }),
            "m.gguf: metadata key \"flags\": expected an array of numbers, found an array of "
            "booleans");
  EXPECT_EQ(message_of([&] { m.integers("scores"); }),
            "m.gguf: metadata key \"scores\": expected an array of integers, found an array of "
            "floating-point numbers");
}

TEST(Gguf, ShapesAreOutermostFirst) {
  const std::string file = valid().file();
  const GgufContent content = parse_gguf(test::bytes_of(file), "m.gguf");
  ASSERT_EQ(content.tensors.size(), 2u);
  const TensorInfo& embedding = content.tensors[0];
  EXPECT_EQ(embedding.name, "token_embd.weight");
  EXPECT_EQ(embedding.dtype, DType::q8_0);
  EXPECT_EQ(embedding.shape, (std::vector<std::uint64_t>{2, 32}));
  EXPECT_EQ(embedding.bytes.size(), 68u);
  EXPECT_EQ(static_cast<const void*>(content.tensors[1].bytes.data()),
            file.data() + file.size() - 12);
}

TEST(Gguf, AlignmentKeyMovesTheData) {
  GgufBytes g;
  g.alignment = 64;
  g.key("general.alignment", 4, raw<std::uint32_t>(64))
      .tensor("a", {1}, 0, 0)
      .tensor("b", {1}, 0, 64)
      .with_data(raw(1.0f) + std::string(60, '\0') + raw(2.0f));
  const std::string file = g.file();
  const GgufContent content = parse_gguf(test::bytes_of(file), "m.gguf");
  float value = 0;
  std::memcpy(&value, content.tensors[1].bytes.data(), 4);
  EXPECT_EQ(value, 2.0f);
  EXPECT_EQ((content.tensors[0].bytes.data() - test::bytes_of(file).data()) % 64, 0);
}

struct Broken {
  std::string label, file, message;
};
// Keeps the bytes out of the names of the tests.
void PrintTo(const Broken& broken, std::ostream* out) {
  *out << broken.label;
}

std::vector<Broken> broken_files() {
  std::vector<Broken> files;
  const auto add = [&](std::string label, std::string file, std::string message) {
    files.push_back({std::move(label), std::move(file), "m.gguf: " + message});
  };
  const auto changed = [](auto change) {
    GgufBytes g;
    change(g);
    return g.file();
  };
  const std::string word32(32, 'd');
  constexpr std::uint64_t big = std::uint64_t{1} << 40;

  add("NoBytes", "", "the magic \"GGUF\" at byte 0 takes 4 bytes, but only 0 are left");
  add("OtherMagic", changed([](auto& g) { g.magic = "ggjt"; }),
      "not a GGUF file: it begins with \"ggjt\", expected \"GGUF\"");
  add("BinaryMagic", std::string("\x01\n\xff\0", 4) + "more",
      R"(not a GGUF file: it begins with "\x01\x0a\xff\x00", expected "GGUF")");
  add("Version1", changed([](auto& g) { g.version = 1; }),
      "GGUF version 1 is not supported, expected 2 or 3");
  add("Version4", changed([](auto& g) { g.version = 4; }),
      "GGUF version 4 is not supported, expected 2 or 3");
  add("Version0", changed([](auto& g) { g.version = 0; }),
      "GGUF version 0 is not supported, expected 2 or 3");
  add("BigEndian", changed([](auto& g) { g.version = 0x03000000; }),
      "the GGUF file is big-endian (its version reads as 50331648); only little-endian files are "
      "supported");
  add("ManyKeys", changed([](auto& g) { g.extra_keys = big; }),
      "1099511627776 metadata keys need at least 13 bytes each, but only 0 bytes are left");
  add("MaxKeys", changed([](auto& g) { g.extra_keys = ~std::uint64_t{0}; }),
      "18446744073709551615 metadata keys need at least 13 bytes each, but only 0 bytes are left");
  add("ManyTensors", changed([](auto& g) { g.extra_tensors = big; }),
      "1099511627776 tensors need at least 33 bytes each, but only 0 bytes are left");
  add("KeyMissing", changed([](auto& g) {
        g.key("a", 8, GgufBytes::text("0123456789"));
        g.extra_keys = 1;
      }),
      "metadata key at byte 55 takes 8 bytes, but only 0 are left");
  add("KeyEmpty", changed([](auto& g) { g.key("", 8, GgufBytes::text("x")); }),
      "metadata key at byte 24 is 0 bytes long, expected 1 to 65535");
  add("KeyLong", changed([](auto& g) { g.key(std::string(65536, 'k'), 0, "x"); }),
      "metadata key at byte 24 is 65536 bytes long, expected 1 to 65535");
  add("KeyNotUtf8", changed([](auto& g) { g.key("k\xc0\x80", 0, "x"); }),
      R"(metadata key "k\xc0\x80" at byte 24 is no UTF-8 text)");
  add("KeyTwice", changed([](auto& g) { g.key("k", 0, "x").key("k", 0, "y"); }),
      R"(metadata key "k" appears twice)");
  add("ValueTypeUnknown", changed([](auto& g) { g.key("k", 13, "x"); }),
      R"(metadata key "k": unknown value type 13, expected 0 to 12)");
  add("ValueCut", changed([](auto& g) { g.key("key", 12, "1234567"); }),
      R"(metadata key "key" at byte 39 takes 8 bytes, but only 7 are left)");
  add("BooleanTwo", changed([](auto& g) { g.key("k", 7, "\x02"); }),
      R"(metadata key "k": a boolean is 2, expected 0 or 1)");
  add("StringBeyondFile", changed([](auto& g) { g.key("k", 8, raw(big)); }),
      R"(metadata key "k" at byte 45 takes 1099511627776 bytes, but only 0 are left)");
  add("StringLengthWraps", changed([](auto& g) { g.key("k", 8, raw(~std::uint64_t{0})); }),
      R"(metadata key "k" at byte 45 takes 18446744073709551615 bytes, but only 0 are left)");
  add("ArrayOfArrays", changed([&](auto& g) { g.array("k", 9, 1, word32); }),
      R"(metadata key "k": arrays of arrays are not supported)");
  add("ArrayTypeUnknown", changed([&](auto& g) { g.array("k", 77, 1, word32); }),
      R"(metadata key "k": unknown value type 77, expected 0 to 12)");
  add("ArrayHuge", changed([&](auto& g) { g.array("k", 0, big, word32); }),
      R"(1099511627776 metadata key "k" elements need at least 1 bytes each, but only 32 bytes are left)");
  add("ArrayOfStringsHuge", changed([&](auto& g) { g.array("k", 8, 5, word32); }),
      R"(5 metadata key "k" elements need at least 8 bytes each, but only 32 bytes are left)");
  add("ArrayCountWraps",
      changed([&](auto& g) { g.array("k", 12, std::uint64_t{1} << 61, word32); }),
      R"(2305843009213693952 metadata key "k" elements need at least 8 bytes each, but only 32 bytes are left)");
  add("ArrayOfBooleansHoldsTwo", changed([&](auto& g) { g.array("k", 7, 1, "\x02"); }),
      R"(metadata key "k": a boolean is 2, expected 0 or 1)");
  for (const auto& [value, text] :
       {std::pair<std::int32_t, const char*>{0, "0"}, {48, "48"}, {-32, "-32"}}) {
    add(fmt::format("Alignment{}", value < 0 ? "Negative" : text), changed([v = value](auto& g) {
          g.key("general.alignment", 5, raw(v))
              .tensor("t", {8}, 0, 0)
              .with_data(std::string(32, 'd'));
        }),
        fmt::format("general.alignment is {}, expected a power of two", text));
  }
  add("AlignmentText", changed([](auto& g) {
        g.key("general.alignment", 8, GgufBytes::text("32")).tensor("t", {8}, 0, 0);
      }),
      R"(metadata key "general.alignment": expected an integer, found a string)");
  add("AlignmentBeyondFile", changed([](auto& g) {
        g.key("general.alignment", 10, raw(std::uint64_t{1} << 62))
            .tensor("t", {8}, 0, 0)
            .with_data(std::string(32, 'd'));
      }),
      "the padding before the tensor data at byte 94 takes 4611686018427387810 bytes, but only 34 "
      "are left");

  const auto tensor = [&](std::vector<std::uint64_t> dims, std::uint32_t type,
                          std::uint64_t offset) {
    GgufBytes g;
    g.tensor("t", std::move(dims), type, offset).with_data(std::string(32, 'd'));
    return g.file();
  };
  add("TensorNameEmpty", changed([&](auto& g) {
        g.tensor("", {8, 8}, 0, 0).with_data(word32);
      }),
      "tensor name at byte 24 is 0 bytes long, expected 1 to 65535");
  add("TensorNameNotUtf8",
      changed([&](auto& g) { g.tensor("t\xff", {8}, 0, 0).with_data(word32); }),
      R"(tensor name "t\xff" at byte 24 is no UTF-8 text)");
  add("TensorTwice", changed([&](auto& g) {
        g.tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32).with_data(std::string(64, 'd'));
      }),
      R"(tensor "t" appears twice)");
  add("NoDimensions", tensor({}, 0, 0), R"(tensor "t" has 0 dimensions, expected 1 to 4)");
  add("FiveDimensions", tensor({1, 1, 1, 1, 1}, 0, 0),
      R"(tensor "t" has 5 dimensions, expected 1 to 4)");
  add("ZeroExtent", tensor({8, 0}, 0, 0),
      R"(tensor "t": dimension 1 of 2 is 0, expected at least 1)");
  add("ShapeOverflows", tensor({1u << 31, 1u << 31, 1u << 31}, 0, 0),
      R"(tensor "t": shape: 4611686018427387904 × 2147483648 overflows 64 bits)");
  add("BytesOverflow", tensor({std::uint64_t{1} << 62}, 0, 0),
      R"(tensor "t": shape: 4611686018427387904 × 4 overflows 64 bits)");
  add("BlocksCut", tensor({48, 2}, 2, 0),
      R"(tensor "t": rows of 48 elements are no whole number of q4_0 blocks of 32)");
  add("SuperBlocksCut", tensor({128, 2}, 12, 0),
      R"(tensor "t": rows of 128 elements are no whole number of q4_k blocks of 256)");
  const std::string readable =
      "F32, F16, BF16, F64, I8 to I64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are "
      "supported";
  for (const auto& [number, name] : {std::pair{9u, "Q8_1"},
                                     {10u, "Q2_K"},
                                     {16u, "IQ2_XXS"},
                                     {23u, "IQ4_XS"},
                                     {35u, "TQ2_0"},
                                     {39u, "MXFP4"}}) {
    add(fmt::format("Type{}", name), tensor({256}, number, 0),
        fmt::format(R"(tensor "t": ggml type {} is not supported; )", name) +
            readable.substr(0, readable.size() - 10));
  }
  add("TypeUnknown", tensor({8}, 999, 0),
      R"(tensor "t": unknown ggml type number 999; )" + readable);
  add("OffsetUnaligned", tensor({2}, 0, 16),
      R"(tensor "t": offset 16 is no multiple of the alignment 32)");
  add("OffsetBeyondFile", tensor({2}, 0, 64),
      R"(tensor "t": 8 bytes at offset 64 go beyond the 32 data bytes)");
  add("OffsetWraps", tensor({2}, 0, ~std::uint64_t{31}),
      R"(tensor "t": 8 bytes at offset 18446744073709551584 go beyond the 32 data bytes)");
  add("DataCut", tensor({9}, 0, 0),
      R"(tensor "t": 36 bytes at offset 0 go beyond the 32 data bytes)");
  add("DataMissing", changed([](auto& g) { g.tensor("t", {9}, 0, 0); }),
      "the padding before the tensor data at byte 57 takes 7 bytes, but only 0 are left");
  add("Overlap", changed([](auto& g) {
        g.tensor("u", {2}, 0, 32).tensor("t", {9}, 0, 0).with_data(std::string(64, 'd'));
      }),
      R"(tensors "t" and "u" overlap: the first ends at data byte 36, the second begins at 32)");
  add("SameOffset", changed([](auto& g) {
        g.tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 0).with_data(std::string(64, 'd'));
      }),
      R"(tensors "a" and "b" overlap: the first ends at data byte 32, the second begins at 0)");
  return files;
}

class BrokenGguf : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenGguf, IsRefusedWithOneClearLine) {
  EXPECT_EQ(message_of([&] { parse(GetParam().file); }), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Files, BrokenGguf, ::testing::ValuesIn(broken_files()),
                         [](const auto& one) { return one.param.label; });

TEST(Gguf, EveryPrefixIsRefused) {
  const std::string file = valid().file();
  parse(file);
  for (std::size_t size = 0; size < file.size(); ++size) {
    EXPECT_NE(message_of([&] { parse(file.substr(0, size)); }), "") << size;
  }
}

// See the safetensors test of this name.
TEST(Gguf, FlippedBytesNeverCrash) {
  const std::string original = valid().file();
  std::mt19937 random(11);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = original;
    const int flips = 1 + static_cast<int>(random() % 3);
    for (int f = 0; f < flips; ++f) {
      file[random() % (file.size() - 108)] = static_cast<char>(random());
    }
    try {
      parse(file);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
  EXPECT_LT(refused, 20000);
}

}  // namespace
}  // namespace lamina
