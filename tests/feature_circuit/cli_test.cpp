// lamina feature-circuit as a user types it.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "circuits/random_transcoders.h"
#include "cli/command.h"
#include "lamina/circuits/transcoder_file.h"
#include "support/tiny_model.h"

namespace lamina::test {
namespace {

using nlohmann::json;

double pearson(const std::vector<double>& a, const std::vector<double>& b) {
  const auto n = static_cast<double>(a.size());
  double ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
  for (std::size_t i = 0; i < a.size(); ++i) ma += a[i] / n, mb += b[i] / n;
  for (std::size_t i = 0; i < a.size(); ++i) {
    aa += (a[i] - ma) * (a[i] - ma);
    bb += (b[i] - mb) * (b[i] - mb);
    ab += (a[i] - ma) * (b[i] - mb);
  }
  return ab / std::sqrt(aa * bb);
}

class FeatureCircuitCli : public Cli {
 protected:
  FeatureCircuitCli() {
    std::filesystem::create_directory(folder() / "tiny");
    testing::write_tiny_model(folder() / "tiny", {.label = "gated"}, 4);
    const Model model = Model::load(folder() / "tiny");
    for (std::int32_t l = 0; l < 3; ++l) {
      write("resid", autoencoder(model.config(), SiteKind::resid_post, l));
      write("mlp", autoencoder(model.config(), SiteKind::mlp_out, l));
    }
    const auto clean = testing::random_prompts({6, 6, 8, 6}, 61, 1);
    const auto corrupted = testing::random_prompts({6, 6, 8, 6}, 61, 2);
    std::ofstream file(folder() / "pairs.jsonl"), half(folder() / "half.jsonl");
    for (std::size_t i = 0; i < clean.size(); ++i) {
      const std::string line = json{
          {"id", "p" + std::to_string(i)},
          {"clean", clean[i]},
          {"corrupted", corrupted[i]},
          {"correct", {3}},
          {"wrong", {7}}}.dump();
      file << line << "\n";
      if (i < 2) half << line << "\n";
    }
  }

