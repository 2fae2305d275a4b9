// Recording files that were broken by hand: each must be refused with one line that names the
// place.

#include <fstream>
#include <functional>

#include "expect_run.h"
#include "record/h5.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::FakeRun;
using testing::TempFolder;
namespace fs = std::filesystem;

struct Case {
  const char* name;
  std::function<void(const h5::Object&)> spoil;
  const char* message;
};

void remove(const h5::Object& file, const char* path) {
  ASSERT_GE(H5Ldelete(file.id(), path, H5P_DEFAULT), 0) << path;
}

void replace_attribute(const h5::Object& file, const char* name, auto value) {
  ASSERT_GE(H5Adelete(file.id(), name), 0) << name;
  h5::write_attribute(file, name, value);
}

template <class T>
void replace_dataset(const h5::Object& file, const char* path, h5::Type type, const h5::Dims& dims,
                     const std::vector<T>& values) {
  remove(file, path);
  h5::write_dataset(file, path, type, dims, values.data());
}

template <class T>
void change(const h5::Object& file, const char* path, h5::Type type, hsize_t row, T value) {
  h5::write_rows(h5::open_dataset(file, path), type, row, 1, &value);
}

const std::int64_t kFar = std::int64_t{1} << 40;

const Case kCases[] = {
    {"NoFormat", [](auto& f) { H5Adelete(f.id(), "format"); }, "attribute format is missing"},
    {"OtherFormat", [](auto& f) { replace_attribute(f, "format", std::string_view("netcdf")); },
     "format 'lamina-recording' expected, found 'netcdf'"},
    {"FormatIsANumber", [](auto& f) { replace_attribute(f, "format", std::int64_t{1}); },
     "attribute format must be one text"},
    {"NewerVersion", [](auto& f) { replace_attribute(f, "format_version", std::int64_t{2}); },
     "format version 1 can be read, found version 2"},
    {"VersionIsText",
     [](auto& f) { replace_attribute(f, "format_version", std::string_view("1")); },
     "attribute format_version must be one integer"},
    {"NotComplete", [](auto& f) { h5::update_attribute(f, "complete", 0); },
     "the recording is not complete: 6 prompts are stored"},
    {"NoModelHash", [](auto& f) { H5Adelete(f.id(), "model_sha256"); },
     "attribute model_sha256 is missing"},
    {"NegativeWidth", [](auto& f) { h5::update_attribute(f, "d_model", -5); },
     "attribute d_model is -5, 1 to"},
    {"HugeLayers", [](auto& f) { h5::update_attribute(f, "n_layers", kFar); },
     "attribute n_layers is 1099511627776"},
    {"HugeHeads", [](auto& f) { h5::update_attribute(f, "n_heads", 1 << 24); }, "expected"},
    {"FewerLayersThanSites", [](auto& f) { h5::update_attribute(f, "n_layers", 1); },
     "activations: the group holds 41 entries, at most 33 make sense"},
    {"OtherStoreType",
     [](auto& f) { replace_attribute(f, "store_dtype", std::string_view("f64")); },
     "attribute store_dtype is 'f64', f32, f16 or bf16 expected"},
    {"StoreTypeOfOthers",
     [](auto& f) { replace_attribute(f, "store_dtype", std::string_view("f16")); },
     "type float16 expected, found float of 32 bits"},
    {"OtherWidth", [](auto& f) { h5::update_attribute(f, "d_model", 13); },
     "extent [20, 13] expected, found [20, 12]"},
    {"TopkGone", [](auto& f) { remove(f, "logits/topk_ids"); },
     "logits/topk_ids: the dataset is missing"},
    {"SiteOfNoModel",
     [](auto& f) {
       H5Lmove(f.id(), "activations/hook_embed", f.id(), "activations/hook_x", H5P_DEFAULT,
               H5P_DEFAULT);
     },
     "'hook_x' is no site of a model of 2 layers"},
    {"TokenSiteAmongAttention",
     [](auto& f) {
       H5Lmove(f.id(), "activations/hook_embed", f.id(), "attention/hook_embed", H5P_DEFAULT,
               H5P_DEFAULT);
     },
     "site 'hook_embed' does not belong in this group"},
    {"SiteIsAGroup",
     [](auto& f) {
       remove(f, "activations/hook_embed");
       h5::make_group(f, "activations/hook_embed");
     },
     "activations/hook_embed: cannot open the dataset"},
    {"NoInputs", [](auto& f) { remove(f, "inputs"); }, "inputs/offsets: the dataset is missing"},
    {"DanglingLink",
     [](auto& f) {
       remove(f, "inputs/text");
       H5Lcreate_soft("/nowhere", f.id(), "inputs/text", H5P_DEFAULT, H5P_DEFAULT);
     },
     "inputs/text: the dataset is missing"},
    {"OffsetsGoBack",
     [](auto& f) { change(f, "inputs/offsets", h5::Type::i64, 2, std::int64_t{2}); },
     "inputs/offsets: entry 2 is 2, more than 3 expected"},
    {"OffsetsStartLate",
     [](auto& f) { change(f, "inputs/offsets", h5::Type::i64, 0, std::int64_t{1}); },
     "entry 0 is 1, 0 expected"},
    {"OffsetsEndFar", [](auto& f) { change(f, "inputs/offsets", h5::Type::i64, 6, kFar); },
     "the last entry is 1099511627776, inputs/input_ids has 20 tokens"},
    {"OffsetsAre32Bit",
     [](auto& f) {
       replace_dataset<std::int32_t>(f, "inputs/offsets", h5::Type::i32, {3}, {0, 1, 20});
     },
     "type int64 expected, found integer of 32 bits"},
    {"OffsetsAreATable",
     [](auto& f) {
       replace_dataset<std::int64_t>(f, "inputs/offsets", h5::Type::i64, {1, 2}, {0, 20});
     },
     "rank 1 expected, found [1, 2]"},
    {"OffsetsEmpty",
     [](auto& f) { replace_dataset<std::int64_t>(f, "inputs/offsets", h5::Type::i64, {1}, {0}); },
     "at least 2 entries expected, found 1"},
    {"TooFewIds",
     [](auto& f) {
       replace_dataset(f, "inputs/input_ids", h5::Type::i32, {19}, std::vector<std::int32_t>(19));
     },
     "inputs/input_ids has 19 tokens"},
    {"IdOutsideTheVocabulary",
     [](auto& f) { change(f, "inputs/input_ids", h5::Type::i32, 3, std::int32_t{1000}); },
     "token id 1000 of prompt 1 is outside the vocabulary of 1000"},
    {"HugeIds",
     [](auto& f) {
       remove(f, "inputs/input_ids");
       h5::create_dataset(f, "inputs/input_ids", {h5::Type::i32, {1ull << 50}, {}, false});
     },
     "the file stores 0"},
    {"PhaseGoesBack", [](auto& f) { change(f, "inputs/phase", h5::Type::u8, 0, std::uint8_t{1}); },
     "inputs/phase: entry 1 is 0 after 1"},
    {"PositionsDiffer",
     [](auto& f) { change(f, "inputs/position_ids", h5::Type::i32, 1, std::int32_t{7}); },
     "inputs/position_ids: entry 1 is 7, 1 expected"},
    {"TargetBelowMinusOne",
     [](auto& f) { change(f, "inputs/target", h5::Type::i32, 1, std::int32_t{-2}); },
     "inputs/target: entry 1 is -2"},
    {"TextsAreNumbers",
     [](auto& f) {
       replace_dataset(f, "inputs/text", h5::Type::i32, {6}, std::vector<std::int32_t>(6));
     },
     "type variable-length UTF-8 text expected"},
    {"TextIsLatin1",
     [](auto& f) {
       remove(f, "inputs/text");
       h5::write_texts(f, "inputs/text", {6},
                       std::vector<std::string>{"a", "b", "\xe9t\xe9", "", "", ""});
     },
     "inputs/text: entry 2 is not UTF-8"},
    {"TooFewLabels",
     [](auto& f) {
       remove(f, "inputs/label_present/language");
       h5::write_dataset(f, "inputs/label_present/language", h5::Type::u8, {1}, "\1");
     },
     "label_present/language: 6 entries expected, found 1"},
    {"NoLabelMask", [](auto& f) { remove(f, "inputs/label_present/language"); },
     "inputs/label_present/language: the dataset is missing"},
    {"RowsTooShort",
     [](auto& f) {
       replace_dataset(f, "activations/hook_embed", h5::Type::f32, {19, 12},
                       std::vector<float>(19 * 12));
     },
     "activations/hook_embed: extent [20, 12] expected, found [19, 12]"},
    {"RowsOfOtherType",
     [](auto& f) {
       replace_dataset(f, "activations/hook_embed", h5::Type::f64, {20, 12},
                       std::vector<double>(20 * 12));
     },
     "activations/hook_embed: type float32 expected, found float of 64 bits"},
    {"AttentionOffsetsWrong",
     [](auto& f) {
       change(f, "attention/blocks.0.attn.hook_pattern/offsets", h5::Type::i64, 1,
              std::int64_t{37});
     },
     "hook_pattern/offsets: entry 1 is 37, 4 heads of the prompts' lengths ask for 36"},
    {"AttentionOffsetsTooMany",
     [](auto& f) {
       replace_dataset(f, "attention/blocks.0.attn.hook_pattern/offsets", h5::Type::i64, {9},
                       std::vector<std::int64_t>(9));
     },
     "7 entries expected, found 9"},
    {"AttentionValuesGone",
     [](auto& f) { remove(f, "attention/blocks.0.attn.hook_pattern/values"); },
     "hook_pattern/values: the dataset is missing"},
    {"StartsAfterItsEnd", [](auto& f) { h5::update_attribute(f, "shard_first_prompt", 1); },
     "it holds prompts 1 to 7, the run has 6"},
    {"StartsOutside", [](auto& f) { h5::update_attribute(f, "shard_first_prompt", 6); },
     "attribute shard_first_prompt is 6, 0 to 5 expected"},
};

