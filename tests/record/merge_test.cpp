#include "expect_run.h"
#include "record/h5.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::expect_equal;
using testing::FakeRun;
using testing::TempFolder;
namespace fs = std::filesystem;

// Records prompts first … last − 1 as NAME.
fs::path record_part(const FakeRun& run, const fs::path& path, std::int64_t first,
                     std::int64_t last, std::uint64_t shard_bytes = std::uint64_t{1} << 30) {
  WriterOptions options;
  options.first_prompt = first;
  options.last_prompt = last;
  options.shard_bytes = shard_bytes;
  run.record(path, options);
  return path;
}

class Merge : public ::testing::TestWithParam<bool> {};

TEST_P(Merge, EqualsTheWholeRun) {
  const FakeRun run;
  TempFolder folder;
  fs::create_directory(folder / "elsewhere");
  const std::vector<fs::path> parts = {
      record_part(run, folder / "c.h5", 4, 6), record_part(run, folder / "a.h5", 0, 1),
      record_part(run, folder / "elsewhere/b.h5", 1, 4, 4000)};  // in several shards itself
  merge_recordings(parts, folder / "all.h5", GetParam());
  expect_equal(run, Recording::open(folder / "all.h5"));
  run.record(folder / "whole.h5");
  const RecordingDifference difference = compare_recordings(Recording::open(folder / "whole.h5"),
                                                            Recording::open(folder / "all.h5"), 0);
  EXPECT_TRUE(difference.equal);
  EXPECT_TRUE(difference.notes.empty());
  // The sentences depend on facts of the model that only the parts' own files know.
  const auto semantics = [&](const char* name) {
    return h5::read_text_attribute(h5::open_dataset(h5::open_file((folder / name).string(), false),
                                                    "activations/blocks.0.mlp.hook_pre"),
                                   "semantics");
  };
  EXPECT_EQ(semantics("all.h5"), semantics("whole.h5"));
  if (GetParam()) {
    for (const fs::path& part : parts) remove_recording(part);
    expect_equal(run, Recording::open(folder / "all.h5"));
  } else {
    remove_recording(parts[0]);
    EXPECT_HAS(error_of([&] { Recording::open(folder / "all.h5"); }), "c.h5 is missing");
  }
}

INSTANTIATE_TEST_SUITE_P(Record, Merge, ::testing::Bool(),
                         [](const auto& which) { return which.param ? "Copy" : "Index"; });

TEST(Merge, RefusesWhatDoesNotFit) {
  const FakeRun run;
  TempFolder folder;
  const fs::path a = record_part(run, folder / "a.h5", 0, 2);
  const fs::path b = record_part(run, folder / "b.h5", 2, 4);
  const fs::path c = record_part(run, folder / "c.h5", 4, 6);
  FakeRun other_run;
  other_run.header.prompts_sha256 = "ff";
  const fs::path other = record_part(other_run, folder / "other.h5", 2, 4);
  const auto refused = [&](std::vector<fs::path> parts) {
    return error_of([&] { merge_recordings(parts, folder / "all.h5", false); });
  };
  EXPECT_HAS(refused({}), "nothing to merge");
  EXPECT_HAS(refused({a, c}), "prompts 2 to 3 are in no file");
  EXPECT_HAS(refused({b, c}), "prompts 0 to 1 are in no file");
  EXPECT_HAS(refused({a, b}), "prompts 4 to 5 are in none of the 2 files");
  EXPECT_HAS(refused({a, b, b, c}), "has prompts up to 3 already");
  EXPECT_HAS(refused({a, other, c}), "other.h5: it is of another run");
  EXPECT_HAS(refused({a, other, c}), "'" + std::string(64, 'c') + "' in one and 'ff'");
  EXPECT_FALSE(fs::exists(folder / "all.h5"));
  EXPECT_EQ(refused({a, b, c}), "");
  EXPECT_HAS(refused({a, b, c}), "all.h5: the file exists");
}

