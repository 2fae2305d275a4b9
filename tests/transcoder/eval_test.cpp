// Evaluation against numbers of transformers and torch (make_eval_goldens.py).

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/circuits/transcoder_eval.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;
const fs::path kEval = fs::path(LAMINA_SOURCE_DIR) / "tests/transcoder/eval";
const char* const kNames[] = {"mlp1", "resid0", "skip2"};

// The golden GPT-2 with its dictionaries and prompts.
struct Spliced {
  Model model = Model::load(fs::path(LAMINA_SOURCE_DIR) / "tests/goldens/gpt2");
  Forward forward{model};
  std::vector<Prompt> prompts = read_prompts(kEval / "prompts.jsonl", nullptr, 96);
  std::vector<Transcoder> dictionaries;
  std::vector<const Transcoder*> pointers;
  std::vector<TranscoderConfig> configs;
  TranscoderEvalOptions options;
  nlohmann::json expected;

  Spliced() {
    for (const char* name : kNames) {
      TranscoderSet set = TranscoderSet::open(kEval / name);
      set.bind(model);
      dictionaries.push_back(set.load(0));
      configs.push_back(set.config(0));
    }
    for (const Transcoder& t : dictionaries) pointers.push_back(&t);
    options.skip = 1;
    options.dense = 0.5;
    options.examples = 3;
    expected = nlohmann::json::parse(std::ifstream(kEval / "expected.json"));
  }

  template <class Run>
  TranscoderEval evaluate(const Run& run) {
    OutputMeans means(configs, options.skip);
    run(static_cast<Probe&>(means));
    TranscoderEval eval(pointers, &model, nullptr, means.means(), options);
    run(static_cast<Probe&>(eval));
    return eval;
  }
  TranscoderEval live(std::int64_t batch_tokens = 1024) {
    return evaluate([&](Probe& probe) {
      Probe* const probes[] = {&probe};
      LiveOptions o;
      o.batch_tokens = batch_tokens;
      run_probes(probes, forward, prompts, o);
    });
  }
};

TEST(TranscoderEval, FindsWhatTorchFinds) {
  Spliced s;
  const TranscoderEval eval = s.live();
  EXPECT_EQ(eval.tokens(), s.expected["tokens"].get<std::int64_t>());
  for (std::size_t i = 0; i < 3; ++i) {
    SCOPED_TRACE(kNames[i]);
    const nlohmann::json& e = s.expected["dictionaries"][kNames[i]];
    const ReconstructionSums& sums = eval.sums(i);
    const auto near = [&](double got, const char* key) {
      EXPECT_NEAR(got, e[key].get<double>(), 2e-6) << key;  // fp32 activations of order 1
    };
    near(sums.l0(), "l0");
    near(sums.explained_variance(), "explained_variance");
    near(sums.explained_variance_rows(), "explained_variance_per_token");
    near(sums.mse(24), "mse");
    near(sums.normalized_mse(), "normalized_mse");
    near(sums.mean_cosine(), "cosine");
    near(sums.mean_norm_ratio(), "norm_ratio");
    EXPECT_EQ(eval.dead(i), e["dead"].get<std::int64_t>());
    EXPECT_EQ(eval.dense(i), e["dense"].get<std::int64_t>());
    const FeatureStats& f = eval.features(i);
    ASSERT_EQ(f.features(), static_cast<std::int64_t>(e["count"].size()));
    for (std::int64_t j = 0; j < f.features(); ++j) {
      ASSERT_EQ(f.count(j), e["count"][j].get<std::int64_t>()) << j;
      EXPECT_NEAR(f.max(j), e["max"][j].get<double>(), 1e-5) << j;
      if (f.count(j) > 0) {
        EXPECT_NEAR(f.mean(j), e["mean"][j].get<double>(), 1e-5) << j;
      } else {
        EXPECT_TRUE(std::isnan(f.mean(j)));
      }
      ASSERT_EQ(f.top(j).size(), e["top"][j].size()) << j;
      for (std::size_t n = 0; n < f.top(j).size(); ++n) {
        // The golden counts tokens without each prompt's first.
        const std::int64_t token = f.top(j)[n].token;
        const std::int64_t counted = token - eval.seen().prompt(token) - 1;
        EXPECT_EQ(counted, e["top"][j][n][0].get<std::int64_t>()) << j << " " << n;
        EXPECT_NEAR(f.top(j)[n].value, e["top"][j][n][1].get<double>(), 1e-5);
      }
    }
  }
}

