#include "lamina/core/safetensors.h"

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <random>

#include "builders.h"

namespace lamina {
namespace {

using test::message_of;
using test::raw;
using test::safetensors_file;
using test::TempFolder;

// An owned copy of exactly the bytes, so that AddressSanitizer sees a read beyond them.
SafetensorsHeader parse(const std::string& file) {
  const auto copy = std::make_unique<std::byte[]>(file.size());
  std::memcpy(copy.get(), file.data(), file.size());
  SafetensorsHeader header = parse_safetensors({copy.get(), file.size()}, "m.st");
  for (TensorInfo& tensor : header.tensors) {
    test::read_all(tensor.bytes);
    tensor.bytes = {};
  }
  return header;
}

std::string valid_file() {
  return safetensors_file(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[8,20]},)"
      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("none":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}}  )",
      std::string(20, 'x'));
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirData) {
  const std::string file = valid_file();
  const SafetensorsHeader header = parse_safetensors(test::bytes_of(file), "m.st");
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[0].dtype, DType::f32);
  EXPECT_EQ(header.tensors[0].bytes.size(), 8u);
  EXPECT_EQ(header.tensors[1].name, "none");
  EXPECT_EQ(header.tensors[1].elements(), 0u);
  EXPECT_EQ(header.tensors[2].name, "b");
  EXPECT_EQ(header.tensors[2].shape, (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ(static_cast<const void*>(header.tensors[2].bytes.data()),
            file.data() + file.size() - 12);
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

TEST(Safetensors, EmptyModelIsValid) {
  EXPECT_TRUE(parse(safetensors_file("{}")).tensors.empty());
}

struct Broken {
  std::string label, file, message;
};
// Keeps the bytes out of the names of the tests.
void PrintTo(const Broken& broken, std::ostream* out) {
  *out << broken.label;
}

std::string entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"w":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

const std::vector<Broken>& broken_files() {
  const std::string eight(8, 'x');
  const auto one = [&](std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return safetensors_file(entry(dtype, shape, offsets), eight);
  };
  static const std::vector<Broken> files = {
      {"NoBytes", "", "m.st: 0 bytes are no safetensors file: the header length alone takes 8"},
      {"SevenBytes", "1234567",
       "m.st: 7 bytes are no safetensors file: the header length alone takes 8"},
      {"HeaderTooLong", raw<std::uint64_t>(100'000'001) + "{}",
       "m.st: header of 100000001 bytes, at most 100000000 are allowed (is this a safetensors "
       "file?)"},
      {"HeaderLengthWraps", raw<std::uint64_t>(~std::uint64_t{0}) + "{}",
       "m.st: header of 18446744073709551615 bytes, at most 100000000 are allowed (is this a "
       "safetensors file?)"},
      {"HeaderBeyondFile", raw<std::uint64_t>(3) + "{}",
       "m.st: header of 3 bytes, but only 2 follow its length"},
      {"HeaderEmpty", raw<std::uint64_t>(0) + "{}",
       "m.st: the header of 0 bytes does not begin with '{'"},
      {"HeaderIsArray", safetensors_file("[]"),
       "m.st: the header of 2 bytes does not begin with '{'"},
      {"HeaderBeginsWithMark", safetensors_file("\xef\xbb\xbf{}"),
       "m.st: the header of 5 bytes does not begin with '{'"},
      {"ZeroByteHidesText", safetensors_file(std::string("{}\0{}", 5)),
       "m.st: the header holds a zero byte at its byte 2 of 5"},
      {"TextAfterObject", safetensors_file("{} {}"),
       "m.st: the header is no valid JSON at its byte 4"},
      {"JsonCutShort", safetensors_file(R"({"w":)"),
       "m.st: the header is no valid JSON at its byte 6"},
      {"NotUtf8", safetensors_file("{\"\xff\":1}"),
       "m.st: the header is no valid JSON at its byte 3"},
      {"SurrogateInUtf8", safetensors_file("{\"\xed\xa0\x80\":1}"),
       "m.st: the header is no valid JSON at its byte 4"},
      {"EntryIsNumber", safetensors_file(R"({"w":3})"),
       R"(m.st: header key "w" holds the number 3, expected an object)"},
      {"EntryIsNull", safetensors_file(R"({"w":null})"),
       R"(m.st: header key "w" holds null, expected an object)"},
      {"EntryIsArray", safetensors_file(R"({"w":[[[[[[[[[[[[[)"),
       R"(m.st: header key "w" holds an array, expected an object)"},
      {"DeepObjects", safetensors_file(R"({"w":{"shape":{"a":{"a":{"a":1}}}}})"),
       R"(m.st: tensor "w": shape is an object, expected an array)"},
      {"DeepArrays", safetensors_file(R"({"w":{"shape":[[[[1]]]]}})"),
       R"(m.st: tensor "w": shape holds an array, expected whole numbers ≥ 0)"},
      {"TensorTwice",
       safetensors_file(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                        eight),
       R"(m.st: tensor "w" appears twice in the header)"},
      {"TensorTwiceByEscape",
       safetensors_file(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("\u0077":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                        eight),
       R"(m.st: tensor "w" appears twice in the header)"},
      {"FieldTwice",
       safetensors_file(R"({"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})",
                        eight),
       R"(m.st: tensor "w": key dtype appears twice)"},
      {"FieldUnknown",
       safetensors_file(R"({"w":{"dtype":"F32","shape":[2],"offset":[0,8]}})", eight),
       R"(m.st: tensor "w": unknown key "offset" (expected dtype, shape, data_offsets))"},
      {"FieldMissing", safetensors_file(R"({"w":{"dtype":"F32","shape":[2]}})", eight),
       R"(m.st: tensor "w": key data_offsets is missing)"},
      {"MetadataTwice", safetensors_file(R"({"__metadata__":{},"__metadata__":{}})"),
       "m.st: __metadata__ appears twice"},
      {"MetadataKeyTwice", safetensors_file(R"({"__metadata__":{"a":"1","a":"2"}})"),
       R"(m.st: __metadata__: key "a" appears twice)"},
      {"MetadataNotText", safetensors_file(R"({"__metadata__":{"a":7}})"),
       R"(m.st: __metadata__: key "a" holds the number 7, expected a string)"},
      {"MetadataNested", safetensors_file(R"({"__metadata__":{"a":{}}})"),
       R"(m.st: __metadata__: key "a" holds an object, expected a string)"},
      {"DtypeUnknown", one("F8_E4M3", "[8]", "[0,8]"),
       R"(m.st: tensor "w": dtype "F8_E4M3" is not supported (expected F64, F32, F16, BF16, I8, U8, I16, I32, I64 or BOOL))"},
      {"DtypeNotText", safetensors_file(R"({"w":{"dtype":32}})"),
       R"(m.st: tensor "w": dtype is the number 32, expected a string)"},
      {"ExtentNegative", one("F32", "[-2]", "[0,8]"),
       R"(m.st: tensor "w": shape holds the negative number -2, expected whole numbers ≥ 0)"},
      {"ExtentFraction", one("F32", "[2.0]", "[0,8]"),
       R"(m.st: tensor "w": shape holds the number "2.0", no 64-bit whole number, expected whole numbers ≥ 0)"},
      {"ExtentBeyond64Bits", one("F32", "[18446744073709551616]", "[0,8]"),
       R"(m.st: tensor "w": shape holds the number "18446744073709551616", no 64-bit whole number, expected whole numbers ≥ 0)"},
      {"ExtentText", one("F32", R"(["2"])", "[0,8]"),
       R"(m.st: tensor "w": shape holds the string "2", expected whole numbers ≥ 0)"},
      {"RankTooHigh",
       one(
           "F32",
           "[1" +
               [] {
                 std::string ones;
                 for (int i = 0; i < 64; ++i) ones += ",1";
                 return ones;
               }() +
               "]",
           "[0,8]"),
       R"(m.st: tensor "w": shape holds more than 64 numbers)"},
      {"ShapeOverflows", one("F32", "[4294967296,4294967296]", "[0,8]"),
       R"(m.st: tensor "w": shape: 4294967296 × 4294967296 overflows 64 bits)"},
      {"BytesOverflow", one("F32", "[4611686018427387906]", "[0,8]"),
       R"(m.st: tensor "w": shape: 4611686018427387906 × 4 overflows 64 bits)"},
      {"SizeDiffers", one("F32", "[3]", "[0,8]"),
       R"(m.st: tensor "w": f32 × shape [3] takes 12 bytes, data_offsets span 8)"},
      {"ScalarSizeDiffers", one("F32", "[]", "[0,8]"),
       R"(m.st: tensor "w": f32 × shape [] takes 4 bytes, data_offsets span 8)"},
      {"OffsetsTurnedRound", one("F32", "[2]", "[8,0]"),
       R"(m.st: tensor "w": data_offsets [8, 0] lie outside the 8 data bytes)"},
      {"OffsetsBeyondData", one("F32", "[3]", "[0,12]"),
       R"(m.st: tensor "w": data_offsets [0, 12] lie outside the 8 data bytes)"},
      {"OffsetsOne", one("F32", "[2]", "[8]"),
       R"(m.st: tensor "w": data_offsets holds 1 numbers, expected 2)"},
      {"OffsetsThree", one("F32", "[2]", "[0,8,8]"),
       R"(m.st: tensor "w": data_offsets holds more than 2 numbers)"},
      {"HoleAtStart", one("F32", "[1]", "[4,8]"),
       R"(m.st: tensor "w" begins at data byte 4, but the tensors before it end at 0: a hole)"},
      {"HoleAtEnd", one("F32", "[1]", "[0,4]"),
       "m.st: the tensors end at data byte 4, but the file holds 8 data bytes"},
      {"HoleInside",
       safetensors_file(R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                        R"("w":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})",
                        eight),
       R"(m.st: tensor "w" begins at data byte 3, but the tensors before it end at 2: a hole)"},
      {"Overlap",
       safetensors_file(R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                        R"("w":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})",
                        eight),
       R"(m.st: tensor "w" begins at data byte 3, but tensor "v" ends at 4: they overlap)"},
      {"SameBytesTwice",
       safetensors_file(R"({"v":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                        R"("w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
                        eight),
       R"(m.st: tensor "w" begins at data byte 0, but tensor "v" ends at 8: they overlap)"},
      {"DataWithoutTensors", safetensors_file("{}", eight),
       "m.st: the tensors end at data byte 0, but the file holds 8 data bytes"},
      {"NameNeedsEscaping", safetensors_file(R"({"two\nlines \"q\"":{"dtype":1}})"),
       R"(m.st: tensor "two\x0alines \"q\"": dtype is the number 1, expected a string)"},
      {"NameVeryLong", safetensors_file("{\"" + std::string(500, 'n') + "\":1}"),
       "m.st: header key \"" + std::string(80, 'n') + "…" + std::string(40, 'n') +
           "\" (500 bytes) holds the number 1, expected an object"},
  };
  return files;
}

class BrokenSafetensors : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenSafetensors, IsRefusedWithOneClearLine) {
  EXPECT_EQ(message_of([&] { parse(GetParam().file); }), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Files, BrokenSafetensors, ::testing::ValuesIn(broken_files()),
                         [](const auto& one) { return one.param.label; });

TEST(Safetensors, EveryPrefixIsRefused) {
  const std::string file = valid_file();
  parse(file);
  for (std::size_t size = 0; size < file.size(); ++size) {
    EXPECT_NE(message_of([&] { parse(file.substr(0, size)); }), "") << size;
  }
}

// A flipped header either still parses, with every tensor inside the file (read by parse()), or is
// refused with an Error; nothing else may be thrown.
TEST(Safetensors, FlippedBytesNeverCrash) {
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = valid_file();
    const int flips = 1 + static_cast<int>(random() % 3);
    for (int f = 0; f < flips; ++f)
      file[random() % (file.size() - 20)] = static_cast<char>(random());
    try {
      parse(file);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10000);
  EXPECT_LT(refused, 20000);
}

TEST(Safetensors, WrittenFileReadsBack) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::vector<float> a = {1.5f, -0.0f, 3e-42f}, b = {7.0f};
  const std::vector<F32Tensor> tensors = {
      {"layer.0.\"w\"\n", {3, 1}, a}, {"müller", {}, b}, {"none", {0, 4}, {}}};
  write_safetensors(path, tensors, {{"format", "pt"}, {"note", "ä"}});
  EXPECT_FALSE(std::filesystem::exists(path.string() + ".part"));
  const TensorStore store = open_safetensors(path);
  EXPECT_EQ(store.name(), path.string());
  ASSERT_EQ(store.files().size(), 1u);
  EXPECT_EQ(parse_safetensors(store.files()[0]->bytes(), "x").metadata.at("note"), "ä");
  ASSERT_EQ(store.tensors().size(), 3u);
  for (const F32Tensor& written : tensors) {
    const TensorInfo* read = store.find(written.name);
    ASSERT_NE(read, nullptr) << written.name;
    EXPECT_EQ(read->dtype, DType::f32);
    EXPECT_EQ(read->shape, written.shape);
    ASSERT_EQ(read->bytes.size(), written.values.size_bytes());
    if (!written.values.empty()) {
      EXPECT_EQ(std::memcmp(read->bytes.data(), written.values.data(), read->bytes.size()), 0);
    }
  }
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(store.tensors()[0].bytes.data()) % 8, 0u);
  EXPECT_EQ(store.find("absent"), nullptr);
}

