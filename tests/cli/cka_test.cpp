// lamina cka, as typed.

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class CkaVerb : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
  const std::string prompts_ = std::string(" --prompts ") + kPrompts + " ";
};

TEST_P(CkaVerb, LiveIsRecorded) {
  run("record organism" + prompts_ + "--sites resid_post,resid_pre:0 -o run.h5");
  run("record organism" + prompts_ + "--sites resid_post,resid_pre:0 --shard 1/2 -o a.h5");
  run("record organism" + prompts_ + "--sites resid_post,resid_pre:0 --shard 2/2 -o b.h5");
  for (const std::string& how :
       {std::string("--measure linear,debiased,rbf,svcca,pwcca --sample 100"),
        std::string("--mode minibatch --minibatch 64"),
        std::string("--skip 1 --site resid_post:1-4")}) {
    const std::string live = run("cka --model organism" + prompts_ + how + " --json");
    EXPECT_EQ(run("cka run.h5 --json " + how), live) << how;
    EXPECT_EQ(run("cka a.h5 b.h5 --json " + how), live) << how;
  }
  const Json json = Json::parse(run("cka run.h5 --json"));
  EXPECT_EQ(json["rows"], 1154);
  EXPECT_EQ(json["layers"].size(), 7U);
  EXPECT_EQ(json["layers"][0], "embed");
  EXPECT_EQ(json["linear"][3][3], 1.0);
  EXPECT_EQ(json["linear"][2][5], json["linear"][5][2]);
  // Several passes over the recording.
  const std::string few = " --json --sample 200";
  EXPECT_EQ(run("cka run.h5 --memory 9M" + few), run("cka run.h5" + few));
  expect_error("-q cka --model organism" + prompts_ + "--memory 9M" + few, 2,
               "exact sums of all pairs of 7 streams take");
  expect_error("-q cka run.h5 --memory 3M", 2, "(--memory)");
  expect_error("-q cka run.h5 --memory 9M", 2, "RBF kernels of 1000 sampled rows");
}

TEST_P(CkaVerb, TwoSources) {
  run("record organism" + prompts_ + "--sites resid_post,resid_pre:0 -o a.h5");
  run("record organism" + prompts_ + "--sites resid_post,resid_pre:0 --dtype bf16 -o b.h5");
  const Json dtype = Json::parse(run("cka a.h5 --against b.h5 --json"));
  EXPECT_EQ(dtype["layers_other"].size(), 7U);
  for (int l = 0; l < 7; ++l) {
    EXPECT_GT(dtype["linear"][l][l], 0.999);
    EXPECT_LT(dtype["linear"][l][l], 1.0000001);
  }
  // A recording against the model that made it, and live against live.
  const std::string self = run("cka a.h5 --against organism --json");
  const Json json = Json::parse(self), within = Json::parse(run("cka a.h5 --json"));
  for (const char* measure : {"linear", "debiased", "rbf"}) {
    for (int i = 0; i < 7; ++i) {
      for (int j = 0; j < 7; ++j) {
        EXPECT_NEAR(json[measure][i][j].get<double>(), within[measure][i][j].get<double>(), 1e-6);
      }
    }
  }
  EXPECT_EQ(run("cka --model organism" + prompts_ + "--against organism --json"), self);
  EXPECT_EQ(run("cka --model organism" + prompts_ + "--against a.h5 --json"), self);
}

TEST_P(CkaVerb, OtherPrompts) {
  write("a.txt", "The capital of France is Paris.\nThe sea\nOne two three\nA\nthe house\nred\n");
  write("b.txt", "La capitale\nLa mer est bleue\nUn\nLe chat noir\nla maison\nrouge vert\n");
  write("c.txt", "La capitale\n");
  const std::string ask = "-q cka --model organism --prompts a.txt --against organism ";
  expect_error(ask + "--against-prompts b.txt", 1, "--pool mean or last");
  expect_error(ask + "--against-prompts c.txt", 1, "has 1; the same number expected");
  const Json json = Json::parse(run(ask.substr(3) + "--against-prompts b.txt --pool mean --json"));
  EXPECT_EQ(json["rows"], 6);
  EXPECT_LT(json["linear"][3][3], 1.0);
  write("d.txt", "The capital of Spain is Paris.\n");
  write("e.txt", "The capital of France is Paris.\n");
  const Outcome differ = shell(
      "lamina cka --model organism --prompts e.txt --against organism --against-prompts d.txt");
  EXPECT_EQ(differ.code, 0) << differ.err;
  EXPECT_NE(differ.err.find("1 of 1 prompts have other token ids"), std::string::npos)
      << differ.err;
}

TEST_P(CkaVerb, Prints) {
  const Outcome text = shell("lamina cka --model organism" + prompts_ + "-o cka.h5");
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part : {"1,154 tokens", "debiased, layer by layer", "██", "blocks, every pair",
                           "next: linear", "most alike"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  }
  EXPECT_NE(text.err.find("wrote cka.h5"), std::string::npos);
  const Outcome one = shell("lamina cka --model organism --text the --bos never --json");
  EXPECT_EQ(one.code, 0);
  EXPECT_TRUE(Json::parse(one.out)["linear"][0][0].is_null());
  EXPECT_NE(one.err.find("1 rows: nothing varies"), std::string::npos) << one.err;
}

TEST_P(CkaVerb, MistakesAreNamed) {
  run("record organism --text the --sites mlp_out -o run.h5");
  expect_error("-q cka run.h5", 1, "cka needs blocks.0.hook_resid_pre");
  expect_error("-q cka", 2, "nothing to read");
  expect_error("-q cka run.h5 --model organism", 2, "without their model");
  expect_error("-q cka run.h5 --text a", 2, "recordings and prompts were both given");
  expect_error("-q cka run.h5 --measure cca", 2, "measure 'cca'");
  expect_error("-q cka run.h5 --mode minibatch --measure linear", 2, "linear needs exact sums");
  expect_error("-q cka --model organism --text the --site pattern", 2, "no row per token");
  expect_error("-q cka run.h5 --against run.h5 --against-prompts x", 2, "is a recording");
}

INSTANTIATE_TEST_SUITE_P(Threads, CkaVerb, ::testing::Values(1, 2));

}  // namespace
}  // namespace lamina::test
