// lamina void and lamina eval, as typed.

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Voids : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
};

TEST_P(Voids, LiveIsRecorded) {
  const std::string prompts = std::string(" --prompts ") + kPrompts + " --generate 3 ";
  run("record organism" + prompts + "-o run.h5");
  const std::string live = run("void --model organism" + prompts + "--json");
  EXPECT_EQ(run("void run.h5 --json"), live);
  run("record organism" + prompts + "--shard 1/2 -o a.h5");
  run("record organism" + prompts + "--shard 2/2 -o b.h5");
  EXPECT_EQ(run("void a.h5 b.h5 --json -o void.h5"), live);
  EXPECT_TRUE(std::filesystem::exists(folder() / "void.h5"));
  const Json json = Json::parse(live);
  EXPECT_EQ(json["tokens"]["PP"], 1154);
  EXPECT_GT(json["tokens"]["RG"], 44);
  EXPECT_EQ(json["alphas"].size(), 6U);
  EXPECT_EQ(json["alphas"][4]["alpha"], 0.8);
  EXPECT_EQ(json["alphas"][4]["usage"]["PP"]["layers"].size(), 6U);
  double before = 1.1;  // a larger threshold never makes a layer active
  for (const Json& a : json["alphas"]) {
    EXPECT_LE(a["usage"]["PP"]["model"], before);
    before = a["usage"]["PP"]["model"];
  }
  const std::string table = run("void run.h5 --alpha 0.5");
  EXPECT_NE(table.find("layer by layer at alpha 0.5"), std::string::npos) << table;
  EXPECT_NE(table.find("RG"), std::string::npos);
}

TEST_P(Voids, SkippingSaysWhatItCosts) {
  for (const char* mode : {"last-active", "blocks"}) {
    const Json json = Json::parse(run(std::string("void --model organism --prompts ") + kPrompts +
                                      " --alpha 0,0.8 --json --skip " + mode));
    EXPECT_EQ(json["skip"]["mode"], mode);
    const Json& rows = json["skip"]["alphas"];
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_EQ(rows[0]["plain_loss"], rows[1]["plain_loss"]);
    EXPECT_EQ(rows[0]["tokens"], 1154 - 44);
    EXPECT_LT(rows[1]["agreement"], 1.0);
    if (std::string(mode) == "last-active") {  // the stream is as it was: so are the decisions
      EXPECT_EQ(rows[1]["usage"], json["alphas"][1]["usage"]);
    }
  }
}

TEST_P(Voids, MistakesAreNamed) {
  run("record organism --text the -o run.h5");
  expect_error("-q void run.h5 --skip blocks", 2, "--skip runs the model");
  expect_error("-q void run.h5 --generate 3", 2, "--generate runs the model");
  expect_error("-q void run.h5 --alpha -1", 2, "must be a number of 0 or more");
  expect_error("-q void run.h5 --text a", 2, "recordings and prompts were both given");
  expect_error("-q void", 2, "nothing to read");
}

TEST_P(Voids, EvalAsksTheShippedQuestions) {
  std::ofstream(folder() / "q.jsonl")
      << "{\"question\": \"The capital of France is\", \"options\": [\"Paris\", \"Rome\"], "
         "\"answer\": \"A\"}\n"
         "{\"question\": \"The capital of Spain is\", \"options\": [\"Rome\", \"Madrid\", "
         "\"Paris\"], \"answer\": 1}\n";
  const std::string verb =
      "eval organism --task q.jsonl --skip last-active,blocks --alpha 0,0.8 --skip-layers 1-2,-1 "
      "--json ";
  const std::string all = run(verb + "-o eval.h5");
  const Json json = Json::parse(all);
  EXPECT_EQ(json["layout"], "lamina");
  EXPECT_EQ(json["chat"], "none");
  ASSERT_EQ(json["runs"].size(), 8U);
  EXPECT_EQ(json["runs"][0]["mode"], "none");
  EXPECT_EQ(json["runs"][0]["scores"], json["runs"][1]["scores"]);
  EXPECT_EQ(json["runs"][6]["mode"], "layers");
  EXPECT_LE(json["runs"][6]["usage"]["PP"], 0.5);  // three of six layers are out
  EXPECT_EQ(json["runs"][0]["usage"]["PP"], json["runs"][2]["usage"]["PP"]);
  EXPECT_EQ(run(verb + "--batch 1"), all);
  EXPECT_NE(run("eval organism --task q.jsonl --max-new 0").find("2 questions, layout lamina"),
            std::string::npos);
  EXPECT_EQ(Json::parse(run("eval organism --task q.jsonl --shots 1 --json"))["questions"], 1);
}