TEST(TranscoderEval, SplicesAsTransformersDoes) {
  Spliced s;
  SpliceOptions options;
  options.skip = 1;
  std::vector<SpliceLoss> before;
  for (std::int64_t batch : {1024L, 1L}) {
    options.batch_tokens = batch;
    const std::vector<SpliceLoss> losses = splice_losses(s.forward, s.prompts, s.pointers, options);
    ASSERT_EQ(losses.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
      const nlohmann::json& e = s.expected["dictionaries"][kNames[i]]["ce"];
      EXPECT_EQ(losses[i].tokens, s.expected["loss_tokens"].get<std::int64_t>());
      // Logits reach 60 in fp32; a mean of 105 differences of them.
      EXPECT_NEAR(losses[i].original, e["original"].get<double>(), 2e-5);
      EXPECT_NEAR(losses[i].spliced, e["spliced"].get<double>(), 2e-5) << kNames[i];
      EXPECT_NEAR(losses[i].zero, e["zero"].get<double>(), 2e-5) << kNames[i];
      const double score = (e["zero"].get<double>() - e["spliced"].get<double>()) /
                           (e["zero"].get<double>() - e["original"].get<double>());
      EXPECT_NEAR(losses[i].score(), score, 1e-4);
      if (!before.empty()) {
        EXPECT_DOUBLE_EQ(losses[i].spliced, before[i].spliced);
      }
    }
    before = losses;
  }
  const SpliceLoss all = splice_together(s.forward, s.prompts, s.pointers, options);
  EXPECT_NEAR(all.spliced, s.expected["together"]["spliced"].get<double>(), 2e-5);
  EXPECT_NEAR(all.zero, s.expected["together"]["zero"].get<double>(), 2e-5);
}

// A dictionary that rebuilds exactly loses nothing: the identity, as features x and −x.
TEST(TranscoderEval, APerfectDictionaryScoresOne) {
  Spliced s;
  Transcoder t;
  t.config.name = "identity";
  t.config.input = t.config.output = {{SiteKind::resid_post, 1}, false};
  t.config.d_in = t.config.d_out = 24;
  t.config.features = 48;
  t.encoder.resize(48 * 24);
  t.encoder_bias.resize(48);
  t.decoder_bias.resize(24);
  for (std::int64_t i = 0; i < 24; ++i) {
    t.encoder[i * 24 + i] = 1;
    t.encoder[(24 + i) * 24 + i] = -1;
  }
  t.decoder = t.encoder;
  t.check();
  const Transcoder* const one[] = {&t};
  const SpliceLoss loss = splice_losses(s.forward, s.prompts, one)[0];
  EXPECT_EQ(loss.spliced, loss.original);
  EXPECT_EQ(loss.score(), 1.0);
  EXPECT_NE(loss.zero, loss.original);
  s.pointers = {&t};
  s.configs = {t.config};
  const TranscoderEval eval = s.live();
  EXPECT_EQ(eval.sums(0).explained_variance(), 1.0);
  EXPECT_EQ(eval.sums(0).explained_variance_rows(), 1.0);
  EXPECT_EQ(eval.sums(0).error, 0.0);
  EXPECT_EQ(eval.sums(0).l0(), 24.0);
  // Spliced over a dictionary's own output there is nothing left to rebuild twice.
  const Transcoder* const twice[] = {&t, &t};
  EXPECT_THROW(splice_together(s.forward, s.prompts, twice), UsageError);
}

