#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "lamina/core/error.h"
#include "lamina/core/forward.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::random_prompts;
using testing::tiny_model;
using testing::TinyConfig;

Batch small_batch(std::int64_t d_vocab) {
  Batch batch;
  for (const auto& prompt : random_prompts({3, 12, 1}, d_vocab, 9)) batch.add(prompt);
  return batch;
}

std::vector<float> logits_of(Forward& forward, const Batch& batch, const Hooks& hooks = {}) {
  forward.run(batch, hooks);
  std::vector<std::int64_t> rows;
  for (std::int64_t r = 0; r < batch.tokens(); ++r) rows.push_back(r);
  std::vector<float> logits(rows.size() *
                            static_cast<std::size_t>(forward.model().config().d_vocab));
  forward.run_logits(rows, logits);
  return logits;
}

class HookTest : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model_ = tiny_model(GetParam());
  Forward forward_{model_};
  Batch batch_ = small_batch(GetParam().d_vocab);
};

TEST_P(HookTest, WritingTheSameValueChangesNoBit) {
  const std::vector<float> clean = logits_of(forward_, batch_);
  for (Site site : all_sites(model_.config())) {
    Hooks hooks;
    int fired = 0;
    hooks.write(site, [&](SiteView& view) {
      const std::vector<float> copy(view.values.begin(), view.values.end());
      std::copy(copy.begin(), copy.end(), view.values.begin());
      ++fired;
    });
    const std::vector<float> hooked = logits_of(forward_, batch_, hooks);
    EXPECT_GT(fired, 0) << site_name(site) << " never fired";
    EXPECT_EQ(0, std::memcmp(clean.data(), hooked.data(), clean.size() * sizeof(float)))
        << site_name(site);
  }
}

TEST_P(HookTest, WritingReachesTheLogits) {
  const std::vector<float> clean = logits_of(forward_, batch_);
  for (Site site : all_sites(model_.config())) {
    Hooks hooks;
    hooks.write(site, [&](SiteView& view) {
      // Scaling by powers of two would be invisible to scores' softmax only if all scores moved
      // alike; a value-dependent change is seen everywhere.
      float sign = 0.75f;
      for (float& value : view.values) {
        if (std::isfinite(value)) value = value * (1.0f + sign) + 0.1f * sign;
        sign = -sign;
      }
    });
    const std::vector<float> hooked = logits_of(forward_, batch_, hooks);
    EXPECT_NE(clean, hooked) << site_name(site);
  }
}

TEST_P(HookTest, ResidualIdentities) {
  const ModelConfig& config = model_.config();
  std::map<std::string, std::vector<float>> seen;
  Hooks hooks;
  for (Site site : all_sites(config)) {
    if (site_shape(site, config).attention) continue;
    hooks.read(site, [&seen, site](SiteView& view) {
      seen[site_name(site)].assign(view.values.begin(), view.values.end());
    });
  }
  forward_.run(batch_, hooks);
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string b = fmt::format("blocks.{}.", l);
    const auto& pre = seen.at(b + "hook_resid_pre");
    const auto& attn = seen.at(b + "hook_attn_out");
    const auto& post = seen.at(b + "hook_resid_post");
    const bool has_mlp = config.d_mlp > 0;
    for (std::size_t i = 0; i < pre.size(); ++i) {
      // The engine adds in this order in fp32, so the identities hold exactly.
      float expected = pre[i] + attn[i];
      if (has_mlp && !config.parallel) {
        ASSERT_EQ(seen.at(b + "hook_resid_mid")[i], expected) << b << i;
      }
      if (config.norm_place == NormPlace::post) break;  // its stream is normalised in between
      if (has_mlp) expected += seen.at(b + "hook_mlp_out")[i];
      ASSERT_EQ(post[i], expected) << b << i;
    }
    if (l + 1 < config.n_layers && config.norm_place != NormPlace::post) {
      EXPECT_EQ(post, seen.at(fmt::format("blocks.{}.hook_resid_pre", l + 1)));
    }
  }
}