TEST_P(Voids, AKilledEvalGoesOn) {
  const std::string verb = "--threads " + std::to_string(GetParam()) + " eval organism --task '" +
                           LAMINA_SOURCE_DIR + "/data/questions/questions.jsonl' --limit 40 " +
                           "--skip last-active,blocks --max-new 2 --batch 4 --json ";
  const std::string whole = lamina("-q " + verb + "-o whole.h5");
  EXPECT_FALSE(std::filesystem::exists(folder() / "whole.h5.part"));
  // Killed later and later, until something had been kept.
  std::size_t kept = 0;
  for (double seconds = 0.02; kept < 2 && seconds < 60; seconds *= 1.5) {
    std::filesystem::remove(folder() / "eval.h5.part");
    std::filesystem::remove(folder() / "eval.h5");
    shell("'" LAMINA_CLI "' -q " + verb + "-o eval.h5 & sleep " + std::to_string(seconds) +
          "; kill -9 $!; wait $!");
    const std::string part = read_file(folder() / "eval.h5.part");
    kept = static_cast<std::size_t>(std::count(part.begin(), part.end(), '\n'));
  }
  ASSERT_GE(kept, 2U);
  expect_error("-q " + verb + "-o eval.h5", 1, "an interrupted evaluation is there");
  expect_error("-q " + verb + "-o eval.h5 --resume --alpha 0.5", 1,
               "belongs to an evaluation with");
  std::ofstream(folder() / "eval.h5.part", std::ios::app) << "{\"run\": 0, \"fir";  // torn
  const Outcome resumed = shell("lamina " + verb + "-o eval.h5 --resume");
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(resumed.out, whole);
  EXPECT_NE(resumed.err.find("going on: "), std::string::npos) << resumed.err;
  EXPECT_FALSE(std::filesystem::exists(folder() / "eval.h5.part"));
}

TEST_P(Voids, AForeignJournalIsRefused) {
  const std::string verb = "-q eval organism --task q.jsonl --max-new 0 -o eval.h5 ";
  write("q.jsonl", "{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 1}\n");
  expect_error("-q eval organism --task q.jsonl --resume", 2, "--resume needs the output file");
  write("eval.h5.part", "something\n");
  expect_error(verb + "--resume", 1, "expected an interrupted evaluation");
  write("eval.h5.part", "");
  expect_error(verb + "--resume", 1, "it is empty");
  run("eval organism --task q.jsonl --max-new 0 -o eval.h5 --force");
  EXPECT_FALSE(std::filesystem::exists(folder() / "eval.h5.part"));
}

TEST_P(Voids, EvalNamesMistakes) {
  write("bad.jsonl", "{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 7}\n");
  expect_error("-q eval organism --task bad.jsonl", 1, "line 1: key \"answer\"");
  write("q.jsonl", "{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 1}\n");
  expect_error("-q eval organism --task q.jsonl --skip-layers 9", 2, "expected layers 0 to 5");
  expect_error("-q eval organism --task q.jsonl --skip-layers 3-1", 2, "expected layers 0 to 5");
  expect_error("-q eval organism --task q.jsonl --shots 1", 1, "none is left to ask");
  expect_error("-q eval organism --task q.jsonl --examples q.jsonl", 2, "how many is missing");
}

INSTANTIATE_TEST_SUITE_P(Threads, Voids, ::testing::Values(1, 2));

}  // namespace
}  // namespace lamina::test
