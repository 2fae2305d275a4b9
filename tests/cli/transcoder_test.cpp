// lamina transcoder.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using nlohmann::json;

class TranscoderVerb : public Cli {
 protected:
  TranscoderVerb() {
    // Short names in command lines.
    std::filesystem::create_symlink(LAMINA_SOURCE_DIR "/tests/goldens/gpt2", folder() / "gpt2");
    std::filesystem::create_symlink(LAMINA_SOURCE_DIR "/tests/transcoder/eval", folder() / "d");
    std::filesystem::create_symlink(LAMINA_SOURCE_DIR "/tests/transcoder/goldens", folder() / "g");
  }
  static constexpr const char* kEval =
      "-q transcoder eval gpt2 --transcoder d/mlp1 d/resid0 d/skip2 --skip 1 --dense 0.5 "
      "--examples 3 ";
};

TEST_F(TranscoderVerb, EvalFindsTheGoldenNumbersLiveAndRecordedAtAnyThreadCount) {
  const json expected = json::parse(read_file(folder() / "d/expected.json"));
  const std::string live =
      lamina(std::string(kEval) + "--prompts d/prompts.jsonl --together --json");
  const json got = json::parse(live);
  EXPECT_EQ(got["tokens"], expected["tokens"]);
  ASSERT_EQ(got["dictionaries"].size(), 3U);
  for (const json& one : got["dictionaries"]) {
    const json& e = expected["dictionaries"][one["name"].get<std::string>()];
    for (const char* key : {"l0", "explained_variance", "explained_variance_per_token", "mse",
                            "normalized_mse", "cosine", "norm_ratio"}) {
      EXPECT_NEAR(one[key].get<double>(), e[key].get<double>(), 2e-6) << key;
    }
    EXPECT_EQ(one["dead"], e["dead"]);
    EXPECT_EQ(one["dense"], e["dense"]);
    for (const char* key : {"original", "spliced", "zero"}) {
      EXPECT_NEAR(one["ce"][key].get<double>(), e["ce"][key].get<double>(), 2e-5) << key;
    }
  }
  EXPECT_NEAR(got["together"]["spliced"].get<double>(),
              expected["together"]["spliced"].get<double>(), 2e-5);
  EXPECT_EQ(
      lamina("--threads 1 " + std::string(kEval) + "--prompts d/prompts.jsonl --together --json"),
      live);
  EXPECT_EQ(
      lamina("--threads 2 " + std::string(kEval) + "--prompts d/prompts.jsonl --together --json"),
      live);

  lamina(
      "-q record gpt2 --prompts d/prompts.jsonl -o r.h5 --sites "
      "blocks.1.ln2.hook_normalized,blocks.1.hook_mlp_out,blocks.0.hook_resid_post,"
      "blocks.2.ln2.hook_normalized,blocks.2.hook_mlp_out");
  EXPECT_EQ(lamina(std::string(kEval) + "--recordings r.h5 --together --json"), live);
  // Without the model: what does not need it.
  const json without = json::parse(lamina(
      "-q transcoder eval --recordings r.h5 --transcoder d/resid0 --skip 1 --dense 0.5 --json"));
  json same = got["dictionaries"][1];
  same.erase("ce");
  EXPECT_EQ(without["dictionaries"][0], same);
}

