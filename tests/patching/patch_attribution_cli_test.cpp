// The estimating methods of `lamina patch`, as a user types them.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "support/tiny_model.h"

namespace lamina::test {
namespace {

using nlohmann::json;

class PatchAttribution : public Cli {
 protected:
  PatchAttribution() {
    std::filesystem::create_directory(folder() / "tiny");
    testing::write_tiny_model(folder() / "tiny", {.label = "gated"}, 4);
    const auto clean = testing::random_prompts({6, 6, 8, 6}, 61, 1);
    const auto corrupted = testing::random_prompts({6, 6, 8, 6}, 61, 2);
    std::ofstream file(folder() / "pairs.jsonl");
    for (std::size_t i = 0; i < clean.size(); ++i) {
      file << json{{"id", "p" + std::to_string(i)},
                   {"clean", clean[i]},
                   {"corrupted", corrupted[i]},
                   {"correct", {3}},
                   {"wrong", {7}}}
           << "\n";
    }
  }
  json patch(const std::string& options) const {
    return json::parse(lamina("patch tiny --pairs pairs.jsonl --json " + options));
  }
};

// Scores are estimates of the same effects, on the same nodes, with the same two runs.
TEST_F(PatchAttribution, EstimatesWhatExactPatchingMeasures) {
  const std::string sites = "--site resid_post:2,mlp_out:2 --by position ";
  const json exact = patch(sites);
  for (const std::string method : {"atp", "ig", "ig --ig-path inputs", "relp"}) {
    const json got = patch(sites + "--check all --resamples 50 --method " + method);
    EXPECT_EQ(got["base"], exact["base"]) << method;
    EXPECT_EQ(got["other"], exact["other"]) << method;
    ASSERT_EQ(got["sites"].size(), exact["sites"].size());
    // The statistics are those of the printed means.
    std::vector<double> a, b;
    for (std::size_t s = 0; s < 2; ++s) {
      EXPECT_EQ(got["sites"][s]["dims"], exact["sites"][s]["dims"]);
      for (std::size_t i = 0; i < got["sites"][s]["effect"].size(); ++i) {
        a.push_back(got["sites"][s]["effect"][i]);
        b.push_back(exact["sites"][s]["effect"][i]);
      }
    }
    double ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
    for (std::size_t i = 0; i < a.size(); ++i) ma += a[i] / a.size(), mb += b[i] / b.size();
    for (std::size_t i = 0; i < a.size(); ++i) {
      aa += (a[i] - ma) * (a[i] - ma);
      bb += (b[i] - mb) * (b[i] - mb);
      ab += (a[i] - ma) * (b[i] - mb);
    }
    const json& all = got["check"]["sites"][0];
    EXPECT_EQ(all["site"], "all");
    EXPECT_EQ(all["by_node"]["values"], 16);
    EXPECT_NEAR(all["by_node"]["pearson"]["value"].get<double>(), ab / std::sqrt(aa * bb), 1e-9);
    EXPECT_EQ(got["check"]["sites"][1]["site"], "resid_post");
    EXPECT_EQ(got.contains("relevance"), method == "relp");
  }
}

// Pairs of different lengths are scored length by length: three of 6 tokens and one of 8.
TEST_F(PatchAttribution, PositionsCountFromTheEndOrTheStart) {
  const auto effects = [&](const std::string& file, const std::string& align) {
    std::vector<double> out;
    const json result =
        json::parse(lamina("patch tiny --json --site resid_pre:1 --by position --method relp "
                           "--pairs " +
                           file + " --align " + align));
    for (const auto& v : result["sites"][0]["effect"]) out.push_back(v);
    return out;
  };
  ASSERT_EQ(shell("sed -n 3p pairs.jsonl > eight.jsonl; sed 3d pairs.jsonl > six.jsonl").code, 0);
  const std::vector<double> six = effects("six.jsonl", "end"),
                            eight = effects("eight.jsonl", "end");
  const std::vector<double> end = effects("pairs.jsonl", "end");
  const std::vector<double> start = effects("pairs.jsonl", "start");
  ASSERT_EQ(six.size(), 6u);
  ASSERT_EQ(end.size(), 8u);
  ASSERT_EQ(start.size(), 8u);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(end[i], i < 2 ? eight[i] : (3 * six[i - 2] + eight[i]) / 4, 1e-9) << i;
    EXPECT_NEAR(start[i], i >= 6 ? eight[i] : (3 * six[i] + eight[i]) / 4, 1e-9) << i;
  }
}

TEST_F(PatchAttribution, OptionsChangeWhatTheyName) {
  const std::string common = "--site mlp_out --by position --method ";
  const auto effects = [&](const std::string& options) {
    std::vector<double> out;
    const json result = patch(common + options);
    for (const auto& v : result["sites"][0]["effect"]) out.push_back(v);
    return out;
  };
  const std::vector<double> atp = effects("atp"), relp = effects("relp");
  EXPECT_NE(atp, relp);
  EXPECT_EQ(relp, effects("atp --rules norm,activation,gate"));
  EXPECT_EQ(atp, effects("relp --rules none"));
  EXPECT_EQ(atp, effects("atp --at corrupted"));
  EXPECT_NE(atp, effects("atp --at clean"));
  EXPECT_NE(relp, effects("relp --rules norm,activation,gate,pattern"));
  EXPECT_NE(relp, effects("relp --stabiliser 0.5"));
  EXPECT_EQ(atp, effects("ig --ig-steps 1"));
  EXPECT_EQ(effects("ig"), effects("ig --ig-path node --ig-steps 10"));
  EXPECT_EQ(effects("ig --ig-path inputs"), effects("ig --ig-path inputs --ig-steps 5"));
  // Memory bounds the batch, not the numbers.
  EXPECT_EQ(relp, effects("relp --memory 1"));
  // The other way round, at the same run: the same numbers with the other sign.
  std::vector<double> back = effects("atp --direction noise --at corrupted");
  for (double& v : back) v = -v;
  for (std::size_t i = 0; i < atp.size(); ++i) EXPECT_NEAR(atp[i], back[i], 1e-6);
}

TEST_F(PatchAttribution, PrintsAndWritesTheCheck) {
  const std::string out = lamina(
      "patch tiny --pairs pairs.jsonl --method relp --site resid_pre,z --by position --check 9 "
      "--resamples 20 -o out.h5");
  for (const char* part : {"relevance patching", "norm, activation, gate", "gradient_at",
                           "corrupted", "9 of 48 nodes patched exactly", "agreement with exact",
                           "Pearson", "resid_pre", "every pair", "mean of Σ x·ρ"}) {
    EXPECT_NE(out.find(part), std::string::npos) << part << "\n" << out;
  }
  for (const char* name :
       {"check_exact", "check_agreement", "check_sizes", "relevance_resid_pre"}) {
    EXPECT_NE(read_file(folder() / "out.h5").find(name), std::string::npos) << name;
  }
}

TEST_F(PatchAttribution, RefusesWhatDoesNotFit) {
  const std::string patch = "patch tiny --pairs pairs.jsonl ";
  expect_error(patch + "--method lrp", 2, "expected exact, atp, ig, relp");
  expect_error(patch + "--method exact --check 3", 2, "--check is an option of --method atp");
  expect_error(patch + "--method atp --ig-steps 3", 2, "--ig-steps is an option of --method ig");
  expect_error(patch + "--method ig --at clean", 2, "--at is an option of --method atp or relp");
  expect_error(patch + "--method atp --rules norms", 2, "'norms', expected norm, activation");
  expect_error(patch + "--method atp --rules none,norm", 2, "'none'");
  expect_error(patch + "--method atp --check some", 2, "'some', expected a number of nodes or all");
  expect_error(patch + "--method atp --check 0", 2, "'0', expected a number of nodes or all");
  expect_error(patch + "--method relp --replace zero", 2, "--method exact for ablations");
}

}  // namespace
}  // namespace lamina::test
