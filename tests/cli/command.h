#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

namespace lamina::test {

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

struct Outcome {
  int code = -1;  // exit code; 128 + signal if one ended it
  std::string out, err;
};

/// A folder of its own, and command lines run in it as a user types them.
class Cli : public ::testing::Test {
 protected:
  Cli() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lamina-cli-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) ADD_FAILURE() << "cannot create " << pattern;
    folder_ = pattern;
  }
  ~Cli() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  /// A POSIX shell command; "lamina" in it is the program under test.
  Outcome shell(const std::string& command) const {
    const std::string script = "cd '" + folder_.string() +
                               "' && lamina() { '" LAMINA_CLI "' \"$@\"; }; " +
                               "exec >.out 2>.err\n" + command;
    std::ofstream(folder_ / ".script") << script;
    const int status = std::system(("sh '" + (folder_ / ".script").string() + "'").c_str());
    Outcome outcome;
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = read_file(folder_ / ".out");
    outcome.err = read_file(folder_ / ".err");
    return outcome;
  }
  /// lamina with these arguments, which must succeed.
  std::string lamina(const std::string& arguments) const {
    const Outcome outcome = shell("lamina " + arguments);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.err;
    return outcome.out;
  }
  /// lamina with these arguments must fail with `code` and exactly one line on standard error that
  /// begins "lamina: error: " and contains `text`.
  void expect_error(const std::string& arguments, int code, const std::string& text) const {
    const Outcome outcome = shell("lamina " + arguments);
    EXPECT_EQ(outcome.code, code) << arguments << "\n" << outcome.err;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_TRUE(outcome.err.starts_with("lamina: error: ")) << arguments << "\n" << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_NE(outcome.err.find(text), std::string::npos)
        << arguments << "\nexpected: …" << text << "…\ngot: " << outcome.err;
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  const std::filesystem::path& folder() const { return folder_; }

  static constexpr const char* kPrompts = LAMINA_SOURCE_DIR "/data/organism/prompts.jsonl";

 private:
  std::filesystem::path folder_;
};

}  // namespace lamina::test
