// The survey is its analyses run alone; how well text is predicted is checked against the logits.

#include "lamina/probes/survey.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/results_info.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::TempDir;
const std::filesystem::path kData = std::filesystem::path(LAMINA_SOURCE_DIR) / "data";

std::vector<Prompt> prompts_of(const Model& model, std::int64_t piece = 0) {
  auto prompts =
      read_prompts(kData / "organism/prompts.jsonl", model.tokenizer(), model.config().d_vocab);
  if (piece > 0) prompts = cut_prompts(std::move(prompts), piece, model.tokenizer()->bos_id());
  return prompts;
}

SurveyOptions small() {
  SurveyOptions options;
  options.exit_every = 8;
  options.coding_every = 2;
  options.minibatch = 32;
  return options;
}

// Equal, NaN being equal to NaN.
void expect_same(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    EXPECT_EQ(a[i], b[i]) << i;
  }
}

void expect_same(const Survey& a, const Survey& b) {
  EXPECT_EQ(a.text->results().loss, b.text->results().loss);
  EXPECT_EQ(a.text->results().entropy, b.text->results().entropy);
  EXPECT_EQ(a.voids->results(), b.voids->results());
  EXPECT_EQ(a.attention->results(), b.attention->results());
  EXPECT_EQ(a.massive->results(), b.massive->results());
  EXPECT_EQ(a.contributions->results(), b.contributions->results());
  EXPECT_EQ(a.growth->results(), b.growth->results());
  expect_same(a.angular->results().distance, b.angular->results().distance);
  EXPECT_EQ(a.sparsity->results(), b.sparsity->results());
  EXPECT_EQ(a.coding_rate->results().rate, b.coding_rate->results().rate);
  EXPECT_EQ(a.exits->results(), b.exits->results());
  expect_same(a.cka->results().debiased, b.cka->results().debiased);
}

class SurveyTest : public ::testing::Test {
 protected:
  Model model_ = Model::load(kData / "organism");
  Forward forward_{model_};
};

TEST_F(SurveyTest, IsItsAnalysesAlone) {
  const std::vector<Prompt> prompts = prompts_of(model_);
  const SurveyOptions options = small();
  Survey survey(forward_, options);
  EXPECT_TRUE(survey.left_out().empty());
  survey.run(prompts);

  const ModelConfig& config = model_.config();
  const TokenChoice tokens{options.skip, 1};
  const auto alone = [&](Probe& probe) {
    Probe* const probes[] = {&probe};
    run_probes(probes, forward_, prompts);
  };
  VoidOptions void_options;
  void_options.keep_tokens = false;
  VoidProbe voids(config, void_options);
  alone(voids);
  EXPECT_EQ(survey.voids->results(), voids.results());
  AttentionOptions attention_options;
  attention_options.source = live_attention_source(config);
  AttentionProbe attention(config, attention_options);
  alone(attention);
  EXPECT_EQ(survey.attention->results(), attention.results());
  MassiveProbe massive(config);
  alone(massive);
  EXPECT_EQ(survey.massive->results(), massive.results());
  ContributionProbe contributions(config, tokens);
  alone(contributions);
  EXPECT_EQ(survey.contributions->results(), contributions.results());
  SparsityProbe sparsity(config);
  alone(sparsity);
  EXPECT_EQ(survey.sparsity->results(), sparsity.results());
  CkaOptions cka_options;
  cka_options.mode = CkaMode::minibatch;
  cka_options.measures = {.linear = false, .debiased = true};
  cka_options.minibatch = options.minibatch;
  cka_options.skip = options.skip;
  CkaProbe cka(config, cka_options);
  alone(cka);
  expect_same(survey.cka->results().debiased, cka.results().debiased);
}

TEST_F(SurveyTest, DependsNeitherOnThreadsNorOnPackingNorOnParts) {
  const std::vector<Prompt> prompts = prompts_of(model_, 16);
  Survey whole(forward_, small());
  const int before = threads();
  set_threads(1);
  LiveOptions all;
  all.batch_tokens = 4096;
  whole.run(prompts, all);
  Survey parts(forward_, small());
  set_threads(2);
  LiveOptions few;
  few.batch_tokens = 40;
  parts.run(prompts, few);
  set_threads(before);
  expect_same(whole, parts);
}

TEST_F(SurveyTest, LeavesOutWhatHasNoPlace) {
  const Model attention_only = Model::load(kData / "planted/induction");
  Forward forward(attention_only);
  Survey survey(forward, small());
  EXPECT_EQ(survey.sparsity, nullptr);
  EXPECT_NE(survey.voids, nullptr);
  auto prompts = testing::random_prompts({12, 20}, attention_only.config().d_vocab, 3);
  std::vector<Prompt> given(2);
  for (std::size_t i = 0; i < 2; ++i) {
    given[i].id = std::to_string(i);
    given[i].ids = prompts[i];
    given[i].given = static_cast<std::int64_t>(prompts[i].size());
  }
  survey.run(given);
  EXPECT_EQ(survey.text->results().tokens, 32);
  EXPECT_EQ(survey.text->results().predicted, 30);

  const Model encoder =
      Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/goldens/bert");
  Forward encoder_forward(encoder);
  Survey other(encoder_forward, small());
  EXPECT_EQ(other.text, nullptr);
  EXPECT_EQ(other.voids, nullptr);
  EXPECT_NE(other.attention, nullptr);
  bool named = false;
  for (const std::string& why : other.left_out()) named = named || why.starts_with("void: ");
  EXPECT_TRUE(named);
  EXPECT_THROW(Survey(forward, SurveyOptions{.minibatch = 2}), UsageError);
}