class Broken : public ::testing::TestWithParam<Case> {};

TEST_P(Broken, IsRefused) {
  TempFolder folder;
  const fs::path path = folder / "run.h5";
  FakeRun().record(path);
  {
    h5::Lock lock;
    const h5::Object file = h5::open_file(path.string(), true);
    GetParam().spoil(file);
  }
  const std::string message = error_of([&] { Recording::open(path); });
  EXPECT_HAS(message, GetParam().message);
  EXPECT_HAS(message, "run.h5");
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Hostile, Broken, ::testing::ValuesIn(kCases),
                         [](const auto& which) { return which.param.name; });

TEST(Hostile, NotAFile) {
  TempFolder folder;
  EXPECT_HAS(error_of([&] { Recording::open(folder / "none.h5"); }), "no such file");
  EXPECT_NE(error_of([&] { Recording::open(folder.path()); }), "");
  std::ofstream(folder / "text.h5") << "not HDF5 at all";
  EXPECT_HAS(error_of([&] { Recording::open(folder / "text.h5"); }), "cannot open it as HDF5");
  std::ofstream(folder / "empty.h5");
  EXPECT_NE(error_of([&] { Recording::open(folder / "empty.h5"); }), "");
}

TEST(Hostile, TruncatedAnywhere) {
  TempFolder folder;
  FakeRun().record(folder / "run.h5");
  const auto size = static_cast<std::int64_t>(fs::file_size(folder / "run.h5"));
  for (std::int64_t left = 0; left < size; left += left < 4096 ? 61 : 7919) {
    fs::copy_file(folder / "run.h5", folder / "cut.h5", fs::copy_options::overwrite_existing);
    fs::resize_file(folder / "cut.h5", static_cast<std::uintmax_t>(left));
    EXPECT_NE(error_of([&] { Recording::open(folder / "cut.h5"); }), "") << left << " of " << size;
  }
  fs::resize_file(folder / "cut.h5", static_cast<std::uintmax_t>(size - 1));
  EXPECT_NE(error_of([&] { Recording::open(folder / "cut.h5"); }), "");
}

