// The verbs as a user types them, at one thread and at two; the answers must be the same.

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Verbs : public Cli, public ::testing::WithParamInterface<int> {
 protected:
  std::string run(const std::string& arguments) const {
    return lamina("-q --threads " + std::to_string(GetParam()) + " " + arguments);
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, Verbs, ::testing::Values(1, 2));

TEST_P(Verbs, InfoDescribesAModel) {
  const Json json = Json::parse(run("info organism --json"));
  EXPECT_EQ(json["kind"], "model");
  EXPECT_EQ(json["n_layers"], 6);
  EXPECT_EQ(json["d_model"], 128);
  EXPECT_EQ(json["parameters"], 1503104);
  EXPECT_EQ(json["tokenizer"]["vocab_size"], 1449);
  EXPECT_EQ(json["sites"].size(), 129U);
  EXPECT_EQ(json["element_types"]["f16"]["tensors"], 57);
  const std::string text = run("info planted/induction");
  EXPECT_NE(text.find("2 layers"), std::string::npos);
  EXPECT_NE(text.find("blocks.*.attn.hook_pattern"), std::string::npos);
}

TEST_P(Verbs, TokenizeAndBack) {
  EXPECT_EQ(run("tokenize planted/induction --text 'a b c a' --ids"), "0 2 3 4 2\n");
  EXPECT_EQ(run("tokenize planted/induction --text 'a b c a' --ids --bos never"), "2 3 4 2\n");
  EXPECT_EQ(run("tokenize planted/induction --decode 2,3 4"), "a b c\n");
  const Json json = Json::parse(run("tokenize planted/induction --text 'a b' --json"));
  EXPECT_EQ(json["ids"], Json({0, 2, 3}));
  EXPECT_EQ(json["pieces"][1], "a");
}

TEST_P(Verbs, GenerateRepeatsAPatternThroughThePlantedHead) {
  EXPECT_EQ(run("generate planted/induction --text 'e c f d g e c f' --max-new 1"),
            "e c f d g e c f d\n");
  const Json json =
      Json::parse(run("generate planted/induction --text 'e c f d g e c f' --max-new 1 --json"));
  EXPECT_EQ(json["given"], 9);
  EXPECT_EQ(json["ids"].size(), 10U);
  EXPECT_EQ(json["continuation"], " d");
}

TEST_P(Verbs, SamplingFollowsTheSeed) {
  const std::string verb =
      "generate organism --text 'The keys' --max-new 8 --temperature 1.5 --json --seed ";
  const std::string first = run(verb + "1");
  EXPECT_EQ(run(verb + "1"), first);
  EXPECT_NE(run(verb + "2"), first);
}

TEST_P(Verbs, RecordVerifyDiff) {
  run(std::string("record organism --prompts ") + kPrompts + " --sites '*' -o run.h5");
  const Json info = Json::parse(run("info run.h5 --json --prompts"));
  EXPECT_EQ(info["prompts"], 44);
  EXPECT_EQ(info["tokens"], 1154);
  EXPECT_EQ(info["sites"].size(), 129U);
  EXPECT_EQ(info["prompt_list"][0]["id"], "ioi-example");
  EXPECT_NE(info["argv"].get<std::string>().find("record organism"), std::string::npos);

  const Json report = Json::parse(run("verify run.h5 --model organism --json"));
  EXPECT_TRUE(report["passed"]);
  std::size_t checked = 0;
  for (const Json& check : report["checks"]) {
    EXPECT_EQ(check["failures"], 0) << check;
    checked += check["compared"].get<std::int64_t>() > 0;
  }
  EXPECT_EQ(checked, 11U);

  // The other number of threads, other batches: the same bits.
  lamina("-q --threads " + std::to_string(3 - GetParam()) + " record organism --prompts " +
         kPrompts + " --sites '*' -o other.h5 --batch-tokens 100");
  EXPECT_EQ(run("diff run.h5 other.h5"), "equal\n");

  run(std::string("record organism --prompts ") + kPrompts + " --sites '*' --dtype f16 -o half.h5");
  const Outcome different = shell("lamina -q diff run.h5 half.h5");
  EXPECT_EQ(different.code, 1);
  EXPECT_NE(different.out.find("different"), std::string::npos);
  const Json json = Json::parse(shell("lamina -q diff run.h5 half.h5 --json --tolerance 1e-3").out);
  for (const Json& site : json["sites"]) EXPECT_LT(site["relative"], 1e-3) << site;
  EXPECT_TRUE(Json::parse(run("verify half.h5 --model organism --json"))["passed"]);
}

// Every kind of block: what a recording says of itself is enough to check it, without the model
// too.
TEST_P(Verbs, EveryFamilyIsRecordedAndVerified) {
  std::ofstream(folder() / "ids.jsonl") << "{\"ids\": [1, 2, 3, 4, 5, 6, 7]}\n{\"ids\": [5]}\n";
  int models = 0;
  const std::filesystem::path goldens = LAMINA_SOURCE_DIR "/tests/goldens";
  for (const auto& entry : std::filesystem::directory_iterator(goldens)) {
    if (!std::filesystem::exists(entry.path() / "golden.safetensors")) continue;
    const auto gguf = entry.path() / "model.gguf";
    const std::string model =
        "'" + (std::filesystem::exists(gguf) ? gguf : entry.path()).string() + "'";
    SCOPED_TRACE(model);
    lamina("record " + model + " --prompts ids.jsonl --sites '*' --force -o family.h5");
    lamina("verify family.h5");
    lamina("verify family.h5 --model " + model);
    ++models;
  }
  EXPECT_GE(models, 28);
}

TEST_P(Verbs, VerifyRefusesAnotherModel) {
  run("record planted/induction --text 'a b' -o run.h5");
  expect_error("-q verify run.h5 --model organism", 1, "'organism' has");
}

TEST_P(Verbs, ShardsMergeToTheWholeRun) {
  const std::string verb = std::string("record organism --prompts ") + kPrompts +
                           " --sites resid_post,z:1-3,pattern:-1 --generate 3 --temperature 0.8 ";
  run(verb + "-o whole.h5");
  for (const char* part : {"1", "2", "3"}) {
    run(verb + "--shard " + part + "/3 -o part" + part + ".h5");
  }
  run("merge part1.h5 part2.h5 part3.h5 -o merged.h5");
  EXPECT_EQ(run("diff whole.h5 merged.h5"), "equal\n");
  run("merge part1.h5 part2.h5 part3.h5 -o copied.h5 --copy");
  std::filesystem::remove(folder() / "part2.h5");
  EXPECT_EQ(run("diff whole.h5 copied.h5"), "equal\n");
  EXPECT_EQ(shell("lamina info merged.h5").code, 1);  // its shard is gone
  EXPECT_NE(shell("lamina info merged.h5").err.find("part2.h5"), std::string::npos);
  EXPECT_EQ(shell("lamina merge part1.h5 part3.h5 -o gap.h5").code, 1);
}

TEST_P(Verbs, DryRunWritesNothing) {
  const std::string plan =
      run(std::string("record organism --prompts ") + kPrompts + " --sites resid_post --dry-run");
  EXPECT_NE(plan.find("blocks.5.hook_resid_post"), std::string::npos);
  EXPECT_NE(plan.find("1,154"), std::string::npos);
  EXPECT_NE(plan.find("memory"), std::string::npos);
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder())) {
    files += entry.path().filename().string().front() != '.';
  }
  EXPECT_EQ(files, 0U);
}

