// `lamina record` killed at random moments, then resumed: equal to the run that nobody disturbed.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "cli/command.h"

namespace lamina::test {
namespace {

class Resume : public Cli {
 protected:
  Resume() {
    // Enough prompts for a run of some tenths of a second and several shards.
    std::ofstream file(folder() / "prompts.txt");
    for (int i = 0; i < 600; ++i) {
      file << "The war lasted from the year 17 " << 10 + i % 80 << " to 17\n"
           << "When Mary and John went to the store , John gave a drink to\n";
    }
  }
  std::vector<std::string> record(const std::string& out, bool resume) const {
    std::vector<std::string> words = {LAMINA_CLI,
                                      "-q",
                                      "--threads",
                                      "1",
                                      "record",
                                      "organism",
                                      "--prompts",
                                      "prompts.txt",
                                      "--sites",
                                      "resid_post,z,pattern:0",
                                      "--shard-size",
                                      "8M",
                                      "--batch-tokens",
                                      "64",
                                      "-o",
                                      out};
    if (resume) words.push_back("--resume");
    return words;
  }
  pid_t start(std::vector<std::string> words) const {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      if (::chdir(folder().c_str()) != 0) ::_exit(126);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    return child;
  }
  int wait(pid_t child) const {
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return status;
  }
  // Runs, and kills after `seconds`; whether the kill came before the end.
  bool run_and_kill(const std::vector<std::string>& words, double seconds) const {
    const pid_t child = start(words);
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    ::kill(child, SIGKILL);
    return WIFSIGNALED(wait(child));
  }
  void remove_outputs() const {
    for (const auto& entry : std::filesystem::directory_iterator(folder())) {
      if (entry.path().filename().string().starts_with("run.")) std::filesystem::remove(entry);
    }
  }
};

TEST_F(Resume, FiftyKillsLoseNothing) {
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(wait(start(record("whole.h5", false))), 0);
  const std::chrono::duration<double> whole = std::chrono::steady_clock::now() - begin;

  std::mt19937 random(20240607);
  std::uniform_real_distribution<double> moment(0.0, whole.count());
  int killed = 0, twice = 0;
  for (int i = 0; i < 55; ++i) {
    remove_outputs();
    const double first = moment(random), second = moment(random);
    SCOPED_TRACE(::testing::Message() << "round " << i << ", killed after " << first << " s");
    killed += run_and_kill(record("run.h5", false), first);
    if (i % 3 == 0) twice += run_and_kill(record("run.h5", true), second);
    const Outcome resumed = shell(
        "lamina -q record organism --prompts prompts.txt --sites resid_post,z,pattern:0 "
        "--shard-size 8M --batch-tokens 100 -o run.h5 --resume");
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    const Outcome diff = shell("lamina -q diff whole.h5 run.h5");
    ASSERT_EQ(diff.code, 0) << diff.out << diff.err;
    std::size_t leftovers = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder())) {
      const std::string name = entry.path().filename();
      leftovers += name.ends_with(".part") || name.ends_with(".new") || name.ends_with(".lock");
    }
    ASSERT_EQ(leftovers, 0U);
  }
  RecordProperty("killed", killed);
  RecordProperty("killed_again", twice);
  EXPECT_GE(killed, 30);  // the rest had already finished
}

TEST_F(Resume, AnInterruptedRunIsOnlyContinuedByItself) {
  const pid_t child = start(record("run.h5", false));
  const auto second_shard = folder() / "run.shard-0002.h5.part";
  for (int i = 0; i < 20000 && !std::filesystem::exists(second_shard); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::kill(child, SIGKILL);
  wait(child);
  ASSERT_FALSE(std::filesystem::exists(folder() / "run.h5"));
  const std::string verb =
      "lamina -q record organism --prompts prompts.txt --shard-size 8M -o run.h5 ";
  const std::string same = "--sites resid_post,z,pattern:0 ";
  // Not without --resume, and not with other sites or another stored type.
  for (const std::string& arguments :
       {same, std::string("--sites resid_post --resume"), same + "--dtype f16 --resume"}) {
    const Outcome outcome = shell(verb + arguments);
    EXPECT_EQ(outcome.code, 1) << arguments;
    EXPECT_NE(outcome.err.find("run."), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(shell(verb + same + "--resume").code, 0);
  // --force begins again.
  EXPECT_EQ(shell(verb + "--sites resid_post --force").code, 0);
  EXPECT_EQ(shell("lamina -q verify run.h5 --model organism").code, 0);
}

}  // namespace
}  // namespace lamina::test