TEST(Compare, FindsTheFirstDifference) {
  FakeRun run;
  TempFolder folder;
  run.record(folder / "a.h5");
  ActivationBlock block = run.block(0, 6);
  auto values = [&](Site site) -> std::vector<float>& {
    return block.sites.at(ActivationBlock::site_key(site)).values;
  };
  const Site z{SiteKind::z, 0}, pattern{SiteKind::pattern, 1};
  values(z)[7 * 12 + 5] += 2;
  values(z)[9 * 12 + 1] -= 3;
  // Prompt 2 has 5 tokens and follows prompts of 3 and 1: head 1, query 3, key 2.
  values(pattern)[4 * 9 + 4 * 1 + 25 * 1 + 5 * 3 + 2] += 1;
  {
    RecordingWriter writer(folder / "b.h5", run.header, run.prompts);
    writer.append(block);
    writer.finish();
  }
  const Recording a = Recording::open(folder / "a.h5"), b = Recording::open(folder / "b.h5");
  const RecordingDifference exact = compare_recordings(a, b, 0);
  EXPECT_FALSE(exact.equal);
  ASSERT_EQ(exact.sites.size(), run.header.sites.size());
  for (const SiteDifference& site : exact.sites) {
    if (site.site == z) {
      EXPECT_EQ(site.token, 7);
      EXPECT_EQ(site.column, 5);
      EXPECT_NEAR(site.max_abs, 3, 1e-5);
      EXPECT_EQ(site.b, values(z)[7 * 12 + 5]);
    } else if (site.site == pattern) {
      EXPECT_EQ(site.token, 4 + 3);
      EXPECT_EQ(site.column, 1 * 5 + 2);
      EXPECT_NEAR(site.max_abs, 1, 1e-5);
    } else {
      EXPECT_EQ(site.token, -1) << site_name(site.site);
      EXPECT_EQ(site.max_abs, 0) << site_name(site.site);
    }
  }
  // Relative to the site's largest magnitude (below 128): 2 and 3 are within 5 %, 0.1 % is not.
  EXPECT_TRUE(compare_recordings(a, b, 0.05).equal);
  EXPECT_FALSE(compare_recordings(a, b, 0.001).equal);
  EXPECT_TRUE(compare_recordings(a, a, 0).equal);
}

TEST(Compare, NotesOtherInputsAndSites) {
  FakeRun run;
  TempFolder folder;
  run.record(folder / "a.h5");
  FakeRun fewer;
  fewer.header.sites.erase(fewer.header.sites.begin());
  fewer.record(folder / "fewer.h5");
  FakeRun other;
  other.prompts[2].ids[3] ^= 1;
  other.record(folder / "other.h5");
  FakeRun named;
  named.prompts[2].text = "other";
  named.record(folder / "named.h5");
  const auto against = [&](const char* name) {
    return compare_recordings(Recording::open(folder / "a.h5"), Recording::open(folder / name), 0);
  };
  const RecordingDifference sites = against("fewer.h5");
  EXPECT_FALSE(sites.equal);
  EXPECT_HAS(sites.notes, "hook_embed only in");
  EXPECT_EQ(sites.sites.size(), fewer.header.sites.size());
  const RecordingDifference inputs = against("other.h5");
  EXPECT_FALSE(inputs.equal);
  EXPECT_HAS(inputs.notes, "prompt 2: token ids differ from position 3 on");
  const RecordingDifference texts = against("named.h5");
  EXPECT_FALSE(texts.equal);
  EXPECT_HAS(texts.notes, "prompt 2: text differs");
}

TEST(Compare, LogitsCount) {
  FakeRun run;
  TempFolder folder;
  run.record(folder / "a.h5");
  ActivationBlock block = run.block(0, 6);
  block.logits.topk_logprobs[4 * 3 + 1] += 1;
  RecordingWriter writer(folder / "b.h5", run.header, run.prompts);
  writer.append(block);
  writer.finish();
  const RecordingDifference difference =
      compare_recordings(Recording::open(folder / "a.h5"), Recording::open(folder / "b.h5"), 0);
  EXPECT_FALSE(difference.equal);
  EXPECT_HAS(difference.notes, "logits/topk_logprobs: token 4");
}

}  // namespace
}  // namespace lamina
