// `lamina transcoder train` as a user types it.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/command.h"

namespace lamina::test {
namespace {

namespace fs = std::filesystem;

const std::string kSizes =
    "--layers 1,3 --features 96 --batch 32 --buffer 256 --lr 2e-3 --dead-window 8 ";
const std::string kSmall = kSizes + "--dead auxk --auxk 16 ";

class TrainCli : public Cli {
 protected:
  TrainCli() {
    std::ofstream file(folder() / "prompts.txt");
    for (int i = 0; i < 60; ++i) {
      file << "The war lasted from the year 17 " << 10 + i << " to 17\n"
           << "When Mary and John went to the store , John gave a drink to\n";
    }
  }
  std::string weights(const std::string& run, int layer) const {
    return read_file(folder() / run / ("layer_" + std::to_string(layer)) /
                     "sae_weights.safetensors");
  }
  void expect_same(const std::string& a, const std::string& b) const {
    for (int layer : {1, 3}) {
      EXPECT_FALSE(weights(a, layer).empty());
      EXPECT_EQ(weights(a, layer), weights(b, layer)) << a << " " << b << " layer " << layer;
    }
  }
};

TEST_F(TrainCli, LiveRecordedAndThreadsGiveTheSame) {
  lamina("-q record organism --prompts prompts.txt --sites ln2_normalized,mlp_out -o run.h5");
  lamina(
      "-q record organism --prompts prompts.txt --sites ln2_normalized,mlp_out --batch-tokens 40 "
      "--shard-size 512k -o parts.h5");
  const std::string common = kSmall + "--steps 40 --activation topk --k 8 ";
  lamina("-q --threads 1 transcoder train run.h5 -o a " + common);
  lamina("-q --threads 2 transcoder train run.h5 -o b " + common);
  lamina("-q --threads 2 transcoder train parts.h5 -o c " + common);
  lamina("-q --threads 2 transcoder train --model organism --prompts prompts.txt -o d " + common);
  expect_same("a", "b");
  expect_same("a", "c");
  expect_same("a", "d");
  lamina("-q --seed 1 transcoder train run.h5 -o e " + common);
  EXPECT_NE(weights("a", 1), weights("e", 1));
}

TEST_F(TrainCli, EveryVariantTrains) {
  for (const std::string& variant :
       {std::string("--activation relu --loss text --lambda 0.01 --lambda-warmup 20"),
        std::string("--activation relu --loss code --lambda 1e-4 --dead resample"),
        std::string("--activation batch_topk --k 8 --loss code"),
        std::string("--activation jump_relu --lambda 0.01 --threshold 0.1"),
        std::string("--activation jump_relu --penalty tanh --lambda 0.01"),
        std::string("--kind skip --activation topk --k 8"),
        std::string("--kind sae --activation topk --k 8 --from resid_mid"),
        std::string("--kind sae --loss code --warmup 10 --decay 10 --skip-first 1 --epochs 2")}) {
    SCOPED_TRACE(variant);
    const bool epochs = variant.find("--epochs") != std::string::npos;
    const auto json = nlohmann::json::parse(
        lamina("-q transcoder train --model organism --prompts prompts.txt --force -o out --json " +
               (variant.find("--dead") != std::string::npos ? kSizes : kSmall) + variant +
               (epochs ? "" : " --steps 60")));
    ASSERT_EQ(json["dictionaries"].size(), 2U);
    for (const auto& d : json["dictionaries"]) {
      EXPECT_GT(d["explained_variance"].get<double>(), 0.3) << d;
      EXPECT_GT(d["l0"].get<double>(), 0.5) << d;
    }
    EXPECT_TRUE(fs::exists(folder() / "out/layer_3/cfg.json"));
    EXPECT_FALSE(fs::exists(folder() / "out/checkpoint.safetensors"));
  }
}

// Killed at any moment, --resume ends at the same bits.
TEST_F(TrainCli, KillsLoseNothing) {
  const std::string words = "transcoder train --model organism --prompts prompts.txt " + kSmall +
                            "--steps 160 --activation batch_topk --k 8 --checkpoint-every 5 ";
  const auto begin = std::chrono::steady_clock::now();
  lamina("-q " + words + "-o whole");
  const double whole =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  int killed = 0;
  for (int i = 0; i < 6; ++i) {
    fs::remove_all(folder() / "out");
    const double seconds = whole * (0.3 + 0.1 * i);
    // timeout -s KILL: as kill -9 at that moment.
    shell("timeout -s KILL " + std::to_string(seconds) + " '" LAMINA_CLI "' -q " + words +
          "-o out");
    if (fs::exists(folder() / "out/checkpoint.safetensors")) {
      ++killed;
      lamina("-q " + words + "-o out --resume");
    } else if (!fs::exists(folder() / "out/curves.h5")) {
      continue;  // killed before the first checkpoint
    }
    expect_same("whole", "out");
    EXPECT_FALSE(fs::exists(folder() / "out/checkpoint.safetensors"));
  }
  EXPECT_GE(killed, 2);
}

TEST_F(TrainCli, MistakesAreOneLine) {
  const std::string live = "-q transcoder train --model organism --prompts prompts.txt -o out ";
  lamina("-q record organism --prompts prompts.txt --sites resid_post -o other.h5");
  expect_error("-q transcoder train other.h5 -o out --steps 5 --batch 8", 1,
               "other.h5: the recording does not hold blocks.0.ln2.hook_normalized");
  expect_error(live + "--steps 5 --layers 6", 2, "layer 6, the model has 6");
  expect_error(live + "--steps 5 --layers 2-", 2, "--layers is '2-'");
  expect_error(live + "--steps 5 --from resid_pos", 2, "resid_pos");
  expect_error(live + "--steps 5 --from resid_mid·w", 2, "norm");
  expect_error(live + "--steps 5 --from pattern", 2, "pair of tokens");
  expect_error(live + "--steps 5 --kind sae --to mlp_out", 2, "differ");
  expect_error(live + "--steps 5 --k 3", 2, "--k is of topk");
  expect_error(live + "--steps 5 --activation topk --k 97 --features 96", 2, "got 97");
  expect_error(live + "--steps 5 --penalty l0", 2, "thresholds of jump_relu");
  expect_error(live + "--steps 5 --batch 30000", 2, "two batches of 30000");
  expect_error(live + "--steps 5 --lr 0", 2, "learning rate must be positive");
  expect_error(live + "--steps 5 --epochs 5", 2, "both given");
  expect_error(live, 1, "less than one batch of 4096");
  expect_error(live + "--layers 1 --features 96 --batch 32 --buffer 256 --steps 50 --lr 1e30", 1,
               "the loss is");
  expect_error(live + "--resume --steps 5", 1, "no interrupted run");
  expect_error("-q transcoder train other.h5 --prompts prompts.txt -o out", 2, "both given");
  expect_error("-q transcoder train missing.h5 -o out", 1, "missing.h5");
  expect_error("-q transcoder", 2, "");
  // A checkpoint of other settings, and one that is no checkpoint.
  // Killed after the first checkpoint, however slow the machine; it must not outlive its killer, or
  // it would write the next one.
  for (const int seconds : {2, 5, 15, 60}) {
    shell("timeout -s KILL " + std::to_string(seconds) +
          " '" LAMINA_CLI
          "' -q transcoder train --model organism --prompts prompts.txt "
          "-o cut --force --steps 1000000 --checkpoint-every 5 " +
          kSmall);
    if (fs::exists(folder() / "cut/checkpoint.safetensors")) break;
  }
  ASSERT_TRUE(fs::exists(folder() / "cut/checkpoint.safetensors"));
  const std::string cut =
      "-q transcoder train --model organism --prompts prompts.txt -o cut --resume ";
  expect_error(cut + kSmall + "--steps 1000000 --lambda 0.5", 1, "has lambda 0.001, this one 0.5");
  write("cut/checkpoint.safetensors", "not a checkpoint");
  expect_error(cut + kSmall + "--steps 1000000", 1, "checkpoint.safetensors");
  expect_error("-q transcoder train --model organism --prompts prompts.txt -o cut " + kSmall, 1,
               "--resume continues");
}

}  // namespace
}  // namespace lamina::test
