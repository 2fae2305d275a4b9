// Interrupted recordings: abandoned, killed, out of space, damaged. Whatever happens, a resumed run
// ends with the data of an uninterrupted one.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <random>
#include <thread>

#include "expect_run.h"
#include "record/h5.h"

extern char** environ;

namespace lamina {
namespace {

using testing::error_of;
using testing::expect_equal;
using testing::FakeRun;
using testing::TempFolder;
namespace fs = std::filesystem;

WriterOptions resuming(std::uint64_t shard_bytes = std::uint64_t{1} << 30) {
  WriterOptions options;
  options.resume = true;
  options.shard_bytes = shard_bytes;
  options.flush_bytes = 1;
  return options;
}

constexpr std::uint64_t kSmall = 30'000;  // shards of a few prompts

TEST(Resume, AfterAnAbandonedWriter) {
  for (const std::uint64_t shard_bytes : {std::uint64_t{1} << 30, kSmall}) {
    for (std::int64_t stop = 0; stop <= 6; ++stop) {
      FakeRun run;
      TempFolder folder;
      {
        RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming(shard_bytes));
        run.append(writer, stop, 1);
      }
      EXPECT_FALSE(fs::exists(folder / "run.h5"));
      {
        RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming(shard_bytes));
        EXPECT_EQ(writer.next_prompt(), stop);
        run.append(writer, 6, 2);
        writer.finish();
      }
      expect_equal(run, Recording::open(folder / "run.h5"));
      RecordingWriter again(folder / "run.h5", run.header, run.prompts, resuming(shard_bytes));
      EXPECT_EQ(again.next_prompt(), 6);
      again.finish();
    }
  }
}

TEST(Resume, RefusesAnotherRun) {
  const auto refused = [](bool finished, auto change) {
    FakeRun run;
    TempFolder folder;
    {
      RecordingWriter writer(folder / "run.h5", run.header, run.prompts);
      run.append(writer, finished ? 6 : 3, 1);
      if (finished) writer.finish();
    }
    change(run);
    return error_of(
        [&] { RecordingWriter(folder / "run.h5", run.header, run.prompts, resuming()); });
  };
  for (bool finished : {false, true}) {
    EXPECT_EQ(refused(finished, [](FakeRun&) {}), "");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.model_sha256 = "dd"; }),
               "model_sha256 is '" + std::string(64, 'a') + "' in one and 'dd'");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.prompts_sha256 = "ee"; }),
               "prompts_sha256 is");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.store = StoreType::bf16; }),
               "store_dtype is 'f32' in one and 'bf16' in the other");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.topk = 4; }),
               "topk is '3' in one and '4' in the other");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.sites.pop_back(); }),
               "[ln_final.hook_normalized] only in one, [] only in the other");
    EXPECT_HAS(refused(finished, [](FakeRun& r) { r.header.config.d_model = 16; }),
               "d_model is '12' in one and '16' in the other");
  }
  EXPECT_HAS(refused(false, [](FakeRun& r) { r.prompts[4].ids[0] ^= 1; }),
             "prompt 4 ('p4') of the file has another token ids");
  EXPECT_HAS(refused(false, [](FakeRun& r) { r.prompts[4].labels["new"] = "x"; }),
             "another labels");
}

TEST(Resume, SetsADamagedOpenShardAside) {
  FakeRun run;
  TempFolder folder;
  fs::path part;
  std::int64_t stop = 1;
  for (; part.empty() && stop < 6; ++stop) {  // until the interruption falls inside a shard
    RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming(kSmall));
    run.append(writer, stop, 1);
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      if (entry.path().extension() == ".part") part = entry.path();
    }
  }
  ASSERT_FALSE(part.empty());
  fs::resize_file(part, fs::file_size(part) / 2);
  RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming(kSmall));
  EXPECT_LT(writer.next_prompt(), stop);
  EXPECT_TRUE(fs::exists(part.string() + ".damaged"));
  run.append(writer, 6, 1);
  writer.finish();
  expect_equal(run, Recording::open(folder / "run.h5"));
}

// ---- kill −9

constexpr std::int64_t kKillPrompts = 60;

FakeRun kill_run() {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < kKillPrompts; ++i) lengths.push_back(1 + i * 7 % 40);
  FakeRun run(lengths);
  run.header.config.d_model = 64;
  return run;
}

// The process that gets killed: this program again, told what to do by the environment.
TEST(KilledChild, Records) {
  const char* output = std::getenv("LAMINA_RECORD_CHILD");
  if (output == nullptr) GTEST_SKIP() << "only as a child of KillLoop";
  const FakeRun run = kill_run();
  WriterOptions options = resuming(std::stoull(std::getenv("LAMINA_RECORD_SHARD_BYTES")));
  options.flush_bytes = std::stoull(std::getenv("LAMINA_RECORD_FLUSH_BYTES"));
  RecordingWriter writer(output, run.header, run.prompts, options);
  run.append(writer, kKillPrompts, 3);
  writer.finish();
}

