// Help, version, mistakes in the command line, pipes and colours.

#include <algorithm>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Usage = Cli;

constexpr const char* kVerbs[] = {
    "info",
    "verify",
    "diff",
    "demo",
    "record",
    "merge",
    "generate",
    "tokenize",
    "survey",
    "lens",
    "tune",
    "latent",
    "void",
    "eval",
    "inflection",
    "cka",
    "infoplane",
    "clue",
    "probe",
    "effects",
    "depth",
    "entropy",
    "pairs",
    "patch",
    "edges",
    "ablate",
    "bakeoff",
    "transcoder",
    "transcoder train",
    "transcoder eval",
    "transcoder keep",
    "transcoder info",
    "codebook",
    "paths",
    "paths weights",
    "paths find",
    "paths contexts",
    "feature-circuit",
    "circuit",
    "graph",
    "completion",
};

TEST_F(Usage, HelpListsTheVerbsUnderHeadings) {
  const std::string help = lamina("--help");
  const std::size_t look = help.find("\nLook:\n"), record = help.find("\nRecord:\n"),
                    read = help.find("\nRead:\n"), intervene = help.find("\nIntervene:\n");
  ASSERT_NE(look, std::string::npos);
  ASSERT_NE(record, std::string::npos);
  ASSERT_NE(read, std::string::npos);
  ASSERT_NE(intervene, std::string::npos);
  const auto at = [&](const char* verb) { return help.find(std::string("\n  ") + verb + " "); };
  for (const char* verb : {"info", "verify", "diff", "demo"}) {
    EXPECT_TRUE(at(verb) > look && at(verb) < record) << verb;
  }
  for (const char* verb : {"record", "merge", "generate", "tokenize"}) {
    EXPECT_TRUE(at(verb) > record && at(verb) < read) << verb;
  }
  for (const char* verb : {"lens", "tune", "latent", "void", "eval", "inflection", "cka",
                           "infoplane", "clue", "probe", "effects", "entropy"}) {
    EXPECT_TRUE(at(verb) > read && at(verb) < intervene) << verb;
  }
  const std::size_t explain = help.find("\nExplain:\n");
  ASSERT_NE(explain, std::string::npos);
  for (const char* verb : {"pairs", "patch", "edges", "ablate"})
    EXPECT_TRUE(at(verb) > intervene && at(verb) < explain) << verb;
  for (const char* verb : {"transcoder", "codebook", "paths", "feature-circuit", "circuit", "graph"})
    EXPECT_GT(at(verb), explain) << verb;
  for (const char* option : {"--threads", "--seed", "--quiet", "--color", "--log-level"}) {
    EXPECT_NE(help.find(option), std::string::npos) << option;
  }
}

TEST_F(Usage, EveryVerbExplainsItself) {
  for (const char* verb : kVerbs) {
    const std::string help = lamina(std::string(verb) + " --help");
    EXPECT_NE(help.find(std::string("Usage: lamina ") + verb), std::string::npos) << help;
  }
}

TEST_F(Usage, TheDocumentShowsTheHelpAsItIs) {
  const std::string document = read_file(LAMINA_SOURCE_DIR "/docs/command-line.md");
  for (const char* verb : kVerbs) {
    std::string help = lamina(std::string(verb) + " --help");
    while (help.ends_with('\n')) help.pop_back();
    EXPECT_NE(document.find("## " + std::string(verb) + "\n\n```\n" + help + "\n```\n"),
              std::string::npos)
        << "docs/command-line.md lacks this text:\n"
        << help;
  }
}

TEST_F(Usage, Version) {
  EXPECT_EQ(lamina("--version"), "lamina 0.1.0\n");
}

TEST_F(Usage, MistakesAreOneLineAndExitWithTwo) {
  expect_error("", 2, "a verb is missing");
  expect_error("recrd x", 2, "unknown verb 'recrd', did you mean record?");
  expect_error("record organism --forse", 2, "unknown option --forse, did you mean --force?");
  expect_error("record organism --dtype f8 -o x.h5", 2, "f8");
  expect_error("record", 2, "see `lamina record --help`");
  expect_error("info", 2, "see `lamina info --help`");
  expect_error("info organism surplus", 2, "'surplus' was not expected");
  expect_error("--threads 0 info organism", 2, "--threads");
  expect_error("--threads many info organism", 2, "--threads");
  expect_error("--color blue info organism", 2, "--color");
  expect_error("record organism --text a", 2, "give -o FILE");
  expect_error("record organism -o x.h5", 2, "give --prompts FILE or --text TEXT");
  expect_error("record organism --text a --prompts b -o x.h5", 2, "excludes");
  expect_error("record organism --text a --shard 3/2 -o x.h5", 2, "'3/2', expected I/N");
  expect_error("record organism --text a --shard-size 4X -o x.h5", 2, "'4X'");
  expect_error("record organism --text the --sites resid_pst -o x.h5", 2,
               "nearest: resid_post, resid_pre");
  expect_error("lens", 2, "nothing to read");
  expect_error("lens --model organism --text the --positions middle", 2, "middle");
  expect_error("tune --model organism --text the", 2, "--output is required");
  expect_error("tune -o x.safetensors", 2, "nothing to read");
  expect_error("tune --model organism --text the --steps 0 -o x.safetensors", 2, "--steps");
  expect_error("tune --model organism --text the --batch 0 -o x.safetensors", 2, "--batch");
  expect_error("-q tune --model organism --text the --lr -1 -o x.safetensors", 2,
               "learning rate must be positive, got -1");
  expect_error("-q tune --model organism --text the --sites resid_post:5 -o x.safetensors", 2,
               "the model's own output");
  expect_error("-q tune --model organism --text the -o x.safetensors", 1,
               "at least 2 prompts (one is held out), got 1");
}

