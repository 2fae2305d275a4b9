// The run around the steps: shuffling, checkpoints, independence of blocks and threads, dead
// features, refusals.

#include <fstream>

#include "lamina/core/error.h"
#include "lamina/core/run.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"
#include "training/training_support.h"

namespace lamina::test {
namespace {

using ::lamina::testing::random_prompts;
using ::lamina::testing::TempDir;
using ::lamina::testing::tiny_model;

std::vector<Prompt> prompts_of(const std::vector<std::int64_t>& lengths) {
  std::vector<Prompt> prompts;
  for (std::vector<std::int32_t>& ids : random_prompts(lengths, 61, 3)) {
    Prompt p;
    p.given = static_cast<std::int64_t>(ids.size());
    p.ids = std::move(ids);
    prompts.push_back(std::move(p));
  }
  return prompts;
}

TranscoderConfig mlp_config(std::int32_t layer, FeatureActivation activation) {
  TranscoderConfig c;
  c.name = "layer" + std::to_string(layer);
  c.input = {{SiteKind::ln2_normalized, layer}, true};
  c.output = {{SiteKind::mlp_out, layer}, false};
  c.d_in = c.d_out = 24;
  c.features = 96;
  c.activation = activation;
  if (activation == FeatureActivation::topk || activation == FeatureActivation::batch_topk) {
    c.k = 6;
  }
  return c;
}

class Run : public ::testing::Test {
 protected:
  Run() : model_(tiny_model({})), prompts_(prompts_of({9, 30, 1, 17, 23, 40, 5, 12, 31, 8, 26})) {
    options_.batch = 16;
    options_.buffer_rows = 48;
    options_.steps = 60;
    options_.learning_rate = 2e-3;
    options_.lambda = 0.01;
    options_.dead = DeadFeatures::auxk;
    options_.auxk = 8;
    options_.dead_window = 5;
    options_.seed = 11;
  }
  std::vector<TranscoderConfig> configs() const {
    TranscoderConfig sae = mlp_config(2, FeatureActivation::batch_topk);
    sae.name = "resid";
    sae.input = sae.output = {{SiteKind::resid_post, 1}, false};
    return {mlp_config(0, FeatureActivation::relu), mlp_config(1, FeatureActivation::topk), sae};
  }
  // The values of everything trained, as one array.
  static std::vector<float> weights(const TrainingRun& run) {
    std::vector<float> all;
    for (const Transcoder& t : run.transcoders()) {
      for (const auto* part :
           {&t.encoder, &t.encoder_bias, &t.decoder, &t.decoder_bias, &t.threshold, &t.skip}) {
        all.insert(all.end(), part->begin(), part->end());
      }
    }
    return all;
  }
  std::vector<float> trained(std::int64_t batch_tokens, std::int64_t epochs = 0) {
    Forward forward(model_);
    TrainingRun run(model_, configs(), options_);
    LiveOptions live;
    live.batch_tokens = batch_tokens;
    for (std::int64_t epoch = 0; epochs == 0 ? !run.done() : epoch < epochs; ++epoch) {
      run_live(forward, prompts_, run.sites(), live,
               [&](const ActivationBlock& block) { run.observe(block); });
    }
    if (epochs > 0) run.flush();
    EXPECT_EQ(run.steps(), options_.steps);
    return weights(run);
  }