TEST_P(HookTest, PatternRowsSumToOneAndRespectMasks) {
  const ModelConfig& config = model_.config();
  Hooks hooks;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    hooks.read({SiteKind::pattern, l}, [&](SiteView& view) {
      for (std::int64_t row = 0; row < config.n_heads * view.queries; ++row) {
        const std::int64_t query = row % view.queries;
        double sum = 0;
        for (std::int64_t key = 0; key < view.keys; ++key) {
          const float a = view.values[static_cast<std::size_t>(row * view.keys + key)];
          const std::int64_t window =
              config.layers[static_cast<std::size_t>(view.site.layer)].window;
          const bool masked =
              (config.causal && key > query) || (window > 0 && query - key >= window);
          if (masked) {
            ASSERT_EQ(a, 0.0f) << "query " << query << " key " << key;
          }
          sum += a;
        }
        ASSERT_NEAR(sum, 1.0, 1e-6);
      }
    });
  }
  forward_.run(batch_, hooks);
}

INSTANTIATE_TEST_SUITE_P(Blocks, HookTest, ::testing::ValuesIn(testing::varied_configs()),
                         [](const auto& test) {
                           std::string name = test.param.label;
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name;
                         });

// Setting one query's scores to −inf everywhere but one key sends all attention there.
TEST(Hooks, KnockOutThroughScores) {
  const Model model = tiny_model({});
  Forward forward(model);
  const Batch batch = small_batch(61);
  std::vector<float> pattern;
  Hooks hooks;
  hooks.write({SiteKind::attn_scores, 1}, [](SiteView& view) {
    if (view.prompt != 1) return;
    for (std::int64_t key = 0; key < view.keys; ++key) {
      if (key != 4) {
        view.values[static_cast<std::size_t>((0 * view.queries + 9) * view.keys + key)] =
            -std::numeric_limits<float>::infinity();
      }
    }
  });
  hooks.read({SiteKind::pattern, 1}, [&](SiteView& view) {
    if (view.prompt == 1) pattern.assign(view.values.begin(), view.values.end());
  });
  forward.run(batch, hooks);
  for (std::int64_t key = 0; key < 12; ++key) {
    EXPECT_EQ(pattern[static_cast<std::size_t>(9 * 12 + key)], key == 4 ? 1.0f : 0.0f);
  }
}

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Hooks, RefusesWhatTheModelDoesNotHave) {
  const Model model = tiny_model({});
  Forward forward(model);
  const Batch batch = small_batch(61);
  Hooks hooks;
  hooks.read({SiteKind::pos_embed, -1}, [](SiteView&) {});
  EXPECT_NE(message_of([&] { forward.run(batch, hooks); }).find("hook_pos_embed"),
            std::string::npos);
  Hooks beyond;
  beyond.read({SiteKind::resid_post, 2}, [](SiteView&) {});
  EXPECT_EQ(message_of([&] { forward.run(batch, beyond); }), "no error");

  Batch wrong;
  wrong.add(std::vector<std::int32_t>{1, 61});
  EXPECT_EQ(message_of([&] { forward.run(wrong); }),
            "token 1 of the batch has id 61, the vocabulary has 61");
  Batch empty_prompt;
  empty_prompt.add(std::vector<std::int32_t>{});
  EXPECT_EQ(message_of([&] { forward.run(empty_prompt); }), "prompt 0 of the batch has no tokens");
  EXPECT_EQ(message_of([&] { forward.run(Batch{}); }), "a batch needs at least one prompt");
}

TEST(Hooks, RefusesPositionsBeyondTheLearnedOnes) {
  TinyConfig config = testing::varied_configs()[1];
  config.n_ctx = 8;
  const Model model = tiny_model(config);
  Forward forward(model);
  Batch batch;
  batch.add(std::vector<std::int32_t>(9, 3));
  EXPECT_EQ(message_of([&] { forward.run(batch); }),
            "a prompt of 9 tokens is longer than this model's 8 learned positions");
}

}  // namespace
}  // namespace lamina
