// lamina probe, clue and infoplane, as typed; what they compute is tests/probes' affair.

#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class Probing : public Cli {
 protected:
  // 24 short prompts in two languages, with a number, a label per token and a question.
  void SetUp() override {
    const char* words[2][6] = {{"The", "keys", "to", "the", "cabinet", "man"},
                               {"Mary", "and", "John", "store", "war", "year"}};
    std::string lines;
    for (int i = 0; i < 24; ++i) {
      Json json = {{"id", "p" + std::to_string(i)}};
      std::string text;
      for (int w = 0; w < 2 + i % 3; ++w) {
        text += (w > 0 ? " " : "") + std::string(words[i % 2][(i / 2 + w) % 6]);
      }
      json["text"] = text;
      json["labels"] = {{"side", i % 2 == 0 ? "left" : "right"},
                        {"words", 2 + i % 3},
                        {"question", "q" + std::to_string(i / 4)},
                        {"right", i % 3 == 0},
                        {"answer", std::to_string(i % 5)}};
      lines += json.dump() + "\n";
    }
    write("p.jsonl", lines);
  }
  std::string run(const std::string& arguments) const { return lamina("-q " + arguments); }
};

TEST_F(Probing, LiveIsRecordedAtAnyNumberOfThreads) {
  run("record organism --prompts p.jsonl --generate 3 -o run.h5");
  run("record organism --prompts p.jsonl --generate 3 --shard 1/2 -o a.h5");
  run("record organism --prompts p.jsonl --generate 3 --shard 2/2 -o b.h5");
  const std::string live = " --model organism --prompts p.jsonl --generate 3 ";
  for (const std::string& verb :
       {std::string("probe --label side --folds 3 --resamples 20 --json"),
        std::string("clue --label right --group question --answer answer --json"),
        std::string("infoplane --label side --json")}) {
    const std::string recorded = run(verb + " run.h5");
    EXPECT_EQ(run("--threads 1 " + verb + " run.h5"), recorded) << verb;
    EXPECT_EQ(run(verb + live), recorded) << verb;
    EXPECT_EQ(run(verb + live + " --memory 13k"), recorded) << verb;  // one site at a time
    EXPECT_EQ(run(verb + " a.h5 b.h5"), recorded) << verb;
    EXPECT_EQ(Json::parse(recorded)["sites"].size(), 6u);
  }
}

TEST_F(Probing, TablesFilesAndProbesPutToUse) {
  run("record organism --prompts p.jsonl -o run.h5");
  const std::string table =
      run("probe run.h5 --label side --folds 3 -o probe.h5 --directions d.safetensors");
  for (const char* text : {"24 rows of 24 prompts", "left 12, right 12", "AUROC", "selectivity",
                           "blocks.5.hook_resid_post", "accuracy from 0.50 to 1"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << "\n" << table;
  }
  EXPECT_TRUE(std::filesystem::exists(folder() / "probe.h5"));
  const Json applied = Json::parse(run("probe run.h5 --label side --apply d.safetensors --json"));
  EXPECT_EQ(applied["rows"], 24);
  EXPECT_EQ(applied["sites"].size(), 6u);
  EXPECT_GE(applied["sites"][0]["accuracy"], 0.9);  // of the rows it was fitted to
  EXPECT_EQ(Json::parse(run("probe run.h5 --apply d.safetensors --json"))["labelled"], false);
  run("probe run.h5 --apply d.safetensors --label side --sites resid_post:2 -o applied.h5");

  const Json ridge = Json::parse(run(
      "probe run.h5 --label words --kind ridge --position mean --strength 0.1 --folds 2 --json"));
  EXPECT_EQ(ridge["sites"][0]["fold_strength"], (std::vector<double>{0.1, 0.1}));
  EXPECT_GT(ridge["sites"][0]["r2"]["value"], -1.0);
  EXPECT_NE(run("infoplane run.h5 --label side -o plane.h5").find("I(T;Y)"), std::string::npos);
  EXPECT_NE(run("clue run.h5 --label right --start 0 --end -1 --split 0.5 --keep c.safetensors "
                "-o clue.h5")
                .find("by one layer alone"),
            std::string::npos);
  const Json judged =
      Json::parse(run("clue run.h5 --label right --centroids c.safetensors --json"));
  EXPECT_EQ(judged["judged"], 24);

  expect_error("probe run.h5 --label side -o probe.h5", 1, "exists already");
  expect_error("probe run.h5 --apply c.safetensors", 1, "no probes: its format is 'lamina-clue'");
  expect_error("clue run.h5 --label right --centroids d.safetensors", 1, "no centroids");
}

TEST_F(Probing, MistakesAreOneLine) {
  run("record organism --prompts p.jsonl --sites resid_post -o run.h5");
  expect_error("probe", 2, "nothing to read");
  expect_error("probe run.h5 --model organism", 2, "read without a model");
  expect_error("probe run.h5 --label nope", 1,
               "no prompt has the label 'nope'; there are answer, question, right, side, words");
  expect_error("probe run.h5 --label side --sites attn_out", 1, "was not recorded");
  expect_error("probe run.h5 --label side --sites nowhere", 2, "nowhere");
  expect_error("probe run.h5 --label side --position middle", 2, "position 'middle'");
  expect_error("probe run.h5 --label side --folds 25", 1, "24 prompts (or groups)");
  expect_error("probe run.h5 --label side --kind ridge", 1, "needs a finite number");
  expect_error("probe run.h5 --label side --memory 100", 1, "--memory allows 100 bytes");
  expect_error("clue run.h5 --label right", 1, "has no generated tokens");
  expect_error("clue run.h5 --label side --start 0 --end -1", 1, "neither right nor wrong");
  expect_error("infoplane run.h5 --label side --input nothing", 2, "--input 'nothing'");
  write("one.jsonl",
        "{\"text\": \"The keys\", \"labels\": {\"side\": \"left\"}}\n"
        "{\"text\": \"Mary and\", \"labels\": {\"side\": \"left\"}}\n");
  expect_error("-q probe --model organism --prompts one.jsonl --label side", 1,
               "all 2 rows have the label 'left'");
}

}  // namespace
}  // namespace lamina::test
