#include <gtest/gtest.h>

#include <algorithm>

#include "lamina/core/error.h"
#include "lamina/core/run.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::random_prompts;
using testing::tiny_model;

std::vector<Prompt> prompts_of(const std::vector<std::vector<std::int32_t>>& ids) {
  std::vector<Prompt> prompts;
  for (const auto& one : ids) {
    Prompt& prompt = prompts.emplace_back();
    prompt.id = std::to_string(prompts.size() - 1);
    prompt.ids = one;
    prompt.given = static_cast<std::int64_t>(one.size());
  }
  return prompts;
}

TEST(Generate, GreedyEqualsRepeatedWholeRuns) {
  const Model model = tiny_model({});
  Forward forward(model);
  std::vector<Prompt> prompts = prompts_of(random_prompts({5, 1, 17}, 61, 3));
  generate(forward, prompts, {.max_new_tokens = 12});
  for (const Prompt& prompt : prompts) {
    ASSERT_EQ(prompt.ids.size(), static_cast<std::size_t>(prompt.given) + 12);
    for (auto n = static_cast<std::size_t>(prompt.given); n < prompt.ids.size(); ++n) {
      Batch batch;
      batch.add(std::span(prompt.ids).first(n));
      forward.run(batch);
      std::vector<float> logits(61);
      const std::int64_t last = static_cast<std::int64_t>(n) - 1;
      forward.run_logits(std::span(&last, 1), logits);
      EXPECT_EQ(prompt.ids[n], std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
  }
}

TEST(Generate, SamplesDependOnSeedAndPromptAlone) {
  const Model model = tiny_model({});
  Forward forward(model);
  const auto ids = random_prompts({5, 5, 5, 9}, 61, 3);
  const GenerateOptions options{.max_new_tokens = 20, .temperature = 1.3, .top_p = 0.9, .seed = 7};
  std::vector<Prompt> together = prompts_of(ids), apart = prompts_of(ids), other = prompts_of(ids);
  generate(forward, together, options);
  GenerateOptions one_by_one = options;
  one_by_one.batch_prompts = 1;
  generate(forward, apart, one_by_one);
  GenerateOptions other_seed = options;
  other_seed.seed = 8;
  generate(forward, other, other_seed);
  int differ = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(together[i].ids, apart[i].ids);
    differ += together[i].ids != other[i].ids;
  }
  EXPECT_EQ(differ, 4);
}

TEST(Generate, TopPKeepsOnlyTheNucleus) {
  const Model model = tiny_model({});
  Forward forward(model);
  std::vector<Prompt> greedy = prompts_of(random_prompts({6}, 61, 3)), narrow = greedy;
  generate(forward, greedy, {.max_new_tokens = 10});
  generate(forward, narrow, {.max_new_tokens = 10, .temperature = 1.0, .top_p = 1e-9, .seed = 1});
  EXPECT_EQ(greedy[0].ids, narrow[0].ids);
}

TEST(Generate, RefusesBadSettings) {
  const Model model = tiny_model({});
  Forward forward(model);
  std::vector<Prompt> prompts = prompts_of(random_prompts({6}, 61, 3));
  EXPECT_THROW(generate(forward, prompts, {.max_new_tokens = -1}), UsageError);
  EXPECT_THROW(generate(forward, prompts, {.max_new_tokens = 1, .temperature = -1}), UsageError);
  EXPECT_THROW(generate(forward, prompts, {.max_new_tokens = 1, .top_p = 0}), UsageError);
}

}  // namespace
}  // namespace lamina