TEST_F(Usage, MissingAndForeignFilesExitWithOne) {
  expect_error("info no-such-thing", 1,
               "no-such-thing: no such file or folder, and no model that ships");
  expect_error("info ./no-such-thing", 1, "./no-such-thing: no such file or folder");
  write("noise", "what is this?");
  expect_error("info noise", 1, "noise: neither a model folder nor");
  write("empty.h5", "\x89HDF\r\n\x1a\n");
  expect_error("info empty.h5", 1, "empty.h5");
  expect_error("verify noise", 1, "noise");
  std::filesystem::create_directory(folder() / "hollow");
  expect_error("info hollow", 1, "hollow");
  expect_error("record organism --text the -o missing/x.h5", 1, "missing does not exist");
  expect_error("record organism --prompts missing.txt -o x.h5", 1, "missing.txt");
  expect_error("record organism --text the --shard 1/2 -o x.h5", 1, "only 1 prompts");
  write("line\nbreak", "text");
  expect_error("info 'line\nbreak'", 1, "line\\nbreak");
}

TEST_F(Usage, NothingIsOverwrittenWithoutForce) {
  write("x.h5", "precious");
  expect_error("record organism --text the -o x.h5", 1,
               "x.h5: exists already; --force overwrites it");
  expect_error("lens --model organism --text the -o x.h5", 1, "exists already");
  expect_error("tune --model organism --text the -o x.h5", 1, "exists already");
  expect_error("generate organism --text the -o x.h5", 1, "exists already");
  EXPECT_EQ(read_file(folder() / "x.h5"), "precious");
  lamina("record organism --text the -o x.h5 --force");
  EXPECT_NE(read_file(folder() / "x.h5"), "precious");
}

TEST_F(Usage, AFailedCommandLeavesNoOutput) {
  expect_error("generate organism --text the --max-new 1000 -o out.txt", 1, "context holds 128");
  EXPECT_FALSE(std::filesystem::exists(folder() / "out.txt"));
  EXPECT_FALSE(std::filesystem::exists(folder() / "out.txt.part"));
}

TEST_F(Usage, DataGoesToStandardOutputAndNotesToStandardError) {
  const Outcome loud = shell("lamina generate organism --text the --max-new 2");
  EXPECT_EQ(loud.code, 0);
  EXPECT_EQ(loud.out.rfind("the ", 0), 0U) << loud.out;
  EXPECT_NE(loud.err, "");
  const Outcome quiet = shell("lamina -q generate organism --text the --max-new 2");
  EXPECT_EQ(quiet.out, loud.out);
  EXPECT_EQ(quiet.err, "");
  const Outcome after = shell("lamina generate organism --text the --max-new 2 --quiet");
  EXPECT_EQ(after.out, loud.out);
  EXPECT_EQ(after.err, "");
}

TEST_F(Usage, AClosedPipeEndsQuietly) {
  const Outcome outcome = shell(
      "for i in 1 2 3 4 5 6 7 8; do { lamina tokenize organism --text \"$(yes the | head "
      "-20000)\"; "
      "echo $? >code; } | head -1 >/dev/null; cat code; done");
  EXPECT_EQ(outcome.out, "0\n0\n0\n0\n0\n0\n0\n0\n");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(Usage, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const Outcome outcome = shell("lamina info organism >/dev/full");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.err,
            "lamina: error: standard output: writing failed: No space left on device\n");
  EXPECT_EQ(shell("lamina --help >/dev/full").code, 1);
}

TEST_F(Usage, ColoursOnlyWhereTheyAreWanted) {
  const auto has_colours = [&](const std::string& command) {
    return shell(command).out.find('\x1b') != std::string::npos;
  };
  EXPECT_FALSE(has_colours("lamina info organism"));  // not a terminal
  EXPECT_TRUE(has_colours("lamina --color always info organism"));
  EXPECT_FALSE(has_colours("lamina --color never info organism"));
  EXPECT_FALSE(has_colours("NO_COLOR=1; export NO_COLOR; lamina info organism"));
  if (shell("command -v script").code == 0) {  // a terminal, from util-linux
    const std::string in_terminal =
        "TERM=xterm script -qec \"'" LAMINA_CLI "' info organism\" /dev/null";
    EXPECT_TRUE(has_colours(in_terminal));
    EXPECT_FALSE(has_colours("NO_COLOR=1 " + in_terminal));
  }
}

TEST_F(Usage, CompletionScriptsAreValidShell) {
  lamina("completion bash >script");
  EXPECT_EQ(shell("bash -n script").code, 0);
  const Outcome outcome = shell(
      "bash -c '. ./script; COMP_WORDS=(lamina rec); COMP_CWORD=1; _lamina; echo ${COMPREPLY[@]}'");
  EXPECT_EQ(outcome.out, "record\n");
}

}  // namespace
}  // namespace lamina::test
