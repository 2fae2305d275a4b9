// lamina effects as a user runs it; what it computes is tests/probes' (layer_effects_test and two
// more).

#include <nlohmann/json.hpp>

#include "command.h"

namespace lamina {
namespace {

using Effects = test::Cli;
using Json = nlohmann::json;

TEST_F(Effects, TableJsonAndFile) {
  const std::string common = std::string("-q effects organism --prompts ") + kPrompts;
  const std::string table = lamina(common +
                                   " --variant future,local --splits 2 --erase 1 --jacobian 2 "
                                   "-o result.h5");
  for (const char* text : {"layer skipped, future: largest of", "layer skipped, local: largest of",
                           "depth score", "of the output", "token erased in prompt 'ioi-example'",
                           "\"Mary\"", "block Jacobian − identity", "█ from 0.8"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << "\n" << table;
  }
  EXPECT_TRUE(std::filesystem::exists(folder() / "result.h5"));
  expect_error("effects organism --text a -o result.h5", 1, "exists already");

  const Json json = Json::parse(lamina(
      common + " --variant future,current --part mlp --splits 1 --erase 2 --jacobian 2 --json"));
  ASSERT_EQ(json["layer_effects"].size(), 2u);
  const Json& future = json["layer_effects"][0];
  EXPECT_EQ(future["variant"], "future");
  EXPECT_EQ(future["part"], "mlp");
  ASSERT_EQ(future["max"]["effect"].size(), 6u);
  EXPECT_EQ(future["max"]["effect"][5], Json(std::vector<double>(6, 0.0)));
  EXPECT_GT(future["max"]["effect"][0][1].get<double>(), 0.0);
  EXPECT_GT(future["token_mean"]["depth_score"].get<double>(), 0.0);
  EXPECT_GE(future["max"]["out_effect"][0], future["prompt_mean"]["out_effect"][0]);
  ASSERT_EQ(json["residual_erasure"]["prompts"].size(), 2u);
  EXPECT_EQ(json["residual_erasure"]["prompts"][0]["effect"].size(), 7u);
  EXPECT_EQ(json["block_jacobian"]["own"].size(), 6u);
}

TEST_F(Effects, SeedAndThreads) {
  const std::string command =
      "-q effects organism --text 'When Mary and John went to the store' --jacobian 2 --json ";
  const std::string one = lamina(command + "--threads 1");
  EXPECT_EQ(lamina(command + "--threads 2"), one);
  EXPECT_NE(lamina(command + "--seed 5"), one);
}

// An answer as a label is put behind the prompt; erasure is read where it is predicted.
TEST_F(Effects, Answers) {
  write("p.jsonl", R"({"text": "When Mary and John went to the store , John gave a drink to", )"
                   R"("labels": {"answer": " Mary .", "other": " Mary"}})"
                   "\n");
  const std::string command = "-q effects organism --prompts p.jsonl --no-skip --erase 1 --json";
  const Json two = Json::parse(lamina(command));
  EXPECT_EQ(two["residual_erasure"]["prompts"][0]["read"], Json({14, 15}));
  EXPECT_FALSE(two.contains("layer_effects"));
  const Json one = Json::parse(lamina(command + " --answer other"));
  EXPECT_EQ(one["residual_erasure"]["prompts"][0]["read"], Json({14}));
  const Json gradients = Json::parse(
      lamina("-q effects organism --prompts p.jsonl --no-skip --gradients 1 --gradient-steps 64 "
             "--part attention --json"));
  const Json& map = gradients["depth_gradients"]["prompts"][0];
  ASSERT_EQ(map["attribution"].size(), 6u);
  EXPECT_GT(map["probability"].get<double>(), 0.0);
  const Json split =
      Json::parse(lamina("-q effects organism --prompts p.jsonl --split-at-answer --json"));
  EXPECT_EQ(split["layer_effects"][0]["tokens"], 2);
}

TEST_F(Effects, Refusals) {
  const std::string goldens = LAMINA_SOURCE_DIR "/tests/goldens/";
  write("p.jsonl", R"({"ids": [5, 9, 12, 40, 7]})");
  expect_error("-q effects " + goldens + "bert --prompts p.jsonl", 2,
               "need a causal language model");
  expect_error("-q effects organism --text a --no-skip --gradients 1", 1,
               "neither an answer nor a target");
  expect_error("-q effects organism --text a --no-skip", 2, "--no-skip leaves nothing to do");
  expect_error("-q effects organism --text 'a b c d' --variant local --part mlp", 2,
               "skips whole layers, not the mlp alone");
  expect_error("-q effects organism --text 'a b c d' --split-at 500", 1, "long enough");
  expect_error("-q effects organism --text 'a b c d' --split-at 3 --split-at-answer", 2,
               "both as positions and as the answer");
}

}  // namespace
}  // namespace lamina
