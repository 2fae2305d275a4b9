#include "lamina/core/recording.h"

#include <bit>

#include "expect_run.h"
#include "record/convert.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::expect_equal;
using testing::FakeRun;
using testing::same_bits;
using testing::TempFolder;

class EveryStoreType : public ::testing::TestWithParam<StoreType> {};

TEST_P(EveryStoreType, ReadsBackWhatWasWritten) {
  FakeRun run;
  run.header.store = GetParam();
  TempFolder folder;
  run.record(folder / "run.h5");
  EXPECT_FALSE(std::filesystem::exists(folder / "run.h5.part"));
  EXPECT_FALSE(std::filesystem::exists(folder / "run.h5.lock"));
  const Recording recording = Recording::open(folder / "run.h5");
  expect_equal(run, recording);
  const RecordingHeader& h = recording.header();
  EXPECT_EQ(h.tool_version, run.header.tool_version);
  EXPECT_EQ(h.argv, run.header.argv);
  EXPECT_EQ(h.created_utc, run.header.created_utc);
  EXPECT_EQ(h.seed, run.header.seed);
  EXPECT_EQ(h.model_id, run.header.model_id);
  EXPECT_EQ(h.config.family, "llama");
  EXPECT_EQ(h.config.n_kv_heads, 2);
  EXPECT_EQ(h.total_prompts, 6);
  EXPECT_TRUE(h.prepend_bos);
}

TEST_P(EveryStoreType, SeveralShards) {
  FakeRun run;
  run.header.store = GetParam();
  TempFolder folder;
  WriterOptions options;
  options.shard_bytes = 4000;
  run.record(folder / "run.h5", options, 4);
  EXPECT_TRUE(std::filesystem::exists(folder / "run.shard-0003.h5"));
  expect_equal(run, Recording::open(folder / "run.h5"));
}

INSTANTIATE_TEST_SUITE_P(Record, EveryStoreType,
                         ::testing::Values(StoreType::f32, StoreType::f16, StoreType::bf16),
                         [](const auto& which) {
                           return std::string(store_type_name(which.param));
                         });

TEST(Recording, RowsAcrossShardsInOneRead) {
  FakeRun run;
  TempFolder folder;
  WriterOptions options;
  options.shard_bytes = 1;  // one prompt a shard
  run.record(folder / "run.h5", options, 6);
  const Recording recording = Recording::open(folder / "run.h5");
  const Site site{SiteKind::z, 1};
  const std::vector<float> all = run.block(0, 6).at(site).values;
  for (std::int64_t first = 0; first <= 20; ++first) {
    for (std::int64_t count = 0; first + count <= 20; ++count) {
      std::vector<float> rows(static_cast<std::size_t>(count * 12));
      recording.read_rows(site, first, count, rows);
      EXPECT_TRUE(same_bits(rows, {all.begin() + first * 12, all.begin() + (first + count) * 12}));
    }
  }
  std::vector<float> rows(12);
  EXPECT_HAS(error_of([&] { recording.read_rows(site, 20, 1, rows); }),
             "1 token rows from 20 asked for, it has 20");
  EXPECT_HAS(error_of([&] { recording.read_rows(site, 0, 2, rows); }),
             "room for 24 values expected, found 12");
  EXPECT_HAS(error_of([&] {
               recording.read_attention({SiteKind::pattern, 0}, 6);
             }),
             "prompt 6 asked for, it has 6");
  EXPECT_HAS(error_of([&] { recording.read_attention(site, 0); }), "has token rows");
}

TEST(Recording, WithoutLogitsLabelsTargets) {
  FakeRun run({4, 2});
  run.header.topk = 0;
  run.header.sites = {{SiteKind::pattern, 1}};
  for (Prompt& p : run.prompts) p.labels.clear(), p.target.reset(), p.text.clear();
  TempFolder folder;
  run.record(folder / "run.h5");
  const Recording recording = Recording::open(folder / "run.h5");
  expect_equal(run, recording);
  EXPECT_HAS(error_of([&] {
               recording.read_block(std::vector<Site>{{SiteKind::z, 0}}, 0, 1);
             }),
             "site blocks.0.attn.hook_z was not recorded; it holds "
             "blocks.1.attn.hook_pattern");
}

TEST(Recording, OnlyLogits) {
  FakeRun run({4, 2});
  run.header.sites.clear();
  TempFolder folder;
  run.record(folder / "run.h5");
  expect_equal(run, Recording::open(folder / "run.h5"));
}

