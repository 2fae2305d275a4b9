// lamina circuit and lamina graph as a user types them: the planted counting model with its neurons
// as features.

#include <nlohmann/json.hpp>

#include "circuits/planted_neurons.h"
#include "cli/command.h"
#include "lamina/circuits/transcoder_file.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Circuit : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  Circuit() {
    const std::string model = LAMINA_SOURCE_DIR "/data/planted/majority";
    const std::vector<Transcoder> neurons = lamina::testing::planted_neurons(model);
    std::vector<const Transcoder*> all;
    for (const Transcoder& t : neurons) all.push_back(&t);
    write_circuit_tracer(folder() / "neurons", all, "");
  }
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
  static constexpr const char* kPrompt =
      "circuit planted/majority --transcoders neurons --text 'b x h x x x x c e x' ";
};
INSTANTIATE_TEST_SUITE_P(Threads, Circuit, ::testing::Values(1, 2));

TEST_P(Circuit, TheCountingCircuitFromEndToEnd) {
  const Json json =
      Json::parse(run(std::string(kPrompt) + "--graph g.json --whole-graph w.json -o r.h5 --json "
                                             "--change '0_8_*=0.5'"));
  EXPECT_NEAR(json["replacement"], 1.0, 1e-5);
  EXPECT_NEAR(json["completeness"], 1.0, 1e-5);
  EXPECT_EQ(json["logits"][0]["text"], "x");
  EXPECT_LT(json["unexplained"][0], 1e-9);
  EXPECT_EQ(json["pruned"]["features"], 1);
  EXPECT_EQ(json["nodes"][0]["id"], "0_8_10");
  // The prediction is exact while patterns and norms are kept, and here (nothing depends on the
  // change but the logits) also where they are not.
  for (const Json& check : json["checks"]) {
    EXPECT_LT(check["worst"], 1e-4) << check["freedom"];
    EXPECT_LT(check["logits"][0]["measured"], -1.0);
  }
  const Json graph = Json::parse(read_file(folder() / "g.json"));
  EXPECT_EQ(graph["metadata"]["prompt_tokens"].size(), 11U);
  EXPECT_EQ(graph["nodes"][0]["node_id"], "0_8_10");
  EXPECT_TRUE(std::filesystem::exists(folder() / "r.h5"));
}

TEST_P(Circuit, GraphOperations) {
  run(std::string(kPrompt) + "--graph g.json --whole-graph w.json");
  run("circuit planted/majority --transcoders neurons --text 'a x c b e b e a' --graph h.json");
  write("groups.json", R"({"counter": ["0_8_*"], "xs": ["E_2_*"]})");
  const Json json = Json::parse(
      run("graph g.json --supernodes groups.json --paths 3 --from xs --to '3_*_10' --cut "
          "--edge-cut --centrality --communities --compare h.json --graphml g.graphml --dot g.dot "
          "--json"));
  ASSERT_EQ(json["paths"].size(), 3U);
  EXPECT_EQ(json["paths"][0]["nodes"][1], "0_8_10");
  EXPECT_EQ(json["node_cut"]["nodes"], Json::array({"0_8_10"}));
  EXPECT_GT(json["edge_cut"]["value"], 0.0);
  EXPECT_GE(json["communities"]["count"], 1);
  EXPECT_EQ(json["comparison"]["edges_both"], 0);
  const Json pruned = Json::parse(run("graph w.json --prune --json"));
  const Json direct = Json::parse(run("graph g.json --json"));
  EXPECT_EQ(pruned["nodes"], direct["nodes"]);
  EXPECT_EQ(pruned["edges"], direct["edges"]);
  run("graph g.json w.json --merge --graph m.json");
  const std::string text = run("graph g.json --supernodes groups.json --collapse --paths 2");
  EXPECT_NE(text.find("counter"), std::string::npos) << text;
  if (shell("command -v dot").code == 0) {
    run("graph g.json --draw g.svg");
    EXPECT_NE(read_file(folder() / "g.svg").find("<svg"), std::string::npos);
  }
}

TEST_P(Circuit, TheResultDoesNotDependOnTheThreads) {
  const Json one = Json::parse(lamina("-q --threads 1 " + std::string(kPrompt) + "--json"));
  const Json more = Json::parse(run(std::string(kPrompt) + "--json"));
  EXPECT_EQ(one["nodes"], more["nodes"]);
  EXPECT_EQ(one["logits"], more["logits"]);
}

TEST_P(Circuit, MistakesAreOneLine) {
  const std::string start = "-q ";
  expect_error(start + "circuit planted/majority --text x", 2, "--transcoders");
  expect_error(start + "circuit planted/majority --transcoders nowhere --text x", 1, "nowhere");
  expect_error(start + kPrompt + "--change '9_9_9'", 2, "9_9_9");
  expect_error(start + kPrompt + "--change '0_8_*=much'", 2, "much");
  expect_error(start + kPrompt + "--prompt 4", 2, "--prompt 4");
  expect_error(start + kPrompt + "--draw x.gif", 2, ".svg");
  expect_error(start + "circuit organism --transcoders neurons --text the", 1, "");
  write("bad.json", R"({"metadata": {"slug": "a"}})");
  expect_error(start + "graph bad.json", 1, "bad.json: has no list \"links\"");
  expect_error(start + "graph missing.json", 1, "missing.json");
  run(std::string(kPrompt) + "--graph g.json");
  expect_error(start + "graph g.json g.json", 2, "--merge");
  expect_error(start + "graph g.json --paths 2 --from nobody", 2, "nobody");
  expect_error(start + "graph g.json --from nobody", 2, "--paths");
  expect_error(start + "graph g.json --cut --from '0_8_*' --to '0_8_*'", 2, "source and target");
  expect_error(start + kPrompt + "--graph g.json", 1, "exists already");
}

}  // namespace
}  // namespace lamina::test
