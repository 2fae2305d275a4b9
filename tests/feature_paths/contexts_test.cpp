// The strongest places of features, against the prompts' own activations.

#include "lamina/circuits/feature_contexts.h"

#include <algorithm>

#include "circuits/random_transcoders.h"
#include "gtest/gtest.h"
#include "lamina/core/error.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

TEST(FeatureContexts, AreTheStrongestPlaces) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 4);
  const std::vector<Transcoder> t = testing::random_transcoders(model.config(), {}, 3);
  Forward forward(model);
  std::vector<Prompt> prompts;
  for (const auto& ids : testing::random_prompts({9, 4, 12, 7}, config.d_vocab, 5)) {
    Prompt prompt;
    prompt.id = fmt::format("p{}", prompts.size());
    prompt.ids = ids;
    prompt.given = std::ssize(ids);
    prompts.push_back(prompt);
  }
  // Every activation of two features that fire often, prompt by prompt.
  struct Known {
    std::int64_t prompt, position;
    float value;
  };
  const auto often = [&](std::size_t layer) {
    const std::vector<float>& b = t[layer].encoder_bias;
    return std::max_element(b.begin(), b.end()) - b.begin();
  };
  const Hop names[] = {{false, 2, often(2)}, {false, 0, often(0)}};
  std::vector<Known> known[2];
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    for (std::size_t f = 0; f < 2; ++f) {
      const Transcoder& d = t[static_cast<std::size_t>(names[f].layer)];
      Batch batch;
      batch.add(prompts[p].ids);
      std::vector<float> x;
      Hooks hooks;
      hooks.read(d.config.input.site,
                 [&](SiteView& v) { x.assign(v.values.begin(), v.values.end()); });
      forward.run(batch, hooks);
      apply_place(model, d.config.input, x);
      std::vector<float> u(prompts[p].ids.size() * 64);
      d.pre_activations(x, u);
      for (std::size_t i = 1; i < prompts[p].ids.size(); ++i) {
        const float value = u[i * 64 + static_cast<std::size_t>(names[f].index)];
        if (value > 0)
          known[f].push_back({static_cast<std::int64_t>(p), static_cast<std::int64_t>(i), value});
      }
    }
  }
  FeatureContexts found({&t[2], &t[0]}, {{0, names[0]}, {1, names[1]}}, &model, 1);
  Probe* const probes[] = {&found};
  LiveOptions live;
  live.batch_tokens = 14;  // several blocks
  run_probes(probes, forward, prompts, live);
  EXPECT_EQ(found.tokens(), 28);
  for (std::size_t f = 0; f < 2; ++f) {
    ASSERT_GE(known[f].size(), 6U);
    EXPECT_EQ(found.count(f), std::ssize(known[f]));
    std::stable_sort(known[f].begin(), known[f].end(),
                     [](const Known& a, const Known& b) { return a.value > b.value; });
    const auto all = found.top(f, 100, true);
    ASSERT_EQ(all.size(), known[f].size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(found.seen().prompt(all[i].token), known[f][i].prompt);
      EXPECT_EQ(found.seen().position(all[i].token), known[f][i].position);
      EXPECT_EQ(all[i].value, known[f][i].value);
      EXPECT_EQ(found.at(f, all[i].token), all[i].value);
    }
    EXPECT_EQ(found.top(f, 3, true).size(), 3U);
    const auto one_each = found.top(f, 100, false);
    std::vector<std::int64_t> seen;
    for (const auto& p : one_each) seen.push_back(found.seen().prompt(p.token));
    std::sort(seen.begin(), seen.end());
    EXPECT_TRUE(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
    EXPECT_EQ(one_each[0].token, all[0].token);
  }
  // Two halves, merged, are the whole.
  const auto first = found.fresh(), second = found.fresh();
  Probe *const a[] = {first.get()}, *const b[] = {second.get()};
  run_probes(a, forward, std::span(prompts).first(2), live);
  run_probes(b, forward, std::span(prompts).subspan(2), live);
  first->merge(*second);
  const auto& merged = dynamic_cast<FeatureContexts&>(*first);
  for (std::size_t f = 0; f < 2; ++f) {
    const auto expected = found.top(f, 100, true), got = merged.top(f, 100, true);
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].token, expected[i].token);
      EXPECT_EQ(got[i].value, expected[i].value);
    }
  }
  EXPECT_THROW(FeatureContexts({&t[2]}, {{0, {false, 2, 64}}}, &model, 0), UsageError);
  EXPECT_THROW(FeatureContexts({&t[2]}, {{0, names[0]}}, nullptr, 0), UsageError);
}

}  // namespace
}  // namespace lamina