TEST(Recording, LargeBlocksPassThroughASmallQueue) {
  FakeRun run(std::vector<std::int64_t>(40, 30));
  run.header.store = StoreType::bf16;
  TempFolder folder;
  WriterOptions options;
  options.queue_bytes = 5000;  // less than one site's block
  run.record(folder / "run.h5", options, 20);
  expect_equal(run, Recording::open(folder / "run.h5"));
}

TEST(Recording, RangeOfARun) {
  FakeRun run;
  TempFolder folder;
  WriterOptions options;
  options.first_prompt = 2;
  options.last_prompt = 5;
  run.record(folder / "run.h5", options);
  const Recording recording = Recording::open(folder / "run.h5");
  EXPECT_EQ(recording.header().shard_first_prompt, 2);
  EXPECT_EQ(recording.header().total_prompts, 6);
  expect_equal(run, recording, 2, 5);
}

TEST(Recording, HalfPrecisionRefusesOverflow) {
  FakeRun run;
  run.header.store = StoreType::f16;
  TempFolder folder;
  RecordingWriter writer(folder / "run.h5", run.header, run.prompts);
  ActivationBlock block = run.block(0, 6);
  const Site site{SiteKind::q, 1};
  auto& values = block.sites.at(ActivationBlock::site_key(site)).values;
  // Prompts have 3, 1, 5 … tokens: token row 5 is token 1 of prompt 2.
  values[5 * 12 + 7] = 65519.996f;  // still rounds to 65504
  values[5 * 12 + 8] = -65520.0f;
  EXPECT_HAS(error_of([&] { writer.append(block); }),
             "site blocks.1.attn.hook_q, prompt 2 ('p2'), token 1: value -65520 is "
             "beyond f16's ±65504");
}

TEST(Recording, HalfPrecisionKeepsInfinities) {
  FakeRun run;
  run.header.store = StoreType::f16;
  TempFolder folder;
  run.record(folder / "run.h5");  // the scores hold −∞
  const std::vector<float> scores =
      Recording::open(folder / "run.h5").read_attention({SiteKind::attn_scores, 0}, 0);
  EXPECT_EQ(scores[1], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isfinite(scores[0]));
}

TEST(RecordingWriter, RefusesBlocksThatDoNotFit) {
  FakeRun run;
  TempFolder folder;
  RecordingWriter writer(folder / "run.h5", run.header, run.prompts);
  EXPECT_HAS(error_of([&] { writer.append(run.block(1, 2)); }),
             "prompt 0 must come next, the block begins with 1");
  ActivationBlock block = run.block(0, 2);
  block.batch.ids[1] ^= 1;
  EXPECT_HAS(error_of([&] { writer.append(block); }), "prompt 0 of the block has other tokens");
  block = run.block(0, 2);
  block.sites.at(ActivationBlock::site_key({SiteKind::z, 0})).values.pop_back();
  EXPECT_HAS(error_of([&] { writer.append(block); }),
             "blocks.0.attn.hook_z: 48 values expected in a block of 4 tokens, found 47");
  block = run.block(0, 2);
  block.sites.at(ActivationBlock::site_key({SiteKind::pattern, 0})).offsets[1] = 1;
  EXPECT_HAS(error_of([&] { writer.append(block); }), "offset 1 is 1, 36 expected");
  block = run.block(0, 2);
  block.sites.erase(ActivationBlock::site_key({SiteKind::z, 0}));
  EXPECT_HAS(error_of([&] { writer.append(block); }), "blocks.0.attn.hook_z");
  block = run.block(0, 2);
  block.logits.k = 2;
  EXPECT_HAS(error_of([&] { writer.append(block); }),
             "logit summary of 3 entries expected, found 2");
  EXPECT_HAS(error_of([&] { writer.finish(); }),
             "prompt 0 must come next, the recording ends at 6");
  run.append(writer, 6, 3);  // and none of this has spoilt the recording
  writer.finish();
  expect_equal(run, Recording::open(folder / "run.h5"));
}