  static Transcoder autoencoder(const ModelConfig& model, SiteKind kind, std::int32_t layer) {
    Transcoder t = testing::random_transcoder(
        model, layer, {.input = kind, .norm_weights = false, .features = 30},
        5 + static_cast<std::uint64_t>(kind));
    t.config.output = t.config.input;
    return t;
  }
  void write(const std::string& set, const Transcoder& t) const {
    std::filesystem::create_directory(folder() / set);
    write_saelens(folder() / set / ("layer_" + std::to_string(t.config.output.site.layer)), t);
  }
  json run(const std::string& options) const {
    return json::parse(lamina("feature-circuit tiny --pairs pairs.jsonl --json " + options));
  }
};

TEST_F(FeatureCircuitCli, EffectsCircuitsAndTheirCheck) {
  const json got = run("--saes resid mlp --exact all --show 10000 --ablation pair -o out.h5");
  EXPECT_EQ(got["methods"], (json{"atp", "ig", "relp"}));
  ASSERT_EQ(got["dictionaries"].size(), 6U);
  EXPECT_EQ(got["dictionaries"][0]["site"], "blocks.0.hook_mlp_out");  // in the model's order
  EXPECT_EQ(got["dictionaries"][1]["site"], "blocks.0.hook_resid_post");
  EXPECT_EQ(got["dictionaries"][5]["features"], 30);
  ASSERT_EQ(got["checks"].size(), 1U);
  EXPECT_EQ(got["checks"][0]["nodes"], "all");
  EXPECT_EQ(got["checks"][0]["number"], got["nodes"]);
  for (const char* method : {"atp", "ig", "relp"}) {
    std::vector<double> estimate, exact;
    for (const json& node : got["largest"]) {
      estimate.push_back(node[method]);
      exact.push_back(node["exact"]);
    }
    EXPECT_EQ(estimate.size(), got["nodes"]);
    EXPECT_NEAR(got["checks"][0][method]["pearson"]["value"].get<double>(),
                pearson(estimate, exact), 1e-9);
  }
  const json& sweep = got["sweep"];
  EXPECT_EQ(sweep["thresholds"].size(), 10U);
  EXPECT_DOUBLE_EQ(sweep["model"], got["clean"]);
  EXPECT_DOUBLE_EQ(sweep["empty"], got["corrupted"]);
  for (const char* method : {"atp", "ig", "relp"}) {
    EXPECT_NEAR(sweep["by_threshold"][method][0]["faithfulness"], 1, 1e-5);  // all that differs
    std::int64_t before = got["nodes"];
    for (const json& point : sweep["by_threshold"][method]) {
      EXPECT_LE(point["nodes"], before);
      before = point["nodes"];
      const double full = sweep["model"], empty = sweep["empty"];
      EXPECT_NEAR(point["faithfulness"].get<double>(),
                  (point["metric"].get<double>() - empty) / (full - empty), 1e-9);
    }
  }
  const std::string text = lamina("feature-circuit tiny --pairs pairs.jsonl --saes resid mlp");
  for (const char* part :
       {"dictionaries", "largest effects", "faithful", "largest nodes", "blocks.1.hook_mlp_out/"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

TEST_F(FeatureCircuitCli, OptionsDoWhatTheySay) {
  const json one = run("--saes resid mlp --sites resid_post:1-2 --methods ig --no-sweep");
  EXPECT_EQ(one["dictionaries"].size(), 2U);
  EXPECT_EQ(one["methods"], json{"ig"});
  EXPECT_FALSE(one.contains("sweep"));
  const json placed =
      run("--saes resid --methods atp,relp --by-position --align start --no-sweep --show 1000");
  double summed = 0;
  for (const json& node : placed["largest"]) {
    EXPECT_NE(node["node"].get<std::string>().find('@'), std::string::npos);
    summed += std::abs(node["atp"].get<double>());
  }
  EXPECT_GT(summed, 0);
  const json test = run("--saes resid --test half.jsonl --counts 3,5 --patch zero --ablation zero");
  EXPECT_EQ(test["settings"]["circuits_run_on"], "2 pairs of half.jsonl");
  EXPECT_EQ(test["sweep"]["counts"], (json{3, 5}));
  EXPECT_TRUE(test["sweep"]["thresholds"].empty());
  const json edges = run("--saes resid mlp --edges 10 --methods ig --no-sweep --show 500");
  EXPECT_GT(edges["edges"].size(), 10U);
  for (const json& edge : edges["edges"]) EXPECT_NE(edge["ig"], 0.0);
  // Without rules, relevance is the gradient.
  const json plain = run("--saes mlp --methods atp,relp --rules none --no-sweep");
  for (const json& node : plain["largest"]) EXPECT_EQ(node["atp"], node["relp"]);
}

TEST_F(FeatureCircuitCli, WhatIsRefused) {
  const std::string verb = "feature-circuit tiny --pairs pairs.jsonl ";
  expect_error(verb + "--saes resid mlp resid", 2, "two dictionaries rebuild blocks.0");
  expect_error(verb + "--saes resid --sites mlp_out", 2, "no dictionary of resid");
  expect_error(verb + "--saes resid --methods atp,eap", 2, "'eap', expected atp, ig, relp");
  expect_error(verb + "--saes resid --methods ig,ig", 2, "ig is named twice");
  expect_error(verb + "--saes resid --rules loud", 2, "'loud'");
  expect_error(verb + "--saes resid --exact few", 2, "'few'");
  expect_error(verb + "--saes resid --thresholds -1", 2, "expected numbers from 0");
  expect_error(verb + "--saes resid --no-sweep --counts 3", 2, "--no-sweep");
  expect_error(verb + "--saes nowhere", 1, "nowhere");
  // A dictionary of another width: both values are named.
  Transcoder wide = autoencoder(Model::load(folder() / "tiny").config(), SiteKind::mlp_out, 1);
  wide.config.d_in = wide.config.d_out = 25;
  wide.encoder.resize(30 * 25);
  wide.decoder.resize(30 * 25);
  wide.decoder_bias.resize(25);
  write("wide", wide);
  expect_error(verb + "--saes wide", 1, "25 values at blocks.1.hook_mlp_out");
  std::ofstream(folder() / "resid" / "layer_1" / "cfg.json") << "{\"architecture\": \"gated\"}";
  expect_error(verb + "--saes resid", 1, "layer_1");
}

}  // namespace
}  // namespace lamina::test