TEST_P(Verbs, LensIsTheSameLiveAndRecorded) {
  run(std::string("record organism --prompts ") + kPrompts + " -o run.h5");
  const std::string live =
      run(std::string("lens --model organism --prompts ") + kPrompts + " --json");
  EXPECT_EQ(run("lens run.h5 --json"), live);
  EXPECT_EQ(run("lens run.h5 --model organism --json -o lens.h5"), live);
  EXPECT_TRUE(std::filesystem::exists(folder() / "lens.h5"));
  const Json json = Json::parse(live);
  EXPECT_EQ(json["tokens"], 44);
  EXPECT_EQ(json["layers"].size(), 7U);
  EXPECT_EQ(json["layers"][6]["agreement"], 1.0);
  EXPECT_EQ(json["layers"][6]["accuracy"], 1.0);  // the file's targets are what the model answers
  EXPECT_EQ(json["reads"][0]["layers"][6]["top_token"], "Mary");
  const std::string table = run("lens run.h5 --show 1");
  EXPECT_NE(table.find("prompt 'ioi-example', token 14 \"to\", target \"Mary\""),
            std::string::npos);
}

TEST_P(Verbs, LensOverShardsIsTheLensOverTheRun) {
  const std::string verb = std::string("record organism --prompts ") + kPrompts + " ";
  run(verb + "-o whole.h5");
  run(verb + "--shard 1/2 -o a.h5");
  run(verb + "--shard 2/2 -o b.h5");
  EXPECT_EQ(run("lens a.h5 b.h5 --json"), run("lens whole.h5 --json"));
}

