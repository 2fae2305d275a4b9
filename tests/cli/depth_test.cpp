// lamina depth as a user runs it; what it computes is tests/probes/depth_test's.

#include <cmath>
#include <nlohmann/json.hpp>

#include "command.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

const std::string kGoldens = LAMINA_SOURCE_DIR "/tests/goldens/";
const std::string kSites = " --sites resid_pre:0,resid_post,attn_out,mlp_out,post ";

class Depth : public test::Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
  std::string prompts() const { return std::string(" --prompts ") + kPrompts + " "; }
};

// Numbers equal to 12 digits: shards add doubles in another order.
void expect_close(const Json& a, const Json& b, double tolerance, const std::string& where) {
  ASSERT_EQ(a.type() == Json::value_t::null, b.type() == Json::value_t::null) << where;
  if (a.is_number()) {
    const double x = a.get<double>(), y = b.get<double>();
    EXPECT_NEAR(x, y, tolerance * std::max(1.0, std::abs(x))) << where;
    return;
  }
  if (!a.is_structured()) {
    EXPECT_EQ(a, b) << where;
    return;
  }
  ASSERT_EQ(a.size(), b.size()) << where;
  for (const auto& [key, value] : a.items()) {
    expect_close(value, a.is_array() ? b[std::stoul(key)] : b[key], tolerance, where + "/" + key);
  }
}

TEST_P(Depth, LiveIsRecorded) {
  const std::string live = run("depth --model organism" + prompts() + "--json");
  run("record organism" + prompts() + kSites + "-o run.h5");
  EXPECT_EQ(run("depth run.h5 --json -o depth.h5"), live);
  EXPECT_TRUE(std::filesystem::exists(folder() / "depth.h5"));
  expect_error("depth run.h5 -o depth.h5", 1, "exists already");
  run("record organism" + prompts() + kSites + "--shard 1/2 -o a.h5");
  run("record organism" + prompts() + kSites + "--shard 2/2 -o b.h5");
  // Products of float rows, 256 at a time, stand elsewhere in the coding rate of shards.
  expect_close(Json::parse(live), Json::parse(run("depth a.h5 b.h5 --json")), 1e-6, "");

  const Json json = Json::parse(live);
  EXPECT_EQ(json["tokens"], 1154);
  for (const char* name : {"attn_ratio", "mlp_ratio", "block_ratio", "attn_cos", "stream_cos"}) {
    EXPECT_EQ(json["contributions"][name].size(), 6U) << name;
  }
  EXPECT_EQ(json["growth"]["growth"][0], 1.0);
  EXPECT_EQ(json["angular"]["distance"][0].size(), 6U);
  EXPECT_TRUE(json["angular"]["distance"][5][1].is_null());
  EXPECT_EQ(json["exit"]["agreement"][6], 1.0);
  EXPECT_LT(json["exit"]["tokens"], 1154 / 7);
  EXPECT_EQ(json["sparsity"]["threshold"], 0.1);
  EXPECT_EQ(json["coding_rate"].size(), 7U);
  EXPECT_FALSE(json.contains("linear_map"));
}

TEST_P(Depth, ATableForReaders) {
  const std::string table = run("depth --model organism" + prompts() + "--skip 1 --exit-every 1");
  EXPECT_NE(table.find("44 prompts, 1,110 tokens"), std::string::npos) << table;
  for (const char* heading : {"norm", "attn", "cos mlp", "active", "rate", "exit", "right"}) {
    EXPECT_NE(table.find(heading), std::string::npos) << heading;
  }
  EXPECT_NE(table.find("early exit: 1,110 tokens read"), std::string::npos) << table;
  EXPECT_NE(table.find("best to prune first"), std::string::npos) << table;
}

TEST_P(Depth, MapsToAnotherModel) {
  const std::string live =
      run("depth --model organism" + prompts() + "--analyses linear-map --against organism --json");
  const Json maps = Json::parse(live)["linear_map"];
  EXPECT_FALSE(Json::parse(live).contains("growth"));
  ASSERT_EQ(maps["error"].size(), 7U);
  for (std::size_t s = 0; s < 7; ++s) {
    EXPECT_EQ(maps["best_source"][s], s);  // each layer says its own best
    EXPECT_LT(maps["error"][s][s], 0.02);
  }
  run("record organism" + prompts() + kSites + "-o run.h5");
  const std::string verb = "depth run.h5 --analyses linear-map --json --against ";
  EXPECT_EQ(run(verb + "run.h5"), live);
  EXPECT_EQ(run(verb + "organism -o maps.h5"), live);
  EXPECT_EQ(run(verb + "organism --map-memory 1"), live);
  run("record organism --text \"the small house\" --sites resid_pre:0,resid_post -o other.h5");
  expect_error("-q " + verb + "other.h5", 1, "it holds 1 prompts, the source 44");
}

TEST_P(Depth, MistakesAreNamed) {
  run("record organism --text the --sites resid_pre:0,resid_post -o run.h5");
  expect_error("-q depth run.h5 --analyses sparsity", 1, "depth_sparsity needs blocks.0.mlp");
  const test::Outcome some = shell("lamina depth run.h5 --json");
  EXPECT_EQ(some.code, 0) << some.err;
  EXPECT_NE(some.err.find("without sparsity"), std::string::npos) << some.err;
  EXPECT_TRUE(Json::parse(some.out).contains("angular"));
  expect_error("-q depth", 2, "nothing to read");
  expect_error("-q depth run.h5 --text a", 2, "recordings and prompts were both given");
  expect_error("-q depth run.h5 --skip 99", 1, "no prompt has more than the 99 tokens to skip");
  expect_error("-q depth run.h5 --analyses depth", 2, "depth not in");
  expect_error("-q depth run.h5 --analyses linear-map", 2, "give --against");
  expect_error("-q depth run.h5 --analyses growth --against organism", 2, "--against is for");
  expect_error("-q depth run.h5 --active 1 --active-rms 1", 2, "there is one threshold");
  expect_error("-q depth run.h5 --analyses coding-rate --epsilon 0", 2, "epsilon must be");
  expect_error("-q depth run.h5 --analyses linear-map --against organism", 1,
               "no tokens are left to measure");
}

TEST_P(Depth, EncodersHaveNoExit) {
  write("p.jsonl", "{\"ids\": [5, 9, 12, 40, 7]}\n");
  const test::Outcome bert =
      shell("lamina depth --model " + kGoldens + "bert --prompts p.jsonl --json");
  EXPECT_EQ(bert.code, 0) << bert.err;
  EXPECT_NE(bert.err.find("without exit"), std::string::npos) << bert.err;
  EXPECT_FALSE(Json::parse(bert.out).contains("exit"));
  EXPECT_FALSE(Json::parse(bert.out)["contributions"]["mlp_ratio"][0].is_null());
}

INSTANTIATE_TEST_SUITE_P(Threads, Depth, ::testing::Values(1, 2));

}  // namespace
}  // namespace lamina
