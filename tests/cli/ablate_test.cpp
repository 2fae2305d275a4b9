// lamina ablate as a user types it.

#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Ablate : public Cli {
 protected:
  static constexpr const char* kPairs = LAMINA_SOURCE_DIR "/data/organism/pairs/ioi.jsonl";
  std::string ablate(const std::string& arguments) const {
    return lamina("-q ablate organism " + arguments);
  }
};

TEST_F(Ablate, RemovesSublayersAndLeavesAFile) {
  const std::string common = "--prompts " + std::string(kPrompts) + " --limit 6 --remove 3";
  const std::string text = ablate(common + " -o cut.h5");
  EXPECT_NE(text.find("organism: 6 layers, judged by "), std::string::npos) << text;
  EXPECT_NE(text.find("removed"), std::string::npos);
  EXPECT_NE(text.find("\nleft: "), std::string::npos);
  const Json json = Json::parse(ablate(common + " --json"));
  ASSERT_EQ(json["removals"].size(), 3U);
  EXPECT_EQ(json["whole"]["distance"], 0.0);
  EXPECT_EQ(json["whole"]["layers"], 6.0);
  EXPECT_EQ(json["removals"][2]["layers"], 4.5);

  // Going on from the first two comes to the same third.
  const std::string first = json["removals"][0]["removed"], second = json["removals"][1]["removed"];
  const Json on =
      Json::parse(ablate("--prompts " + std::string(kPrompts) +
                         " --limit 6 --remove 1 --json --removed " + first + "," + second));
  EXPECT_EQ(on["removals"][0], json["removals"][2]);
  EXPECT_EQ(on["left"], json["left"]);

  // What is left, run as a path, is judged the same.
  const Json path =
      Json::parse(ablate("--prompts " + std::string(kPrompts) + " --limit 6 --json --path " +
                         json["left"].get<std::string>()));
  EXPECT_EQ(path["paths"][0]["distance"], json["removals"][2]["distance"]);
  EXPECT_EQ(path["paths"][0]["nll"], json["removals"][2]["nll"]);

  const Outcome exists = shell("lamina ablate organism " + common + " -o cut.h5");
  EXPECT_EQ(exists.code, 1);
  EXPECT_NE(ablate("--text 'the keys' --remove 1 --distance js --positions last -o cut.h5 --force")
                .find(" js "),
            std::string::npos);
}

TEST_F(Ablate, TablesAndFilesOfTheOtherMethods) {
  const std::string pairs = "--pairs " + std::string(kPairs) + " --limit 4 ";
  const std::string importance = ablate(pairs + "--method importance -o importance.h5");
  for (const char* part : {"LIM", "ZD", "RelP a", "without both", "logit_diff +",
                           "rank correlation over 6 layers", "over 12 sublayers"}) {
    EXPECT_NE(importance.find(part), std::string::npos) << part << "\n" << importance;
  }
  const Json json = Json::parse(ablate(pairs + "--method importance --json"));
  EXPECT_EQ(json["layers"].size(), 6U);
  EXPECT_EQ(json["rank_correlation"]["LIM"]["LIM"], 1.0);

  const Json paths = Json::parse(ablate(pairs + "--json --path 0-5 0-2,4,4 --metric nll"));
  EXPECT_EQ(paths["method"], "path");
  EXPECT_EQ(paths["paths"][0]["kl"], 0.0);
  EXPECT_EQ(paths["paths"][0]["metric"], paths["whole"]["metric"]);
  EXPECT_EQ(paths["paths"][1]["path"], "0-2,4*2");
  EXPECT_EQ(paths["paths"][1]["layers"], 5.0);

  const std::string search = pairs + "--method search --simulations 40 ";
  const std::string text = ablate(search + "-o search.h5");
  for (const char* part : {"whole model", "164 paths tried for 4 prompts", "any right"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  const std::string first = ablate(search + "--json --threads 1");
  EXPECT_EQ(ablate(search + "--json --threads 2"), first);
  EXPECT_NE(ablate(search + "--json --seed 5"), first);
  EXPECT_EQ(Json::parse(first)["prompts"].size(), 4U);
  for (const char* file : {"importance.h5", "search.h5"}) {
    EXPECT_TRUE(std::filesystem::exists(folder() / file)) << file;
  }
}

TEST_F(Ablate, MistakesAreOneLine) {
  expect_error("ablate organism", 2, "give --prompts FILE or --text TEXT");
  expect_error("ablate", 2, "see `lamina ablate --help`");
  expect_error("ablate organism --text the --path 0-5,x", 2,
               "path '0-5,x': expected a layer at character 5, found 'x'");
  expect_error("ablate organism --text the --path 0-6", 2,
               "layer 6 at character 3; this model has layers 0 to 5");
  expect_error("ablate organism --text the --path ''", 2, "the path is empty");
  expect_error("ablate organism --text the --method path", 2, "--method path needs --path");
  expect_error("ablate organism --text the --method search --remove 2", 2,
               "--remove does not go with --method search");
  expect_error("ablate organism --text the --method lottery", 2, "lottery");
  expect_error("ablate organism --text the --remove 13", 2,
               "--remove 13 sublayers, but only 12 are left to remove");
  expect_error("ablate organism --text the --removed 2", 2,
               "expected a sublayer such as 12a or 12m at character 1");
  expect_error("ablate organism --text the --pairs x.jsonl", 2, "excludes");
  expect_error("ablate organism --text the --metric nll", 2, "--pairs");
  expect_error("ablate organism --text the --memory lots", 2, "--memory is 'lots'");
  expect_error("ablate organism --pairs missing.jsonl", 1, "missing.jsonl");
  write("empty.jsonl", "");
  expect_error("ablate organism --pairs empty.jsonl", 1, "empty.jsonl");
  expect_error("ablate organism --prompts empty.jsonl", 1, "empty.jsonl");
}

}  // namespace
}  // namespace lamina::test