TEST_P(Verbs, LensNamesTheSiteThatIsMissing) {
  run("record organism --text the --sites resid_post:2 -o run.h5");
  expect_error("-q lens run.h5", 1, "blocks.0.hook_resid_pre, which was not recorded");
}

TEST_P(Verbs, TuneTrainsWhatLensReads) {
  run(std::string("record organism --prompts ") + kPrompts + " -o run.h5");
  const std::string options = " --steps 40 --batch 32 --seed 3 -o ";
  const Json recorded = Json::parse(run("tune run.h5 --json" + options + "recorded.safetensors"));
  Json live = Json::parse(run(std::string("tune --model organism --prompts ") + kPrompts +
                              " --json" + options + "live.safetensors"));
  live["seconds"] = recorded["seconds"];
  EXPECT_EQ(recorded, live);
  EXPECT_EQ(recorded["prompts"], 40);
  EXPECT_EQ(recorded["held_out_prompts"], 4);
  EXPECT_EQ(recorded["layers"].size(), 6U);

  // Over all prompts, most of them trained on, the tuned lens is nearer to the output.
  const Json plain = Json::parse(run("lens run.h5 --positions all --json"));
  const Json tuned =
      Json::parse(run("lens run.h5 --positions all --json --translators recorded.safetensors"));
  for (std::size_t layer = 0; layer < 6; ++layer) {
    EXPECT_LT(tuned["layers"][layer]["kl_from_final"], plain["layers"][layer]["kl_from_final"]);
  }
  EXPECT_NE(read_file(folder() / "recorded.safetensors").find("lamina-translators"),
            std::string::npos);
  const std::string table = run("tune run.h5 --steps 1 --sites resid_post:2 -o t.safetensors");
  EXPECT_NE(table.find("held-out prompts"), std::string::npos);
}

TEST_P(Verbs, LatentIsTheSameLiveAndRecorded) {
  const std::string task = " --spaced --from fr --to de --seed 3 --json";
  const std::string live = run("latent --model organism" + task);
  const Json json = Json::parse(live);
  EXPECT_GT(json["items"], 50);
  // Translations are right at the end, and not in the embedding.
  EXPECT_GT(json["layers"].back()["probability"]["de"], 0.9);
  EXPECT_LT(json["layers"].front()["probability"]["de"], 0.1);
  run("latent --model organism" + task + " --save-prompts prompts.jsonl");
  run("record organism --prompts prompts.jsonl -o run.h5");
  EXPECT_EQ(run("latent run.h5" + task), live);
  expect_error("-q latent run.h5 --whole-words", 2, "--whole-words");
}

TEST_P(Verbs, LatentWarnsOfUnknownWords) {
  const Outcome glued = shell("lamina latent --model organism");
  EXPECT_EQ(glued.code, 0);
  EXPECT_NE(glued.err.find("112 of 112 prompts hold words that the tokenizer does not know; if it "
                           "splits at blanks only, use --spaced"),
            std::string::npos)
      << glued.err;
  // Spaced, only the examples with words outside its vocabulary are left, and no advice.
  const Outcome spaced = shell("lamina latent --model organism --spaced");
  EXPECT_NE(spaced.err.find("65 of 112 prompts hold words that the tokenizer does not know\n"),
            std::string::npos)
      << spaced.err;
}