TEST(Safetensors, WriterRefusesWhatItCouldNotReadBack) {
  const TempFolder folder;
  const std::string path = (folder.path() / "out.safetensors").string();
  const std::vector<float> two(2);
  const auto write = [&](std::vector<F32Tensor> tensors,
                         std::map<std::string, std::string> metadata = {}) {
    return message_of([&] { write_safetensors(path, tensors, metadata); });
  };
  EXPECT_EQ(write({{"w", {3}, two}}), path + ": tensor \"w\": shape [3] has 3 values, got 2");
  EXPECT_EQ(write({{"w", {2}, two}, {"w", {2}, two}}), path + ": tensor \"w\" appears twice");
  EXPECT_EQ(write({{"__metadata__", {2}, two}}),
            path + ": \"__metadata__\" cannot be the name of a tensor");
  EXPECT_EQ(write({{"\xff", {2}, two}}), path + ": \"\\xff\" cannot be the name of a tensor");
  EXPECT_EQ(write({{"w", std::vector<std::uint64_t>(65, 1), two}}),
            path + ": tensor \"w\" has 65 dimensions, at most 64 are allowed");
  EXPECT_EQ(write({}, {{"k", "\xff"}}),
            path + ": metadata key \"k\" or its value is no UTF-8 text");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_EQ(message_of([&] { write_safetensors(path + "/none/x", {}); }),
            path + "/none/x.part: cannot create: No such file or directory");
}

}  // namespace
}  // namespace lamina
