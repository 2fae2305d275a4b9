#include "lamina/probes/tuned_lens.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "lamina/core/threads.h"
#include "lens/tuned_head.h"
#include "probes/support.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::expect_close;
using testing::golden;
using testing::GoldenModel;

// The same numbers in every run: no test depends on luck.
tuned::Matrix<double> random_rows(std::int64_t rows, std::int64_t columns, std::uint32_t seed) {
  std::mt19937 generator(seed);
  tuned::Matrix<double> out(rows, columns);
  for (Eigen::Index i = 0; i < out.size(); ++i) {
    out.data()[i] = static_cast<double>(generator()) / 4294967296.0 * 4 - 2;
  }
  return out;
}

tuned::Head<double> random_head(NormKind norm, double softcap) {
  tuned::Head<double> head;
  head.norm = norm;
  head.epsilon = 0.01;  // large enough for its part in the derivative to show
  head.softcap = softcap;
  head.gamma = random_rows(1, 7, 1);
  head.beta = norm == NormKind::layer ? random_rows(1, 7, 2) : tuned::Matrix<double>::Zero(1, 7);
  head.unembedding = random_rows(11, 7, 3);
  head.bias = random_rows(1, 11, 4);
  return head;
}

// Central differences, step 1e-5: their own error is about 1e-10 (third derivatives of order 1,
// and 1e-16/1e-5 from rounding).
TEST(TunedHead, SlopeIsTheDerivative) {
  for (NormKind norm : {NormKind::none, NormKind::rms, NormKind::layer}) {
    for (double softcap : {0.0, 3.0}) {
      const tuned::Head<double> head = random_head(norm, softcap);
      const tuned::Matrix<double> x = random_rows(4, 7, 5);
      tuned::HeadRows<double> work;
      tuned::evaluate(head, random_rows(4, 7, 6), work);
      tuned::log_softmax(work.logits);
      const tuned::Matrix<double> log_final = work.logits;
      tuned::Matrix<double> slope;
      const double sum = tuned::divergence_and_slope<double>(head, log_final, x, work, slope);
      const auto value = [&](const tuned::Matrix<double>& at) {
        tuned::evaluate(head, at, work);
        return tuned::divergence<double>(log_final, work.logits);
      };
      EXPECT_NEAR(sum, value(x), 1e-14 * sum);
      EXPECT_GT(slope.cwiseAbs().maxCoeff(), 0.1);
      for (Eigen::Index i = 0; i < x.size(); ++i) {
        tuned::Matrix<double> up = x, down = x;
        up.data()[i] += 1e-5;
        down.data()[i] -= 1e-5;
        EXPECT_NEAR(slope.data()[i], (value(up) - value(down)) / 2e-5, 2e-9)
            << "norm " << static_cast<int>(norm) << ", soft-cap " << softcap << ", value " << i;
      }
    }
  }
}

// The head taken from a model gives the model's logits: norm, its bias, soft-cap, output bias.
TEST(TunedHead, IsTheModelsOwn) {
  for (const testing::TinyConfig& tiny : testing::varied_configs()) {
    if (tiny.norm_place == "post") continue;
    const Model model = testing::tiny_model(tiny, 3);
    const Forward forward(model);
    const std::unique_ptr<Readout> readout = model_readout(forward);
    const auto head = tuned::make_head<double>(model.config(), *readout);
    const std::int64_t v = model.config().d_vocab;
    const tuned::Matrix<float> x = random_rows(5, model.config().d_model, 7).cast<float>();
    tuned::HeadRows<double> work;
    tuned::evaluate<double>(head, x.cast<double>(), work);
    std::vector<float> logits(static_cast<std::size_t>(5 * v));
    forward.logits({x.data(), static_cast<std::size_t>(x.size())}, logits);
    // 24 products of numbers up to about 4, rounded to float one after the other.
    const double size = work.logits.cwiseAbs().maxCoeff();
    for (std::int64_t i = 0; i < 5 * v; ++i) {
      ASSERT_NEAR(logits[i], work.logits.data()[i], 3e-6 * (1 + size)) << tiny.label;
    }
  }
}