TEST_P(Verbs, DemoRunsFromAnywhere) {
  const std::string out = run("demo -o here");
  for (const char* file : {"here/run.h5", "here/lens.h5", "here/latent.h5", "here/survey.h5",
                           "here/keys.json", "here/circuit.h5"}) {
    EXPECT_TRUE(std::filesystem::exists(folder() / file)) << file;
  }
  EXPECT_NE(out.find("\"Mary\" 98.3%"), std::string::npos);
  EXPECT_EQ(out.find("FAILED"), std::string::npos);
  // The graph is exact where it must be, and the change turns the answer.
  EXPECT_NE(out.find("direct: correlation of predicted and measured 1.0000"), std::string::npos);
  EXPECT_NE(out.find("likeliest next token: \"are\" 53.1%, direct \"are\""), std::string::npos);
  EXPECT_NE(out.find("free \"is\" 56"), std::string::npos) << out.substr(out.size() / 2);
  EXPECT_EQ(std::filesystem::exists(folder() / "here/keys.svg"), shell("command -v dot").code == 0);
  run("demo -o here");  // and again
}

TEST_P(Verbs, DataFolderFollowsTheEnvironment) {
  const Outcome outcome = shell("LAMINA_DATA=/no/such; export LAMINA_DATA; lamina info organism");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("LAMINA_DATA is /no/such"), std::string::npos);
  std::filesystem::create_directories(folder() / "own");
  std::filesystem::create_directory_symlink(LAMINA_SOURCE_DIR "/data/planted/majority",
                                            folder() / "own/mine");
  EXPECT_EQ(shell("LAMINA_DATA=own; export LAMINA_DATA; lamina info mine").code, 0);
}

TEST_P(Verbs, InfoReadsResultsFiles) {
  run("void --model organism --text \"the cat\" -o void.h5");
  const std::string text = lamina("info void.h5");
  for (const char* part : {"model_id      organism", "/analyses/void", "rule", "model_usage",
                           "alpha 6, phase 2, layer 6", "token"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  const Json json = Json::parse(lamina("info void.h5 --json"));
  EXPECT_EQ(json["kind"], "results");
  const auto& usage = json["analyses"]["void"]["datasets"]["usage"];
  EXPECT_EQ(usage["type"], "float64");
  EXPECT_EQ(usage["dimensions"][2]["name"], "layer");
  EXPECT_EQ(usage["dimensions"][2]["size"], 6);
  EXPECT_FALSE(usage["description"].get<std::string>().empty());
  EXPECT_TRUE(json["analyses"]["void"]["datasets"]["alpha"]["axis"]);
  // Cut off: HDF5 says so, in one line.
  const std::string bytes = read_file(folder() / "void.h5");
  std::ofstream(folder() / "cut.h5", std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  expect_error("info cut.h5", 1, "cut.h5");
}

TEST_P(Verbs, SurveySaysWhatItKnowsAndWhatNot) {
  const std::string prompts = std::string(" --prompts ") + kPrompts;
  const std::string json = run("survey organism" + prompts + " --json");
  EXPECT_EQ(json, lamina("-q --threads 1 survey organism" + prompts + " --json"));
  const Json parsed = Json::parse(json);
  EXPECT_EQ(parsed["tokens"], 1154);
  ASSERT_EQ(parsed["layers"].size(), 6U);
  EXPECT_EQ(parsed["heads"].size(), 24U);
  EXPECT_EQ(parsed["layers"][5]["agreement"], 1.0);
  EXPECT_GT(parsed["layers"][5]["norm"], parsed["layers"][0]["norm"]);
  EXPECT_TRUE(parsed["left_out"].empty());
  // Too little text for an estimate is said, not shown as an error of 0.
  const std::string few = run("survey organism --text the --gradient-tokens 0");
  EXPECT_NE(few.find("not measured; standard error unknown: 0 rows"), std::string::npos) << few;
  EXPECT_EQ(few.find("inflection  "), std::string::npos) << few;
  // Longer prompts are cut, and every piece is read.
  EXPECT_NE(
      run("survey organism" + prompts + " --piece 16 --gradient-tokens 0").find("the longest 16"),
      std::string::npos);
  expect_error("-q survey organism", 2, "prompts are missing");
  expect_error("-q survey organism --text the --minibatch 2", 2, "--minibatch");
}

}  // namespace
}  // namespace lamina::test