TEST_F(SurveyTest, WritesAGroupEach) {
  TempDir folder;
  Survey survey(forward_, small());
  survey.run(prompts_of(model_));
  ResultFile file(folder.path() / "survey.h5", {});
  survey.write(file);
  file.close();
  std::vector<std::string> names;
  for (const ResultAnalysis& analysis : read_results_info(folder.path() / "survey.h5").analyses) {
    EXPECT_FALSE(analysis.datasets.empty()) << analysis.name;
    names.push_back(analysis.name);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{
                "cka", "depth_angular", "depth_coding_rate", "depth_contributions", "depth_exit",
                "depth_growth", "depth_sparsity", "entropy", "massive", "next_token", "void"}));
}

TEST_F(SurveyTest, NextTokenStatisticsAreThoseOfTheLogits) {
  std::vector<Prompt> prompts = prompts_of(model_);
  prompts.resize(5);
  NextTokenProbe probe;
  Probe* const probes[] = {&probe};
  LiveOptions options;
  options.topk = 1;
  run_probes(probes, forward_, prompts, options);

  const auto vocab = static_cast<std::size_t>(model_.config().d_vocab);
  double loss = 0, right = 0, z_sum = 0, z_squares = 0, entropy = 0, tokens = 0, predicted = 0;
  for (const Prompt& prompt : prompts) {
    Batch batch;
    batch.add(prompt.ids);
    forward_.run(batch);
    std::vector<float> logits(vocab);
    for (std::size_t t = 0; t < prompt.ids.size(); ++t) {
      const auto row = static_cast<std::int64_t>(t);
      forward_.run_logits({&row, 1}, logits);
      double sum = 0, mean = 0;
      for (float v : logits) sum += std::exp(double{v});
      for (float v : logits) mean += std::exp(double{v}) * v / sum;
      const double z = std::log(sum);
      ++tokens;
      z_sum += z;
      z_squares += z * z;
      entropy += z - mean;
      const bool last = t + 1 == prompt.ids.size();
      if (last && !prompt.target) continue;
      const auto next = static_cast<std::size_t>(last ? *prompt.target : prompt.ids[t + 1]);
      ++predicted;
      loss += z - logits[next];
      right += std::max_element(logits.begin(), logits.end()) - logits.begin() ==
                       static_cast<std::int64_t>(next)
                   ? 1
                   : 0;
    }
  }
  const NextTokenResults r = probe.results();
  EXPECT_EQ(r.tokens, tokens);
  EXPECT_EQ(r.predicted, predicted);
  EXPECT_NEAR(r.loss, loss / predicted, 1e-5);
  EXPECT_DOUBLE_EQ(r.accuracy, right / predicted);
  EXPECT_NEAR(r.log_z, z_sum / tokens, 1e-5);
  EXPECT_NEAR(r.log_z_deviation, std::sqrt(z_squares / tokens - z_sum * z_sum / tokens / tokens),
              1e-4);
  EXPECT_NEAR(r.entropy, entropy / tokens, 1e-5);

  // Without logits there is nothing to read, and one that saw nothing has no numbers.
  EXPECT_THROW(run_probes(probes, forward_, prompts), Error);
  EXPECT_TRUE(std::isnan(NextTokenProbe().results().loss));
  EXPECT_TRUE(std::isnan(NextTokenProbe().results().log_z_deviation));
}

TEST(CutPrompts, PiecesHoldEveryTokenOnce) {
  Prompt prompt;
  prompt.id = "a";
  prompt.text = "text";
  prompt.ids = {1, 10, 11, 12, 13, 14, 15, 16};
  prompt.given = 8;
  prompt.target = 99;
  prompt.labels["language"] = "en";
  Prompt brief;
  brief.id = "b";
  brief.ids = {1, 2};
  brief.given = 2;
  const auto pieces = cut_prompts({prompt, brief}, 4, 1);
  ASSERT_EQ(pieces.size(), 4U);
  EXPECT_EQ(pieces[0].ids, (std::vector<std::int32_t>{1, 10, 11, 12}));
  EXPECT_EQ(pieces[1].ids, (std::vector<std::int32_t>{1, 13, 14, 15}));
  EXPECT_EQ(pieces[2].ids, (std::vector<std::int32_t>{1, 16}));
  EXPECT_EQ(pieces[2].id, "a#3");
  EXPECT_EQ(pieces[2].given, 2);
  EXPECT_EQ(pieces[1].labels.at("language"), "en");
  EXPECT_FALSE(pieces[1].target);
  EXPECT_EQ(pieces[2].target, 99);
  EXPECT_EQ(pieces[3].id, "b");
  // Without BOS in front, none is put there.
  const auto plain = cut_prompts({prompt}, 5, std::nullopt);
  ASSERT_EQ(plain.size(), 2U);
  EXPECT_EQ(plain[1].ids, (std::vector<std::int32_t>{14, 15, 16}));
  EXPECT_THROW(cut_prompts({prompt}, 1, std::nullopt), UsageError);
}

}  // namespace
}  // namespace lamina