ModelConfig capped(const GoldenModel& m) {
  ModelConfig config = m.config;
  config.final_softcap = 7.5;
  return config;
}

// Losses are of order 1 and made of float logits up to 7.5: errors of a few 7.5·2⁻²⁴ = 4.5e-7.
// Adam divides a gradient by its own size, so a map's error is the rate (1e-2) times the relative
// error of a gradient: about 1e-6 as a rule, up to 1e-3 for the few entries near zero.
TEST(TunedLens, FirstStepsAgreeWithTorch) {
  GoldenModel m;
  TunedLensTrainer trainer(capped(m), m.readout);
  trainer.observe(m.block(0, 2));
  ASSERT_EQ(trainer.tokens(), 9);
  const std::vector<std::vector<std::int64_t>> batches = {
      {0, 1, 2, 3}, {4, 5, 6, 7, 8}, {8, 0, 4}, {2, 2, 7, 1}};
  std::vector<float> loss;
  for (const auto& batch : batches) {
    for (double l : trainer.step(batch, 1e-2)) loss.push_back(static_cast<float>(l));
  }
  expect_close(loss, golden("loss", "tuned.safetensors"), 3e-6, "loss");
  std::vector<float> a, b;
  for (const LensTranslators::Map& map : trainer.translators().maps) {
    a.insert(a.end(), map.weight.begin(), map.weight.end());
    b.insert(b.end(), map.bias.begin(), map.bias.end());
  }
  expect_close(a, golden("a", "tuned.safetensors"), 1e-5, "A");
  expect_close(b, golden("b", "tuned.safetensors"), 1e-5, "b");
}

// What the trainer measures is what the lens then says.
TEST(TunedLens, MeasuresWhatTheLensReads) {
  GoldenModel m;
  TunedLensTrainer trainer(capped(m), m.readout);
  trainer.observe(m.block(0, 1));
  const std::unique_ptr<Probe> rest = trainer.fresh();
  rest->observe(m.block(1, 1));
  trainer.merge(*rest);
  const std::vector<std::int64_t> all = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  for (int i = 0; i < 5; ++i) trainer.step(all, 1e-2);
  const std::vector<double> measured = trainer.evaluate(all);

  LensOptions o;
  o.positions = LensPositions::all;
  o.translators = std::make_shared<const LensTranslators>(trainer.translators());
  LogitLens lens(m.config, m.readout, o);
  lens.observe(m.block(0, 2));
  const LensAverages a = average(lens.results());
  for (std::size_t s = 0; s < measured.size(); ++s) {
    EXPECT_NEAR(measured[s], a.kl_from_final[s], 2e-6) << s;
  }
}

// Every second prompt of every task of the organism: enough to learn, quick to run.
std::vector<Prompt> organism_prompts(const Tokenizer& tokenizer) {
  std::vector<Prompt> prompts;
  for (const char* task : {"capitals", "greater_than", "ioi", "sva", "translation"}) {
    std::ifstream file(std::filesystem::path(LAMINA_SOURCE_DIR) / "data/organism/pairs" /
                       (std::string(task) + ".jsonl"));
    std::string line;
    for (int i = 0; std::getline(file, line); ++i) {
      if (i % 2 != 0) continue;
      Prompt& p = prompts.emplace_back();
      p.id = task + std::to_string(i);
      p.ids = tokenizer.encode(nlohmann::json::parse(line)["clean"].get<std::string>());
      p.given = static_cast<std::int64_t>(p.ids.size());
    }
  }
  return prompts;
}

struct Organism {
  Model model = Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "data/organism");
  Forward forward{model};
  std::unique_ptr<Readout> readout = model_readout(forward);
  std::vector<Prompt> prompts = organism_prompts(*model.tokenizer());

  TunedLensTrainer train(const TunedLensOptions& options, std::int64_t batch_tokens = 1024) {
    TunedLensTrainer trainer(model.config(), *readout, options);
    Probe* const probes[] = {&trainer};
    LiveOptions live;
    live.batch_tokens = batch_tokens;
    run_probes(probes, forward, prompts, live);
    trainer.train();
    return trainer;
  }
};