  Model model_;
  std::vector<Prompt> prompts_;
  TrainingOptions options_;
};

TEST_F(Run, BlocksAndThreadsDoNotMatter) {
  set_threads(1);
  const std::vector<float> one = trained(1);
  set_threads(2);
  EXPECT_EQ(one, trained(37));
  EXPECT_EQ(one, trained(4096));
  options_.seed = 12;
  EXPECT_NE(one, trained(37));
}

TEST_F(Run, OneDictionaryIsTrainedAsAmongSeveral) {
  // The first one's seed does not depend on how many follow.
  Forward forward(model_);
  TrainingRun alone(model_, {configs()[0]}, options_), together(model_, configs(), options_);
  train_live(alone, forward, prompts_);
  train_live(together, forward, prompts_);
  EXPECT_EQ(alone.transcoders()[0].encoder, together.transcoders()[0].encoder);
}

TEST_F(Run, AnEpochTrainsOnEveryRowOnce) {
  const std::int64_t rows = training_rows(prompts_, 0);
  EXPECT_EQ(rows, 202);
  options_.steps = rows * 2 / options_.batch;
  const std::vector<float> by_hand = trained(64, 2);
  Forward forward(model_);
  TrainingRun run(model_, configs(), options_);
  train_live(run, forward, prompts_, 2);
  EXPECT_EQ(run.steps(), options_.steps);
  EXPECT_EQ(run.position(), rows * 2);
  EXPECT_EQ(weights(run), by_hand);
}

TEST_F(Run, EveryCheckpointContinuesToTheSameEnd) {
  const TempDir folder;
  const auto file = folder.path() / "checkpoint.safetensors";
  for (std::int64_t epochs : {0, 3}) {
    if (epochs > 0) options_.steps = training_rows(prompts_, 0) * epochs / options_.batch;
    options_.dead = epochs > 0 ? DeadFeatures::resample : DeadFeatures::auxk;
    Forward forward(model_);
    TrainingRun whole(model_, configs(), options_);
    train_live(whole, forward, prompts_, epochs);
    const std::map<std::string, std::string> identity = {{"model", "tiny"}};
    for (std::int64_t stop = 1; stop < options_.steps; stop += 7) {
      SCOPED_TRACE(::testing::Message() << stop << " steps, " << epochs << " epochs");
      {  // stopped by an exception after `stop` steps
        struct Stop {};
        TrainingRun first(model_, configs(), options_);
        first.checkpoint(file, 1, identity);
        first.on_step([&](std::int64_t step, std::span<const TrainingStep>) {
          if (step > stop) throw Stop{};
        });
        EXPECT_THROW(train_live(first, forward, prompts_, epochs), Stop);
      }
      TrainingRun second(model_, configs(), options_);
      second.checkpoint(file, 0, identity);
      second.resume(file);
      EXPECT_EQ(second.steps(), stop);
      train_live(second, forward, prompts_, epochs);
      EXPECT_EQ(weights(second), weights(whole));
      EXPECT_EQ(second.position(), whole.position());
      EXPECT_EQ(second.last()[0].loss, whole.last()[0].loss);
    }
  }
}

TEST_F(Run, ACheckpointOfAnotherRunIsRefused) {
  const TempDir folder;
  const auto file = folder.path() / "checkpoint.safetensors";
  Forward forward(model_);
  {
    TrainingRun run(model_, configs(), options_);
    run.checkpoint(file, 10, {{"features", "96"}});
    train_live(run, forward, prompts_);
  }
  const auto expect = [&](std::vector<TranscoderConfig> with, const std::string& features,
                          const std::string& text) {
    TrainingRun run(model_, std::move(with), options_);
    run.checkpoint(file, 0, {{"features", features}});
    try {
      run.resume(file);
      ADD_FAILURE() << "accepted; expected: " << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  expect(configs(), "128", "the interrupted run has features 96, this one 128");
  std::vector<TranscoderConfig> wider = configs();
  wider[0].features = 97;
  expect(wider, "96", "tensor '0.W_enc' has 2304 values, expected 2328");
  // Cut short at any length: refused, never a crash.
  std::string bytes;
  {
    std::ifstream in(file, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (std::size_t keep : {std::size_t{0}, std::size_t{7}, std::size_t{200}, bytes.size() - 4}) {
    std::ofstream(file, std::ios::binary) << bytes.substr(0, keep);
    TrainingRun run(model_, configs(), options_);
    EXPECT_THROW(run.resume(file), Error) << keep;
  }
}

TEST_F(Run, ImpossibleRequestsAreRefused) {
  const auto refused = [&](auto change) {
    TrainingOptions o = options_;
    std::vector<TranscoderConfig> c = configs();
    change(o, c);
    EXPECT_THROW(TrainingRun(model_, c, o), UsageError);
  };
  refused([](auto& o, auto&) { o.batch = 0; });
  refused([](auto& o, auto&) { o.buffer_rows = 31; });
  refused([](auto& o, auto&) { o.learning_rate = 0; });
  refused([](auto& o, auto&) { o.beta1 = 1; });
  refused([](auto& o, auto&) { o.penalty = SparsityPenalty::l0; });
  refused([](auto& o, auto&) { o.lambda = std::nan(""); });
  refused([](auto&, auto& c) { c[1].k = 97; });
  refused([](auto&, auto& c) { c[0].d_in = 25; });
  refused([](auto&, auto& c) { c[0].input.site = {SiteKind::pattern, 0}; });
  refused([](auto&, auto& c) { c.clear(); });
}

TEST_F(Run, AHugeLearningRateEndsWithAnError) {
  options_.learning_rate = 1e30;
  Forward forward(model_);
  TrainingRun run(model_, configs(), options_);
  EXPECT_THROW(train_live(run, forward, prompts_), Error);
}

// A dictionary whose features mostly never fire gets them back.
TEST(Training, ResamplingRevives) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(64 * 24), y(64 * 24);
  for (float& v : x) v = normal(random);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::max(x[i], 0.0F);
  TrainingOptions options;
  options.batch = 64;
  options.steps = 200;
  options.dead_window = 20;
  options.lambda = 1e-4;
  options.learning_rate = 3e-3;
  Transcoder initial =
      TranscoderTrainer(mlp_config(0, FeatureActivation::relu), options).transcoder();
  for (std::size_t j = 8; j < 96; ++j) initial.encoder_bias[j] = -100;
  for (DeadFeatures dead : {DeadFeatures::none, DeadFeatures::resample}) {
    options.dead = dead;
    TranscoderTrainer trainer(initial, options);
    TrainingStep last;
    for (int s = 0; s < 100; ++s) last = trainer.step(x, y);
    if (dead == DeadFeatures::none) {
      EXPECT_NEAR(last.dead, 88.0 / 96, 1e-6);
    } else {
      EXPECT_LT(last.dead, 0.2);
      EXPECT_GT(last.explained_variance, 0.3);
    }
  }
}

// Decoder rows keep their norm; what is exported computes what was trained.
TEST(Training, TheExportedDictionaryIsTheTrainedOne) {
  const TrainingGoldens golden;
  for (const TrainingVariant& v : training_variants()) {
    SCOPED_TRACE(v.name);
    const TrainingCase data(golden, v);
    TranscoderTrainer trainer(data.initial, v.options);
    trainer.center(data.batch_x(0), data.batch_y(0));
    for (int s = 0; s < 5; ++s) trainer.step(data.batch_x(s), data.batch_y(s));
    const Transcoder exported = trainer.transcoder();
    exported.check();
    if (v.options.unit_decoder) {
      for (std::int64_t f = 0; f < kFeatures; ++f) {
        double square = 0;
        for (std::int64_t i = 0; i < kOut; ++i) {
          square += std::pow(exported.decoder[static_cast<std::size_t>(f * kOut + i)], 2);
        }
        EXPECT_NEAR(square, 1, 1e-5);
      }
    }
    if (v.config.activation == FeatureActivation::batch_topk) continue;  // a batch's selection
    const auto x = data.batch_x(5), y = data.batch_y(5);
    const SparseRows z = exported.encode(x);
    std::vector<float> rebuilt(y.size());
    exported.decode(z, x, rebuilt);
    double error = 0;
    for (std::size_t i = 0; i < y.size(); ++i) error += std::pow(rebuilt[i] - y[i], 2) / kRows;
    const TrainingStep step = trainer.step(x, y);
    EXPECT_NEAR(step.l0 * kRows, static_cast<double>(z.feature.size()), 1e-9);
    if (v.options.loss == TrainingLoss::text) {
      EXPECT_NEAR(step.error, error, 1e-4 * error);
    }
  }
}

}  // namespace
}  // namespace lamina::test