/// Starts the child, kills it after `delay`; true if it had ended well before that.
bool run_child(const fs::path& output, std::uint64_t shard_bytes, std::uint64_t flush_bytes,
               std::chrono::microseconds delay) {
  setenv("LAMINA_RECORD_CHILD", output.c_str(), 1);
  setenv("LAMINA_RECORD_SHARD_BYTES", std::to_string(shard_bytes).c_str(), 1);
  setenv("LAMINA_RECORD_FLUSH_BYTES", std::to_string(flush_bytes).c_str(), 1);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  std::string program = "/proc/self/exe", filter = "--gtest_filter=KilledChild.Records";
  char* arguments[] = {program.data(), filter.data(), nullptr};
  pid_t child = 0;
  const int started = posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(started, 0);
  std::this_thread::sleep_for(delay);
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  unsetenv("LAMINA_RECORD_CHILD");
  if (WIFSIGNALED(status)) return false;
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the child failed after an earlier one was killed";
  return true;
}

class KillLoop : public ::testing::TestWithParam<std::pair<std::uint64_t, std::uint64_t>> {};

TEST_P(KillLoop, EndsWithTheDataOfAnUninterruptedRun) {
  const auto [shard_bytes, flush_bytes] = GetParam();
  const FakeRun run = kill_run();
  std::mt19937 random(shard_bytes % 1000 + flush_bytes);
  int kills = 0, kills_with_data = 0, rounds = 0;
  // Where a kill falls depends on the machine's load: go on until enough fell into the writing.
  const int wanted_with_data = flush_bytes == 1 ? 2 : 0;
  while (kills < 26 || (kills_with_data < wanted_with_data && kills < 500)) {
    TempFolder folder;
    const fs::path output = folder / "run.h5";
    // Longer and longer, so that every round ends, and kills fall on every stage.
    double reach = 20'000;
    for (;;) {
      const std::chrono::microseconds delay(
          static_cast<long>(std::uniform_real_distribution<>(0, reach)(random)));
      if (run_child(output, shard_bytes, flush_bytes, delay)) break;
      ++kills;
      for (const auto& entry : fs::directory_iterator(folder.path())) {
        const std::string name = entry.path().filename();
        if (!name.ends_with(".h5.part")) continue;  // not the index, which is written anew
        const h5::Object part = h5::open_file(entry.path().string(), false);
        kills_with_data += h5::read_integer_attribute(part, "committed_prompts") > 0;
      }
      reach *= 1.3;
    }
    ++rounds;
    expect_equal(run, Recording::open(output));
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      EXPECT_EQ(entry.path().extension(), ".h5") << entry.path();
    }
    if (HasFailure()) break;
  }
  RecordProperty("kills", kills);
  RecordProperty("kills_with_data", kills_with_data);
  RecordProperty("rounds", rounds);
  EXPECT_GE(kills_with_data, wanted_with_data)
      << "of " << kills << ": the kills fell outside the writing";
}

INSTANTIATE_TEST_SUITE_P(Crash, KillLoop,
                         ::testing::Values(std::pair{std::uint64_t{1} << 30, std::uint64_t{1}},
                                           std::pair{std::uint64_t{400'000}, std::uint64_t{1}},
                                           std::pair{std::uint64_t{400'000},
                                                     std::uint64_t{1} << 30}));

// ---- a full disk, played by a limit on the size of files

class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uint64_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST(FullDisk, ShowsBeforeTheRunBegins) {
  const FakeRun run = kill_run();
  TempFolder folder;
  {
    const FileSizeLimit limit(100'000);
    EXPECT_HAS(error_of([&] { RecordingWriter(folder / "run.h5", run.header, run.prompts); }),
               "File too large");
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  run.record(folder / "run.h5");
}

TEST(FullDisk, InTheMiddleLeavesAResumableState) {
  const FakeRun run = kill_run();
  for (const std::uint64_t limit_bytes :
       {30'000, 200'000, 500'000, 900'000, 1'500'000, 2'000'000}) {
    TempFolder folder;
    std::string message;
    {
      RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming());
      const FileSizeLimit limit(limit_bytes);
      message = error_of([&] {
        run.append(writer, kKillPrompts, 1);
        writer.finish();
      });
      EXPECT_HAS(message, "run.h5.part");
      EXPECT_HAS(message, "File too large");
      EXPECT_EQ(message.find('\n'), std::string::npos);
      EXPECT_EQ(error_of([&] { writer.finish(); }), error_of([&] { writer.finish(); }));
      EXPECT_NE(error_of([&] { writer.finish(); }), "");
    }
    RecordingWriter writer(folder / "run.h5", run.header, run.prompts, resuming());
    EXPECT_LT(writer.next_prompt(), kKillPrompts);
    run.append(writer, kKillPrompts, 4);
    writer.finish();
    expect_equal(run, Recording::open(folder / "run.h5"));
  }
}

}  // namespace
}  // namespace lamina