TEST(TunedLens, HeldOutDivergenceFallsOnTheOrganism) {
  Organism o;
  ASSERT_EQ(o.prompts.size(), 100U);
  TunedLensOptions options;
  options.steps = 100;
  const TunedLensTrainer trainer = o.train(options);
  const TunedLensReport& r = trainer.report();
  EXPECT_EQ(r.prompts, 90);
  EXPECT_EQ(r.held_out_prompts, 10);
  ASSERT_EQ(r.plain.size(), 6U);
  EXPECT_EQ(r.loss.size(), 600U);
  for (std::size_t s = 1; s < 6; ++s) {  // leaving blocks 0 … 4
    EXPECT_LT(r.tuned[s], r.plain[s]) << lens_label(trainer.trained_sites()[s]);
  }
}

TEST(TunedLens, SameBitsWithAnyThreadsAndBatches) {
  Organism o;
  TunedLensOptions options;
  options.steps = 8;
  options.seed = 5;
  options.sites = {{SiteKind::resid_post, 3}, {SiteKind::resid_mid, 1}};
  const int before = threads();
  set_threads(1);
  const TunedLensTrainer one = o.train(options);
  set_threads(2);
  const TunedLensTrainer two = o.train(options, 50);
  set_threads(before);
  options.seed = 6;
  const TunedLensTrainer other = o.train(options);
  EXPECT_EQ(one.report().loss, two.report().loss);
  EXPECT_EQ(one.report().tuned, two.report().tuned);
  EXPECT_NE(one.report().loss, other.report().loss);
  for (std::size_t s = 0; s < 2; ++s) {
    EXPECT_EQ(one.translators().maps[s].weight, two.translators().maps[s].weight);
    EXPECT_EQ(one.translators().maps[s].bias, two.translators().maps[s].bias);
  }
}

TEST(TunedLens, RefusesWhatCannotBe) {
  GoldenModel m;
  const auto refused = [&](auto change, const char* text) {
    TunedLensOptions o;
    change(o);
    try {
      TunedLensTrainer(m.config, m.readout, o);
      FAIL() << "accepted: " << text;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  using Options = TunedLensOptions;
  refused([](Options& o) { o.steps = 0; }, "steps must be at least 1, got 0");
  refused([](Options& o) { o.batch = -1; }, "batch must be at least 1, got -1");
  refused([](Options& o) { o.learning_rate = 0; }, "learning rate must be positive, got 0");
  refused([](Options& o) { o.learning_rate = NAN; }, "learning rate must be positive, got nan");
  refused([](Options& o) { o.beta2 = 1; }, "β₂ must be at least 0 and below 1, got 1");
  refused([](Options& o) { o.held_out = 1; }, "held-out share");
  refused([](Options& o) { o.weight_decay = -1; }, "weight decay");
  refused([](Options& o) { o.sites = {{SiteKind::pattern, 0}}; }, "no vector of the residual");
  refused([](Options& o) { o.sites = {{SiteKind::resid_post, 2}}; }, "the model's own output");

  TunedLensTrainer one(m.config, m.readout);
  one.observe(m.block(0, 1));
  EXPECT_THROW(one.train(), Error);  // nothing would be left to train on

  TunedLensOptions small;
  small.row_bytes = 100;
  TunedLensTrainer full(m.config, m.readout, small);
  EXPECT_THROW(full.observe(m.block(0, 2)), Error);

  ActivationBlock block = m.block(0, 2);
  block.sites[ActivationBlock::site_key({SiteKind::resid_post, 1})].values.assign(9 * 16, NAN);
  TunedLensTrainer broken(m.config, m.readout);
  broken.observe(block);
  const std::int64_t token[] = {0};
  try {
    broken.step(token, 1e-3);
    FAIL() << "trained on NaN";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("loss at blocks.1.hook_resid_post is nan at step 1"),
              std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace lamina
