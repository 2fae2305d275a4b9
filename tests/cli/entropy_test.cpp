// lamina entropy as a user runs it; what it computes is tests/probes/entropy_test's.

#include <cmath>
#include <nlohmann/json.hpp>

#include "command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;
const std::string kGoldens = LAMINA_SOURCE_DIR "/tests/goldens/";

class Entropy : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
};

// Sums of parts differ from the sum of all by rounding.
void expect_near(const Json& a, const Json& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  if (a.is_number()) {
    EXPECT_NEAR(a.get<double>(), b.get<double>(),
                tolerance * std::max(1.0, std::abs(b.get<double>())));
  } else if (a.is_structured()) {
    for (auto i = a.begin(), j = b.begin(); i != a.end(); ++i, ++j) expect_near(*i, *j, tolerance);
  } else {
    EXPECT_EQ(a, b);
  }
}

TEST_P(Entropy, LiveIsRecorded) {
  const std::string prompts = std::string(" --prompts ") + kPrompts + " ";
  const std::string sites = "--sites rot_q,rot_k,resid_post ";
  run("record organism" + prompts + sites + "-o run.h5");
  const std::string live = run("entropy --model organism" + prompts + "--json");
  EXPECT_EQ(run("entropy run.h5 --json -o entropy.h5"), live);
  EXPECT_TRUE(std::filesystem::exists(folder() / "entropy.h5"));
  expect_error("entropy run.h5 -o entropy.h5", 1, "exists already");
  EXPECT_EQ(lamina("-q --threads 1 entropy run.h5 --json"),
            lamina("-q --threads 2 entropy run.h5 --json"));
  run("record organism" + prompts + sites + "--shard 1/2 -o a.h5");
  run("record organism" + prompts + sites + "--shard 2/2 -o b.h5");
  const Json json = Json::parse(live);
  expect_near(Json::parse(run("entropy a.h5 b.h5 --json")), json, 1e-12);

  EXPECT_EQ(json["attention"]["tokens"], 1154);
  EXPECT_EQ(json["output"]["tokens"], 1154);
  EXPECT_EQ(json["attention"]["entropy"].size(), 6U);
  EXPECT_EQ(json["attention"]["entropy"][0].size(), 4U);
  EXPECT_EQ(json["massive"]["layers"].size(), 6U);
  // Copying heads are what this model was trained to have.
  bool induction = false;
  for (const Json& layer : json["attention"]["pattern"]) {
    for (const Json& head : layer) induction = induction || head == "induction";
  }
  EXPECT_TRUE(induction);

  // The other two sources say the same within rounding; the pattern nothing about logits.
  run("record organism" + prompts + "--sites attn_scores -o scores.h5");
  run("record organism" + prompts + "--sites pattern -o pattern.h5");
  const Json scores = Json::parse(run("entropy scores.h5 --json"))["attention"];
  const Json pattern = Json::parse(run("entropy pattern.h5 --json"))["attention"];
  for (const char* name : {"entropy", "entropy_normalized", "sink", "induction", "collapsed"}) {
    EXPECT_EQ(scores[name], json["attention"][name]) << name;
    expect_near(pattern[name], json["attention"][name], 2e-6);
  }
  EXPECT_EQ(scores["logit_max"], json["attention"]["logit_max"]);
  EXPECT_TRUE(pattern["logit_max"][0][0].is_null());
}

TEST_P(Entropy, TableAndThresholds) {
  const std::string model = std::string("entropy --model organism --prompts ") + kPrompts;
  const std::string table = run(model + " --least 10 --ratio 20");
  for (const char* text : {"attention: 6 layers × 4 heads", "H/log n", "collapsed", "overloaded",
                           "massive activations: ", "> 20 × median", "log Z"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << "\n" << table;
  }
  const Json strict = Json::parse(run(model + " --parts attention --collapse 0 --json"));
  EXPECT_FALSE(strict.contains("massive"));
  EXPECT_FALSE(strict.contains("output"));
  const Json loose = Json::parse(run(model + " --parts attention --collapse 0.5 --json"));
  EXPECT_LT(strict["attention"]["collapsed"][3][0], loose["attention"]["collapsed"][3][0]);
  EXPECT_EQ(strict["attention"]["entropy"], loose["attention"]["entropy"]);
  const Json some = Json::parse(run(model + " --parts output --every 5 --json"));
  EXPECT_LT(some["output"]["tokens"], 1154 / 3);
}

TEST_P(Entropy, EncodersAndWindows) {
  write("p.jsonl", "{\"ids\": [5, 9, 12, 40, 7, 9, 9, 12]}\n{\"ids\": [8, 33, 2]}\n");
  for (const char* model : {"bert", "distilbert", "gemma3", "gpt2", "lamina_attn_only"}) {
    const Json json =
        Json::parse(run("entropy --model " + kGoldens + model + " --prompts p.jsonl --json"));
    EXPECT_EQ(json["attention"]["tokens"], 11) << model;
    EXPECT_EQ(json["output"]["log_z"]["count"], 11) << model;
  }
  const Outcome headless =
      shell("lamina entropy --model " + kGoldens + "bert_classifier --prompts p.jsonl");
  EXPECT_EQ(headless.code, 0) << headless.err;
  EXPECT_NE(headless.err.find("left out: output: this bert model has no language head"),
            std::string::npos)
      << headless.err;
}

TEST_P(Entropy, MistakesAreNamed) {
  run("record organism --text the -o plain.h5");
  expect_error("-q entropy plain.h5", 1, "record with --sites rot_q,rot_k");
  run("entropy plain.h5 --parts massive,output");
  run("record organism --text the --sites pattern -o pattern.h5");
  const Outcome partly = shell("lamina entropy pattern.h5");
  EXPECT_EQ(partly.code, 0) << partly.err;
  EXPECT_NE(partly.err.find("left out: "), std::string::npos) << partly.err;
  expect_error("-q entropy pattern.h5 --parts massive", 1, "record with --sites resid_post");
  expect_error("-q entropy plain.h5 --text a", 2, "recordings and prompts were both given");
  expect_error("-q entropy", 2, "nothing to read");
  expect_error("-q entropy --model organism --text a --collapse 0.95", 2, "not below the overload");
  expect_error("-q entropy --model organism --text a --sink 2", 2, "the sink threshold is 2");
  expect_error("-q entropy --model organism --text a --every 0", 2, "1 or more expected");
  expect_error("-q entropy --model organism --text a --ratio nan", 2, "0 or more expected");
  expect_error("-q entropy --model organism --text a --parts heads", 2, "heads");
}

INSTANTIATE_TEST_SUITE_P(Threads, Entropy, ::testing::Values(1, 2));

}  // namespace
}  // namespace lamina::test
