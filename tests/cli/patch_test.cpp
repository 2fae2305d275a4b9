// lamina patch as a user types it.

#include <hdf5.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Patch : public Cli {
 protected:
  const std::string kPlanted = LAMINA_SOURCE_DIR "/data/planted/indirect_object/pairs.jsonl";
  const std::string kInduction = LAMINA_SOURCE_DIR "/data/planted/induction/pairs.jsonl";

  std::string planted(const std::string& more) const {
    return "-q patch planted/indirect_object --pairs '" + kPlanted + "' " + more;
  }
  Json json(const std::string& arguments) const {
    return Json::parse(lamina(arguments + " --json"));
  }
};

TEST_F(Patch, FindsThePlantedHeads) {
  const Json result = json(planted("--site z --limit 8"));
  EXPECT_EQ(result["pairs"], 8);
  EXPECT_EQ(result["base"]["run"], "corrupted");
  EXPECT_GT(result["other"]["mean"], 9.0);
  EXPECT_LT(result["base"]["mean"], -9.0);
  ASSERT_EQ(result["sites"].size(), 1U);
  const Json& site = result["sites"][0];
  EXPECT_EQ(site["site"], "z");
  EXPECT_EQ(site["dims"][0]["name"], "layer");
  EXPECT_EQ(site["dims"][1]["name"], "head");
  for (std::size_t i = 0; i < 9; ++i) {
    const bool planted = i == 4 || i == 6;  // layer 1 head 1, layer 2 head 0
    EXPECT_NEAR(site["score"][i].get<double>(), planted ? 1.0 : 0.0, 0.01) << i;
  }
  EXPECT_EQ(result["runs"].get<int>() + result["skipped"].get<int>(), 72);
  const std::string text = lamina(planted("--site z"));
  EXPECT_NE(text.find("denoising: corrupted prompts run, clean values put in"), std::string::npos);
  EXPECT_NE(text.find("z  layer 1  head 1"), std::string::npos) << text;
}

TEST_F(Patch, ThreadsAndMemoryChangeNoDigit) {
  Json one = json("--threads 1 " + planted("--site z,resid_pre,pattern"));
  Json two = json("--threads 2 " + planted("--site z,resid_pre,pattern --memory 64k"));
  for (Json* result : {&one, &two}) result->erase("seconds");
  EXPECT_EQ(one, two);
}

TEST_F(Patch, PositionsCountFromTheEndWherePairsDifferInLength) {
  const std::string verb =
      "-q patch planted/induction --pairs '" + kInduction + "' --site resid_pre";
  const Json end = json(verb), start = json(verb + " --align start");
  const auto positions = [](const Json& result) {
    return result["sites"][0]["dims"][1]["values"].get<std::vector<int>>();
  };
  EXPECT_EQ(positions(end).back(), -1);
  EXPECT_EQ(positions(start).front(), 0);
  // At the last layer's input only the last position of every prompt and the copied letter matter.
  const std::size_t n = positions(end).size();
  EXPECT_EQ(positions(start).size(), n);
  // Patching every residual value of layer 0 one by one: something has an effect in both.
  EXPECT_FALSE(end["top"].empty());
  EXPECT_EQ(end["base"], start["base"]);
}