TEST_F(TranscoderVerb, EvalPrintsTablesAndWritesResults) {
  const std::string text =
      lamina(std::string(kEval) + "--prompts d/prompts.jsonl -o out.h5 --store-features --show 2");
  EXPECT_NE(text.find("111 tokens"), std::string::npos) << text;
  EXPECT_NE(text.find("blocks.1.hook_mlp_out"), std::string::npos);
  EXPECT_NE(text.find("0.6760"), std::string::npos) << text;  // explained variance of mlp1
  EXPECT_NE(text.find("strongest features of skip2"), std::string::npos);
  EXPECT_NE(text.find("«"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(folder() / "out.h5"));
  expect_error(std::string(kEval) + "--prompts d/prompts.jsonl -o out.h5", 1, "exists already");
}

TEST_F(TranscoderVerb, InfoSaysWhatFilesHold) {
  const std::string text = lamina("transcoder info g/topk g/ct_jump_skip g/clt");
  for (const char* part :
       {"SAELens, topk", "autoencoder", "blocks.1.hook_resid_post (12 values)", "topk (k = 5)",
        "circuit-tracer", "skip transcoder", "blocks.0.ln2.hook_normalized·w (12 values)",
        "jump_relu", "cross-layer transcoder", "40 a layer"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  const json j = json::parse(lamina("transcoder info g/ct_relu --json"));
  ASSERT_EQ(j.size(), 2U);
  EXPECT_EQ(j[1]["rebuilds"], "blocks.1.hook_mlp_out");
  EXPECT_EQ(j[1]["activation"], "relu");
}

TEST_F(TranscoderVerb, MistakesAreOneLine) {
  expect_error("transcoder", 2, "A subcommand is required; see `lamina transcoder --help`");
  expect_error("transcoder trian", 2,
               "unknown verb 'trian', did you mean train?; see `lamina transcoder --help`");
  expect_error(
      "transcoder eval gpt2 --transcoder d/mlp1 --exampels 3", 2,
      "unknown option --exampels, did you mean --examples?; see `lamina transcoder eval --help`");
  expect_error("transcoder eval gpt2 --text a", 2, "--transcoder is required");
  expect_error("transcoder eval --transcoder d/mlp1", 2,
               "nothing to read; give a model and prompts, or recordings");
  expect_error("-q transcoder eval gpt2 --transcoder d/mlp1", 2, "prompts are missing");
  expect_error("-q transcoder eval gpt2 --transcoder nothing --prompts d/prompts.jsonl", 1,
               "nothing: no such file or folder");
  expect_error("-q transcoder eval gpt2 --transcoder g/standard --prompts d/prompts.jsonl", 1,
               "standard: it reads 12 values at blocks.1.hook_resid_post, model 'gpt2' has 24");
  expect_error("-q transcoder eval organism --transcoder d/mlp1 --text the", 1,
               "mlp1: it was trained on model 'gpt2', this one is 'organism'");
  expect_error("-q transcoder eval gpt2 --transcoder g/clt --prompts d/prompts.jsonl", 1,
               "a cross-layer transcoder; eval takes dictionaries of one layer each");
  expect_error(
      "-q transcoder eval gpt2 --transcoder d/mlp1 --prompts d/prompts.jsonl "
      "--store-features",
      2, "--store-features needs -o FILE");
  // circuit and paths call it --transcoders: both words are known everywhere.
  expect_error("-q transcoder eval gpt2 --transcoders nothing --prompts d/prompts.jsonl", 1,
               "nothing: no such file or folder");
  expect_error("-q circuit gpt2 --transcoder nothing --text a", 1,
               "nothing: no such file or folder");
  expect_error("transcoder info nothing", 1, "nothing: no such file or folder");
  expect_error("transcoder info g/topk --activation topk", 2, "--activation topk needs --k");
}

// data/organism/transcoders/card.json is computed in PyTorch (make.py there).
TEST_F(TranscoderVerb, TheShippedOnesAreAsTheirCardSays) {
  const std::filesystem::path data = LAMINA_SOURCE_DIR "/data/organism";
  const json card = json::parse(read_file(data / "transcoders/card.json"));
  const json got = json::parse(
      lamina("-q transcoder eval organism --transcoder organism --no-splice --json --prompts " +
             (data / "prompts.jsonl").string()));
  ASSERT_EQ(got["dictionaries"].size(), 6U);
  for (std::size_t l = 0; l < 6; ++l) {
    SCOPED_TRACE(l);
    const json &one = got["dictionaries"][l], &sample = card["prompts"][l];
    // A pre-activation on the threshold may fall on either side of it: 1 of 1,154 tokens.
    EXPECT_NEAR(one["l0"].get<double>(), sample["l0"].get<double>(), 1e-3);
    EXPECT_NEAR(one["explained_variance"].get<double>(), sample["explained_variance"].get<double>(),
                1e-5);
    // What the card promises on held-out text.
    EXPECT_GT(card["layers"][l]["explained_variance"].get<double>(), 0.97);
    EXPECT_LT(card["layers"][l]["l0"].get<double>(), 20.0);
  }
  for (const auto& [task, right] : card["answers"]["right_replaced"].items())
    EXPECT_GE(right.get<int>(), 180) << task;
}

TEST_F(TranscoderVerb, KeepsTheMostVaryingUnits) {
  const std::string pairs = LAMINA_SOURCE_DIR "/data/organism/pairs/greater_than.jsonl";
  const std::string keep = "transcoder keep organism --transcoder organism --pairs " + pairs +
                           " --metric prob_diff --keep 0,8,1024 ";
  const json got = json::parse(lamina("-q " + keep + "--json -o keep.h5"));
  ASSERT_EQ(got["dictionaries"].size(), 6U);
  EXPECT_EQ(got["pairs"], 40);
  for (const json& one : got["dictionaries"]) {
    EXPECT_EQ(one["features"]["kept"], json({0, 8, 512}));
    EXPECT_EQ(one["neurons"]["kept"], json({0, 8, 320}));
    EXPECT_NEAR(one["features"]["metric"][2].get<double>(), one["spliced"].get<double>(), 1e-12);
    EXPECT_NEAR(one["neurons"]["metric"][2].get<double>(), one["original"].get<double>(), 1e-12);
  }
  // The last layers' MLPs matter to the years; held at their means they lose some of the metric.
  EXPECT_LT(got["dictionaries"][5]["neurons"]["metric"][0].get<double>(),
            got["dictionaries"][5]["original"].get<double>() - 0.05);
  EXPECT_EQ(json::parse(lamina("--threads 1 -q " + keep + "--json")), got);
  const std::string info = lamina("info keep.h5");
  EXPECT_NE(info.find("features_metric"), std::string::npos) << info;
  expect_error("-q transcoder keep organism --transcoder organism --pairs " + pairs + " --keep -1",
               2, "--keep");
  expect_error("-q transcoder keep gpt2 --transcoder d/resid0 --pairs " + pairs, 1, "");
}

}  // namespace
}  // namespace lamina::test