TEST(RecordingWriter, RefusesRequestsThatCannotWork) {
  TempFolder folder;
  const auto refused = [&](auto change) {
    FakeRun run;
    WriterOptions options;
    change(run, options);
    return error_of([&] { RecordingWriter(folder / "run.h5", run.header, run.prompts, options); });
  };
  EXPECT_HAS(refused([](FakeRun& run, auto&) { run.prompts.clear(); }), "at least one prompt");
  EXPECT_HAS(refused([](FakeRun& run, auto&) { run.prompts[3].ids.clear(); }),
             "prompt 3 ('p3') has no tokens");
  EXPECT_HAS(refused([](FakeRun& run, auto&) { run.prompts[1].given = 2; }),
             "has 1 tokens, of which 2 are said to be given");
  EXPECT_HAS(refused([](FakeRun& run, auto&) {
               run.header.sites.push_back({SiteKind::z, 0});
             }),
             "site blocks.0.attn.hook_z was asked for twice");
  EXPECT_HAS(refused([](auto&, WriterOptions& o) { o.first_prompt = 6; }),
             "prompts 6 to 6 asked for, the run has 6");
  EXPECT_HAS(refused([](auto&, WriterOptions& o) { o.last_prompt = 7; }),
             "prompts 0 to 7 asked for, the run has 6");
  EXPECT_HAS(refused([](FakeRun& run, auto&) { run.prompts[0].text = std::string("a\0b", 3); }),
             "zero byte");
  FakeRun run;
  EXPECT_HAS(
      error_of([&] { RecordingWriter(folder / "no folder/run.h5", run.header, run.prompts); }),
      "No such file or directory");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(RecordingWriter, NeverOverwrites) {
  FakeRun run;
  TempFolder folder;
  run.record(folder / "run.h5");
  EXPECT_HAS(error_of([&] { RecordingWriter(folder / "run.h5", run.header, run.prompts); }),
             "run.h5: the file exists; a recording never overwrites one");
  remove_recording(folder / "run.h5");
  { RecordingWriter abandoned(folder / "run.h5", run.header, run.prompts); }
  EXPECT_HAS(error_of([&] { RecordingWriter(folder / "run.h5", run.header, run.prompts); }),
             "an interrupted recording is there");
  EXPECT_HAS(error_of([&] { Recording::open(folder / "run.h5"); }),
             "an interrupted recording is there");
  remove_recording(folder / "run.h5");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  run.record(folder / "run.h5");
}

TEST(RecordingWriter, OneProcessAtATime) {
  FakeRun run;
  TempFolder folder;
  RecordingWriter first(folder / "run.h5", run.header, run.prompts);
  WriterOptions options;
  options.resume = true;
  EXPECT_HAS(
      error_of([&] { RecordingWriter(folder / "run.h5", run.header, run.prompts, options); }),
      "another process is writing this recording");
  EXPECT_HAS(error_of([&] { remove_recording(folder / "run.h5"); }),
             "another process is writing this recording");
  EXPECT_NE(error_of([&] { Recording::open(folder / "run.h5.part"); }), "");
  run.append(first, 6, 2);
  first.finish();
  expect_equal(run, Recording::open(folder / "run.h5"));
}

// The recorder's vector loops against the scalar conversions, which the engine's readers use.
TEST(StoreType, ConversionsAgreeWithTheScalarOnes) {
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low :
         {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x3000u, 0xffffu}) {
      const float value = std::bit_cast<float>(high << 16 | low);
      const bool stored = !std::isfinite(value) || std::fabs(value) < 65520.0f;
      if (stored) values.push_back(value);
    }
  }
  values.push_back(1.5f);  // not a multiple of the vector length
  for (StoreType store : {StoreType::f16, StoreType::bf16}) {
    std::vector<std::uint16_t> halves(values.size());
    EXPECT_EQ(record::encode(store, values, reinterpret_cast<std::byte*>(halves.data())), -1);
    std::vector<float> back(values.size());
    record::decode(store, reinterpret_cast<const std::byte*>(halves.data()), back);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t expected =
          store == StoreType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
      ASSERT_EQ(halves[i], expected) << i << " " << values[i];
      const float stored = store == StoreType::f16 ? f16_to_f32(expected) : bf16_to_f32(expected);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(back[i]), std::bit_cast<std::uint32_t>(stored)) << i;
    }
  }
}

TEST(StoreType, Names) {
  for (StoreType type : {StoreType::f32, StoreType::f16, StoreType::bf16}) {
    EXPECT_EQ(parse_store_type(store_type_name(type)), type);
  }
  EXPECT_HAS(error_of([] { parse_store_type("f64"); }),
             "store type 'f64' is not one of f32, f16, bf16");
}

// For open_with_xarray.py: writes sample files into the folder it names.
TEST(Sample, Write) {
  const char* folder = std::getenv("LAMINA_RECORD_SAMPLE");
  if (folder == nullptr) GTEST_SKIP() << "only for open_with_xarray.py";
  for (StoreType store : {StoreType::f32, StoreType::f16, StoreType::bf16}) {
    FakeRun run;
    run.header.store = store;
    run.record(std::filesystem::path(folder) / fmt::format("{}.h5", store_type_name(store)));
  }
  WriterOptions options;
  options.shard_bytes = 4000;
  FakeRun().record(std::filesystem::path(folder) / "sharded.h5", options);
}

}  // namespace
}  // namespace lamina