// Every dataset of a results file's group `patch` by name, as doubles.
std::vector<double> dataset(const std::filesystem::path& path, const std::string& name) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t set = H5Dopen2(file, ("analyses/patch/" + name).c_str(), H5P_DEFAULT);
  std::vector<double> values;
  if (set >= 0) {
    const hid_t space = H5Dget_space(set);
    values.resize(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
    EXPECT_GE(H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Sclose(space);
    H5Dclose(set);
  }
  H5Fclose(file);
  return values;
}

TEST_F(Patch, TheFileHoldsWhatIsPrinted) {
  const Json result = json(planted("--site z,mlp_out --limit 4 -o out.h5"));
  const std::filesystem::path file = folder() / "out.h5";
  const std::vector<double> corrupted = dataset(file, "corrupted"), clean = dataset(file, "clean");
  const std::vector<double> patched = dataset(file, "z_patched");  // [pair, layer, head]
  ASSERT_EQ(corrupted.size(), 4U);
  ASSERT_EQ(clean.size(), 4U);
  ASSERT_EQ(patched.size(), 4U * 9U);
  EXPECT_EQ(dataset(file, "mlp_out_patched").size(), 4U * 3U * 15U);
  EXPECT_EQ(dataset(file, "layer"), std::vector<double>({0, 1, 2}));
  double whole = 0.0;
  for (std::size_t p = 0; p < 4; ++p) whole += (clean[p] - corrupted[p]) / 4;
  for (std::size_t n = 0; n < 9; ++n) {
    double effect = 0.0;
    for (std::size_t p = 0; p < 4; ++p) effect += (patched[p * 9 + n] - corrupted[p]) / 4;
    EXPECT_NEAR(dataset(file, "z_effect")[n], effect, 1e-12);
    EXPECT_NEAR(dataset(file, "z_score")[n], effect / whole, 1e-12);
    EXPECT_EQ(dataset(file, "z_effect")[n], result["sites"][0]["effect"][n].get<double>());
  }
  const Outcome again = shell("lamina " + planted("--limit 4 -o out.h5"));
  EXPECT_EQ(again.code, 1);
  EXPECT_NE(again.err.find("out.h5"), std::string::npos);
  lamina(planted("--limit 4 -o out.h5 --force"));
  EXPECT_EQ(dataset(file, "resid_pre_score").size(), 45U);
}

TEST_F(Patch, AblationsRunTheCleanPrompts) {
  const Json zero = json(planted("--site z --replace zero --limit 8"));
  EXPECT_EQ(zero["base"]["run"], "clean");
  for (const std::size_t i : {std::size_t{0}, std::size_t{4}, std::size_t{6}}) {  // the circuit
    EXPECT_LT(zero["sites"][0]["effect"][i], -1.0) << i;
  }
  EXPECT_NEAR(zero["sites"][0]["effect"][8], 0.0, 1e-3);
  json(planted("--site z --replace mean --limit 8"));
  json(planted("--site pattern --replace mean --mean-per-position --limit 8"));
  json(planted("--site z --replace resample --limit 8"));
  const std::string noise = "--site z --replace noise --noise-sigma 0.5 --limit 8";
  Json a = json(planted(noise)), b = json(planted(noise)), c = json("--seed 1 " + planted(noise));
  for (Json* result : {&a, &b, &c}) result->erase("seconds");
  EXPECT_EQ(a, b);
  EXPECT_NE(a["sites"], c["sites"]);
}

TEST_F(Patch, Traces) {
  write("pairs.jsonl",
        R"({"clean": "When Mary and Kate went to the store , Mary gave a ring to",)"
        R"( "corrupted": "When Mary and Kate went to the store , Kate gave a ring to",)"
        R"( "correct": ["Kate"], "wrong": ["Mary"], "subject": "Kate"})"
        "\n");
  const std::string verb = "-q patch planted/indirect_object --pairs pairs.jsonl --trace ";
  const Json result = json(verb + "--samples 4 --window 2");
  EXPECT_EQ(result["base"]["run"], "noised");
  EXPECT_EQ(result["settings"]["metric"], "prob");
  EXPECT_EQ(result["sites"].size(), 3U);
  EXPECT_GT(result["other"]["mean"], 0.9);  // the clean run's probability
  EXPECT_EQ(json(verb + "--metric logprob --site resid_post")["settings"]["metric"], "logprob");
  expect_error(planted("--trace"), 2, "has no subject; causal tracing needs one");
  expect_error(verb + "--direction noise", 2, "--trace has one direction");
  expect_error(verb + "--replace zero", 2, "--replace zero");
  expect_error(verb + "--knockout first:last", 2, "excludes");
}

TEST_F(Patch, KnocksAttentionOut) {
  // The last word no longer sees the first name (2) or its copy: layer 1 and 2 read them.
  const Json result = json(planted("--knockout 1-10:last --metric logit_diff --limit 8"));
  EXPECT_EQ(result["base"]["run"], "clean");
  EXPECT_FALSE(result.contains("other"));
  ASSERT_EQ(result["sites"][0]["effect"].size(), 3U);
  EXPECT_LT(result["sites"][0]["effect"][2], -1.0);
  EXPECT_EQ(
      json(planted("--knockout 1-10:last --window 3 --limit 8 --layers 1"))["sites"][0]["effect"]
          .size(),
      1U);
  expect_error(planted("--knockout last"), 2, "expected FROM:TO");
  expect_error(planted("--knockout 90:last"), 2, "position 90 of a prompt of");
  expect_error(planted("--knockout subject:last"), 2, "has no subject");
  expect_error(planted("--knockout 0:0"), 2, "nothing to attend to");
  expect_error(planted("--knockout 1:last --site z"), 2, "--site and --by");
}

TEST_F(Patch, PatchesPaths) {
  // The planted edge into the name mover: the inhibition head's, by way of its query.
  const Json result = json(planted("--receivers q:2.0 --limit 8"));
  EXPECT_EQ(result["base"]["run"], "clean");
  const Json& heads = result["sites"][0];
  EXPECT_EQ(heads["site"], "z");
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_NEAR(heads["score"][i].get<double>(), i == 4 ? 1.0 : 0.0, 0.01) << i;
  }
  EXPECT_EQ(result["sites"][1]["site"], "mlp_out");
  EXPECT_EQ(result["sites"][1]["dims"].size(), 1U);
  const Json direct = json(planted("--receivers logits --limit 8"));
  // Only the name mover writes to the logits.
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_NEAR(direct["sites"][0]["score"][i].get<double>(), i == 6 ? 1.0 : 0.0, 0.01) << i;
  }
  expect_error(planted("--receivers w:1.1"), 2, "expected q:LAYER.HEAD");
  expect_error(planted("--receivers q:7.1"), 2, "the model has layers 0 … 2");
  expect_error(planted("--receivers q:1.9"), 2, "query heads 0 … 2");
  expect_error(planted("--receivers q:1.1 --site attn_out"), 2, "senders are z and mlp_out");
  expect_error(planted("--receivers q:1.1,logits --through all"), 2, "hold the paths");
  expect_error(planted("--through all"), 2, "--receivers");
}

