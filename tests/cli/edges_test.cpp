// lamina edges and lamina bakeoff as a user types them.

#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

const std::string kData = LAMINA_SOURCE_DIR "/data/";

class Edges : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
  static std::string planted(const std::string& name) {
    return "planted/" + name + " --pairs " + kData + "planted/" + name + "/pairs.jsonl --known " +
           kData + "planted/" + name + "/circuit.json";
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, Edges, ::testing::Values(1, 2));

TEST_P(Edges, ExactScoresFindEveryPlantedEdgeThatDiffers) {
  for (const char* name : {"previous_token", "induction", "majority", "indirect_object"}) {
    const Json json = Json::parse(run("edges " + planted(name) + " --method exact --json"));
    EXPECT_EQ(json["known"]["auroc_edges"], 1.0) << name;
  }
}

TEST_P(Edges, ZeroAblationOfTheKnownCircuitsComplement) {
  // The whole planted circuit, those edges included that are the same in both prompts, does what
  // the model does when everything else is zero.
  const std::string folder = kData + "planted/induction/";
  const Json circuit = Json::parse(read_file(folder + "circuit.json"));
  Json graph = {
      {"cfg", {{"n_layers", 2}, {"n_heads", 3}, {"d_model", 88}, {"parallel_attn_mlp", false}}},
      {"nodes", Json::object()},
      {"edges", Json::object()}};
  for (const Json& edge : circuit["edges"])
    graph["edges"][edge["edge"].get<std::string>()] = {{"score", 1.0}, {"in_graph", true}};
  write("graph.json", graph.dump());
  const Json json = Json::parse(run("edges planted/induction --pairs " + folder +
                                    "pairs.jsonl --from graph.json --ablation zero --json"));
  EXPECT_EQ(json["circuit"]["edges"], 7);
  EXPECT_NEAR(json["circuit"]["faithfulness"], 1.0, 1e-4);
}

TEST_P(Edges, FilesAndFaithfulness) {
  const std::string pairs = "organism --pairs " + kData + "organism/pairs/ioi.jsonl --limit 4";
  const Json json = Json::parse(
      run("edges " + pairs + " --share 0.1 --faithfulness --graph g.json -o r.h5 --json"));
  EXPECT_EQ(json["edges"], 1108);
  EXPECT_EQ(json["faithfulness"]["by_score"].size(), 10U);
  EXPECT_NEAR(json["faithfulness"]["by_score"][9]["faithfulness"], 1.0, 1e-9);
  EXPECT_NEAR(json["faithfulness"]["by_score"][0]["faithfulness"], 0.0, 1e-9);
  EXPECT_EQ(json["circuit"]["faithfulness"],
            json["faithfulness"]["by_magnitude"][6]["faithfulness"]);
  const Json again = Json::parse(run("edges " + pairs + " --from g.json --json"));
  EXPECT_EQ(again["circuit"]["metric"], json["circuit"]["metric"]);
  EXPECT_EQ(again["largest"], json["largest"]);
  EXPECT_EQ(Json::parse(read_file(folder() / "g.json"))["edges"].size(), 1108U);
  EXPECT_TRUE(read_file(folder() / "r.h5").starts_with("\x89HDF"));
}

TEST_P(Edges, BakeOffOfOneModel) {
  const Json rows =
      Json::parse(run("bakeoff " + planted("majority") + " --limit 8 --json -o b.h5"));
  ASSERT_EQ(rows.size(), 8U);
  for (const Json& row : rows) {
    EXPECT_EQ(row["pairs"], 8);
    if (row["scores"] == "edges") {
      EXPECT_EQ(row["auroc_edges"], 1.0) << row;
    }
    if (row["method"] == "exact" && row["scores"] == "nodes") {
      EXPECT_EQ(row["auroc_nodes"], 1.0);
    }
  }
}

TEST_P(Edges, MistakesAreOneLine) {
  const std::string pairs = " --pairs " + kData + "planted/induction/pairs.jsonl";
  expect_error("-q edges planted/induction", 2, "--pairs");
  expect_error("-q edges planted/induction" + pairs + " --method gues", 2, "--method");
  expect_error("-q edges planted/induction" + pairs + " --top 3 --share 0.1", 2, "give one");
  expect_error("-q edges planted/induction" + pairs + " --top 99", 2, "the graph has 52");
  expect_error("-q edges planted/induction" + pairs + " --method acdc --top 3", 2, "--threshold");
  expect_error("-q edges planted/induction" + pairs + " --method eap-ig --ablation zero", 2,
               "ablation zero");
  expect_error("-q edges planted/induction" + pairs + " --from nothing.json", 1, "nothing.json");
  expect_error(
      "edges planted/induction" + pairs + " --known " + kData + "planted/majority/circuit.json", 1,
      "is not in the model's graph");
  expect_error("-q bakeoff planted/induction", 2, "--pairs");
}

}  // namespace
}  // namespace lamina::test
