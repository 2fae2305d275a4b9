// lamina paths as it is typed.

#include <nlohmann/json.hpp>

#include "circuits/random_transcoders.h"
#include "cli/command.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/circuits/weight_report.h"
#include "support/tiny_model.h"

namespace lamina::test {
namespace {

class PathsCommand : public Cli {
 protected:
  PathsCommand() : model_(Model::load(LAMINA_SOURCE_DIR "/data/organism")) {
    testing::RandomDictionary kind;
    kind.features = 40;
    for (const Transcoder& t : testing::random_transcoders(model_.config(), kind, 2))
      write_saelens(folder() / "tc" / t.config.name, t);
  }
  nlohmann::json json(const std::string& arguments) const {
    return nlohmann::json::parse(lamina("-q paths " + arguments + " --json"));
  }
  Model model_;
};

TEST_F(PathsCommand, Weights) {
  const TranscoderSet set = TranscoderSet::open(folder() / "tc");
  const Hop feature[] = {{false, 3, 17}};
  WeightReportOptions options;
  options.top = 5;
  const WeightReport report = analyse_weights(model_, set, feature, options);
  const auto all = json("weights organism --transcoders tc --feature 3.17 --top 5");
  ASSERT_EQ(all.size(), 1U);
  const FeatureConnections& f = report.features[0];
  for (std::size_t i = 0; i < 5; ++i) {
    const auto& token = all[0]["deembedding"]["top"][i];
    EXPECT_EQ(token["token"], f.direct.tokens.top[i].index);
    EXPECT_EQ(token["text"], model_.tokenizer()->piece(f.direct.tokens.top[i].index));
    EXPECT_FLOAT_EQ(token["adds"].get<float>(), f.direct.tokens.top[i].value);
    EXPECT_EQ(all[0]["features"]["bottom"][i]["feature"], f.direct.bottom(5)[i].feature);
    EXPECT_EQ(all[0]["logits"]["top"][i]["token"], f.logits.top[i].index);
  }
  EXPECT_EQ(all[0]["heads"].size(), 3U);

  const auto only = json("weights organism --transcoders tc --feature 3.17 1.2 --deembed");
  ASSERT_EQ(only.size(), 2U);
  EXPECT_FALSE(only[0].contains("features") || only[0].contains("heads") ||
               only[0].contains("logits"));
  const auto back = json("weights organism --transcoders tc --feature 3.17 --pull-back a2.h1 0.4");
  EXPECT_EQ(back[0]["pull_back"], (nlohmann::json{"a2.h1", "0.4"}));
  const std::string text = lamina("-q paths weights organism --transcoders tc --feature 3.17");
  for (const char* part : {"feature 3.17", "de-embedding", "earlier features", "through head",
                           "logits", "denominators left out"})
    EXPECT_NE(text.find(part), std::string::npos) << part;
}

TEST_F(PathsCommand, Find) {
  const std::string base = "find organism --transcoders tc --text 'The capital of France is' ";
  const auto found = json(base + "--logit Paris --minus Rome --depth 2 --width 4");
  EXPECT_LT(found["rounding"].get<double>(), 1e-5);
  EXPECT_EQ(found["prefixes"].size(), 9U);
  EXPECT_EQ(found["prefixes"][0]["kind"], "logit");
  const auto feature = json(base + "--from 3.5.17 --absolute -o out.h5 --graph graph.json");
  EXPECT_EQ(feature["prefixes"][0]["name"], "3.17@5");
  EXPECT_EQ(json(base + "--from 3.17@5 --absolute")["prefixes"], feature["prefixes"]);
  const auto graph = nlohmann::json::parse(read_file(folder() / "graph.json"));
  EXPECT_EQ(graph["nodes"][0]["id"], "3.17@5");
  EXPECT_GE(graph["edges"].size(), 5U);
  EXPECT_TRUE(std::filesystem::exists(folder() / "out.h5"));
  const std::string text = lamina("-q paths " + base + "--logit Paris");
  for (const char* part : {"explained", "paths", "accounts", "Paris"})
    EXPECT_NE(text.find(part), std::string::npos) << part;
}

TEST_F(PathsCommand, Contexts) {
  const std::string what =
      "contexts organism --transcoders tc --feature 3.17 0.2 --text 'The capital of France is' "
      "'The keys to the cabinet' ";
  const auto found = json(what + "--context 2 --examples 3");
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0]["tokens"], 12);
  for (const auto& feature : found) {
    EXPECT_LE(feature["places"].size(), 2U);  // one a prompt
    for (const auto& place : feature["places"]) {
      EXPECT_NE(place["context"].get<std::string>().find("«"), std::string::npos);
      EXPECT_GE(place["around"].size(), 3U);
      bool there = false;
      for (const auto& token : place["around"])
        there = there || token["activation"] == place["activation"];
      EXPECT_TRUE(there);
    }
  }
  // The same from a recording of what the dictionaries read.
  lamina(
      "-q record organism --text 'The capital of France is' 'The keys to the cabinet' "
      "--sites ln2_normalized -o rec.h5");
  const auto recorded = json(
      "contexts organism --transcoders tc --feature 3.17 0.2 --recordings "
      "rec.h5 --context 2 --examples 3");
  for (std::size_t f = 0; f < 2; ++f) EXPECT_EQ(recorded[f], found[f]);
  const std::string text = lamina("-q paths " + what);
  EXPECT_NE(text.find("feature 3.17  fires at "), std::string::npos) << text;
  expect_error("paths contexts organism --transcoders tc --feature a1.h2 --text the", 2,
               "expected a feature");
  expect_error("paths contexts organism --transcoders tc --feature 8.1 --text the", 2,
               "no dictionary of layer 8");
}

TEST_F(PathsCommand, Mistakes) {
  const std::string weights = "paths weights organism --transcoders tc ";
  expect_error("paths", 2, "see `lamina paths --help`");
  expect_error(weights + "--feature 3", 2, "'3': expected LAYER.FEATURE");
  expect_error(weights + "--feature 9.1", 2, "no dictionary of layer 9");
  expect_error(weights + "--feature 3.40", 2, "feature 40");
  expect_error(weights + "--feature 3.1 --pull-back a4.h0", 2, "writes behind");
  const std::string find =
      "paths find organism --transcoders tc --text 'The capital of France is' ";
  expect_error(find, 2, "give --from LAYER.POSITION.FEATURE or --logit TOKEN");
  expect_error(find + "--from 3.5", 2, "expected LAYER.POSITION.FEATURE");
  expect_error(find + "--from 3.5@", 2, "expected LAYER.POSITION.FEATURE");
  expect_error(find + "--from 3.5.1.2", 2, "expected LAYER.POSITION.FEATURE");
  expect_error(find + "--from 3.50.1", 2, "position 50");
  expect_error(find + "--logit Atlantis", 2, "not one token");
  expect_error(find + "--logit Paris --from 1.1.1", 2, "excludes");
  expect_error(find + "--minus Paris --from 1.1.1", 2, "--logit");
  expect_error("paths find organism --transcoders nowhere --text the --logit Paris", 1, "nowhere");
}

}  // namespace
}  // namespace lamina::test