TEST_F(Patch, MistakesAreOneLine) {
  expect_error("patch planted/induction", 2, "--pairs");
  expect_error(planted("--site resid_pst"), 2, "nearest: resid_post, resid_pre");
  expect_error(planted("--site mlp_out --by head"), 2, "has no heads");
  expect_error(planted("--by heads"), 2, "--by: 'heads'");
  expect_error(planted("--layers 9"), 2, "--layers: '9' of '9', expected layers 0 … 2");
  expect_error(planted("--layers 2-1"), 2, "'2-1'");
  expect_error(planted("--site mlp_post --by neuron"), 2, "nearest");
  expect_error(planted("--site post --by neuron"), 2, "--by neuron needs --layers");
  expect_error(planted("--metric accuracy"), 2, "logit_diff, prob_diff, prob, logprob, nll, kl");
  expect_error(planted("--method magic"), 2, "'magic'");
  expect_error(planted("--memory lots"), 2, "--memory is 'lots'");
  expect_error(planted("--replace noise"), 2, "--noise-sigma");
  expect_error(planted("--window 3"), 2, "--window needs");
  expect_error(planted("--limit 1 --replace resample"), 2, "no other pair has the");
  expect_error(planted("--site pattern --replace mean"), 2, "one mean per position");
  expect_error(planted("-o no/such/folder.h5"), 1, "no/such");
  write("empty.jsonl", "");
  expect_error("patch planted/induction --pairs empty.jsonl", 1, "empty.jsonl");
  write("long.jsonl",
        R"({"clean": "a b", "corrupted": "a b c", "correct": ["a"], "wrong": ["b"]})");
  expect_error("patch planted/induction --pairs long.jsonl", 1, "long.jsonl");
}

}  // namespace
}  // namespace lamina::test
