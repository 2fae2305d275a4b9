// lamina inflection as a user runs it; what it computes is tests/probes/inflection_test's.

#include <nlohmann/json.hpp>

#include "command.h"

namespace lamina {
namespace {

using Inflection = test::Cli;
using Json = nlohmann::json;

const std::string kGoldens = LAMINA_SOURCE_DIR "/tests/goldens/";

TEST_F(Inflection, TableJsonAndFileOfADecoder) {
  const std::string table =
      lamina(std::string("-q inflection organism --prompts ") + kPrompts + " -o result.h5");
  EXPECT_NE(table.find("next-token loss"), std::string::npos) << table;
  EXPECT_NE(table.find("candidate 1"), std::string::npos) << table;
  EXPECT_NE(table.find("SKI = 0.5 · low entropy + 0.5 · low gradient"), std::string::npos) << table;
  EXPECT_TRUE(std::filesystem::exists(folder() / "result.h5"));
  expect_error("inflection organism --text a -o result.h5", 1, "exists already");
  const Json json = Json::parse(lamina(std::string("-q inflection organism --json --weight 0 ") +
                                       "--against organism --prompts " + kPrompts));
  ASSERT_EQ(json["runs"].size(), 2u);
  EXPECT_EQ(json["runs"][0]["ski"].size(), 6u);
  EXPECT_EQ(json["delta_cka"].size(), 7u);
  for (const auto& v : json["delta_cka"]) EXPECT_NEAR(v.get<double>(), 0.0, 1e-12);
}

TEST_F(Inflection, LabelsOfAClassifier) {
  write("p.jsonl", R"({"ids": [5, 9, 12, 40, 7], "labels": {"mood": "positive"}})"
                   "\n"
                   R"({"ids": [8, 33, 2], "labels": {"mood": "0"}})"
                   "\n");
  const Json json = Json::parse(lamina("-q inflection " + kGoldens +
                                       "bert_classifier --label mood --prompts p.jsonl --json"));
  EXPECT_EQ(json["loss"], "label");
  EXPECT_EQ(json["runs"][0]["predicted"], 2);
  expect_error("-q inflection " + kGoldens + "bert_classifier --prompts p.jsonl", 1,
               "has no label 'label'");
  expect_error("-q inflection " + kGoldens + "bert --loss next-token --prompts p.jsonl", 2,
               "no causal language model");
  const test::Outcome none = shell("lamina inflection " + kGoldens + "bert --prompts p.jsonl");
  EXPECT_EQ(none.code, 0) << none.err;
  EXPECT_NE(none.err.find("no gradients and no score"), std::string::npos) << none.err;
}

}  // namespace
}  // namespace lamina