class Sharded : public ::testing::Test {
 protected:
  Sharded() {
    WriterOptions options;
    options.shard_bytes = 4000;
    run_.record(folder_ / "run.h5", options);
  }
  std::string refusal() {
    return error_of([&] { Recording::open(folder_ / "run.h5"); });
  }
  TempFolder folder_;
  FakeRun run_;
};

TEST_F(Sharded, MissingShardIsNamed) {
  EXPECT_EQ(refusal(), "");
  fs::remove(folder_ / "run.shard-0002.h5");
  EXPECT_HAS(refusal(), "run.shard-0002.h5 is missing");
}

TEST_F(Sharded, ShardOfAnotherRun) {
  FakeRun other;
  other.header.model_sha256 = "ff";
  WriterOptions options;
  options.shard_bytes = 4000;
  other.record(folder_ / "other.h5", options);
  fs::rename(folder_ / "other.shard-0002.h5", folder_ / "run.shard-0002.h5");
  EXPECT_HAS(refusal(), "run.shard-0002.h5: the shard is of another run: model_sha256");
}

TEST_F(Sharded, ShardsInTheWrongPlaces) {
  fs::rename(folder_ / "run.shard-0001.h5", folder_ / "tmp");
  fs::rename(folder_ / "run.shard-0002.h5", folder_ / "run.shard-0001.h5");
  fs::rename(folder_ / "tmp", folder_ / "run.shard-0002.h5");
  EXPECT_HAS(refusal(),
             "run.shard-0001.h5 has 1 prompts and 1 tokens from prompt 0 and row 0, the index says "
             "1 and 3");
}

TEST_F(Sharded, IncompleteShard) {
  h5::update_attribute(h5::open_file((folder_ / "run.shard-0002.h5").string(), true), "complete",
                       0);
  EXPECT_HAS(refusal(), "run.shard-0002.h5: the recording is not complete");
}

TEST_F(Sharded, IndexThatSaysSomethingElse) {
  {
    const h5::Object file = h5::open_file((folder_ / "run.h5").string(), true);
    change(file, "shards/tokens", h5::Type::i64, 1, std::int64_t{99});
  }
  EXPECT_HAS(refusal(), "the index says");
}

TEST_F(Sharded, IndexThatNamesItself) {
  {
    const h5::Object file = h5::open_file((folder_ / "run.h5").string(), true);
    remove(file, "shards/file");
    h5::write_texts(file, "shards/file", {3}, std::vector<std::string>(3, "run.h5"));
  }
  EXPECT_NE(refusal(), "");
}

TEST_F(Sharded, IndexWithAbsolutePaths) {
  {
    const h5::Object file = h5::open_file((folder_ / "run.h5").string(), true);
    remove(file, "shards/file");
    h5::write_texts(file, "shards/file", {3}, std::vector<std::string>(3, "/etc/passwd"));
  }
  EXPECT_NE(refusal(), "");
}

}  // namespace
}  // namespace lamina