TEST(TranscoderEval, LiveRecordedShardedAndBatchesAgree) {
  Spliced s;
  const TranscoderEval live = s.live(), small = s.live(1);
  const std::vector<Site> sites = live.sites(s.model.config());
  TempDir folder;
  std::vector<fs::path> parts;
  for (const auto& [first, last] : {std::pair{0, 2}, {2, 6}}) {
    RecordingHeader header;
    header.config = s.model.config();
    header.sites = sites;
    header.total_prompts = last - first;
    const std::vector<Prompt> part(s.prompts.begin() + first, s.prompts.begin() + last);
    parts.push_back(folder.path() / fmt::format("{}.h5", first));
    RecordingWriter writer(parts.back(), header, part);
    run_live(s.forward, part, sites, {},
             [&](const ActivationBlock& block) { writer.append(block); });
    writer.finish();
  }
  const TranscoderEval recorded = s.evaluate([&](Probe& probe) {
    for (const fs::path& path : parts) {
      const std::unique_ptr<Probe> part = probe.fresh();
      Probe* const probes[] = {part.get()};
      run_probes(probes, Recording::open(path));
      probe.merge(*part);
    }
  });
  const int before = threads();
  set_threads(1);
  const TranscoderEval single = s.live();
  set_threads(before);
  for (const TranscoderEval* other : {&small, &recorded, &single}) {
    for (std::size_t i = 0; i < 3; ++i) {
      const ReconstructionSums &a = live.sums(i), &b = other->sums(i);
      EXPECT_EQ(a.active, b.active);
      // Shards add their sums at the end: another order of double additions.
      EXPECT_NEAR(a.error, b.error, 1e-12 * a.error);
      EXPECT_NEAR(a.variance, b.variance, 1e-12 * a.variance);
      const FeatureStats &f = live.features(i), &g = other->features(i);
      for (std::int64_t j = 0; j < f.features(); ++j) {
        ASSERT_EQ(f.count(j), g.count(j));
        ASSERT_EQ(f.top(j).size(), g.top(j).size());
        for (std::size_t n = 0; n < f.top(j).size(); ++n) {
          EXPECT_EQ(f.top(j)[n].token, g.top(j)[n].token);
          EXPECT_EQ(f.top(j)[n].value, g.top(j)[n].value);
        }
      }
    }
  }
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(live.sums(i).error, single.sums(i).error);
}

TEST(TranscoderEval, ExamplesAreKeptInOrder) {
  FeatureStats stats(2, 2, true);
  SparseRows rows;
  const auto add = [&](float value) {
    rows.feature.push_back(1);
    rows.value.push_back(value);
    rows.offsets.push_back(static_cast<std::int64_t>(rows.feature.size()));
  };
  for (float v : {1.0F, 3.0F, 2.0F, 3.0F}) add(v);
  const std::int64_t tokens[] = {4, 5, 6, 7};
  stats.add(rows, tokens);
  ASSERT_EQ(stats.top(1).size(), 2U);
  EXPECT_EQ(stats.top(1)[0].token, 5);
  EXPECT_EQ(stats.top(1)[1].token, 7);
  EXPECT_EQ(stats.top(0).size(), 0U);
  FeatureStats more(2, 2, true);
  more.add(rows, tokens);
  stats.merge(more, 100);
  EXPECT_EQ(stats.top(1)[1].token, 7);
  EXPECT_EQ(stats.count(1), 8);
  EXPECT_EQ(stats.at_most(0), 1);
  EXPECT_EQ(stats.above(0.99), 1);
}

TEST(TranscoderEval, RefusesWhatCannotBeMeasured) {
  Spliced s;
  using testing::error_of;
  using testing::expect_message;
  s.options.skip = 100;
  expect_message(error_of([&] { s.live(); }), "every prompt has at most 100 tokens");
  SpliceOptions splice;
  splice.skip = 50;
  expect_message(error_of([&] { splice_losses(s.forward, s.prompts, s.pointers, splice); }),
                 "no token to predict: 6 prompts, none with a token after the first 51");
  s.options.skip = 0;
  s.options.dense = 0;
  expect_message(error_of([&] { s.live(); }), "frequency of dense features");
  s.options.dense = 0.5;
  expect_message(error_of([&] {
                   TranscoderEval(
                       s.pointers, nullptr, nullptr,
                       {std::vector<double>(24), std::vector<double>(24), std::vector<double>(24)},
                       s.options);
                 }),
                 "for which the model is needed");
}

}  // namespace
}  // namespace lamina
