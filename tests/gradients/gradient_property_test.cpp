// What gradients must do whatever their values: not depend on the batch, the threads or who reads
// them, add up over seeds, stop where a hook or a rule stops them.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "support.h"

namespace lamina {
namespace {

using testing::Metric;
using testing::SiteValues;
using testing::size;
using testing::TinyConfig;
using Prompts = std::vector<std::vector<std::int32_t>>;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class GradientProperty : public ::testing::TestWithParam<TinyConfig> {
 protected:
  // The same seeds for a prompt wherever it stands in a batch.
  Metric metric_of(const Prompts& prompts) const {
    Metric metric;
    const Batch batch = testing::pack(prompts);
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t last = batch.offsets[size(p) + 1] - 1;
      metric.rows.push_back(last);
      const auto c = testing::normal_values(size(config_.d_vocab), prompts[size(p)].size());
      metric.c.insert(metric.c.end(), c.begin(), c.end());
    }
    return metric;
  }
  SiteValues run(const Prompts& prompts, const BackwardRules& rules = {}) {
    return testing::gradients(forward_, backward_, testing::pack(prompts), metric_of(prompts),
                              rules);
  }

  Model model_ = testing::tiny_model(GetParam(), 5);
  const ModelConfig& config_ = model_.config();
  Forward forward_{model_};
  Backward backward_{model_};
  Prompts prompts_ = testing::random_prompts({1, 7, 23, 100, 2, 40}, GetParam().d_vocab, 5);
};

TEST_P(GradientProperty, AloneEqualsBatched) {
  const SiteValues batched = run(prompts_);
  ASSERT_EQ(batched.size(), all_sites(config_).size());
  for (std::size_t p = 0; p < prompts_.size(); ++p) {
    for (const auto& [site, values] : run({prompts_[p]})) {
      EXPECT_TRUE(same_bits(values.at(0), batched.at(site).at(p)))
          << site_name(site) << ", prompt " << p;
    }
  }
}

TEST_P(GradientProperty, OrderOfPromptsDoesNotMatter) {
  const SiteValues forwards = run(prompts_);
  for (const auto& [site, values] : run(Prompts(prompts_.rbegin(), prompts_.rend()))) {
    for (std::size_t p = 0; p < prompts_.size(); ++p) {
      EXPECT_TRUE(same_bits(values[prompts_.size() - 1 - p], forwards.at(site)[p]))
          << site_name(site);
    }
  }
}

TEST_P(GradientProperty, ThreadsDoNotMatter) {
  const int before = threads();
  set_threads(1);
  const SiteValues one = run(prompts_, BackwardRules::relp());
  for (int n : {2, 3}) {
    set_threads(n);
    for (const auto& [site, values] : run(prompts_, BackwardRules::relp())) {
      for (std::size_t p = 0; p < prompts_.size(); ++p) {
        EXPECT_TRUE(same_bits(values[p], one.at(site)[p]))
            << site_name(site) << ", " << n << " threads";
      }
    }
  }
  set_threads(before);
}

TEST_P(GradientProperty, ReadersDoNotMatter) {
  prompts_ = {prompts_[1], prompts_[0], prompts_[2]};
  const SiteValues watched = run(prompts_);
  const Batch batch = testing::pack(prompts_);
  const Metric metric = metric_of(prompts_);
  for (const auto& [site, want] : watched) {  // every site read alone
    Tape tape;
    forward_.run(batch, {}, {.tape = &tape});
    backward_.seed(tape, metric.rows, metric.c);
    std::vector<float> got, all;
    Hooks hooks;
    hooks.read(site, [&](SiteView& v) { got.insert(got.end(), v.values.begin(), v.values.end()); });
    backward_.run(tape, {}, hooks);
    for (const auto& prompt : want) all.insert(all.end(), prompt.begin(), prompt.end());
    EXPECT_TRUE(same_bits(got, all)) << site_name(site);
  }
}

TEST_P(GradientProperty, ParameterNormsAndReadPointsDoNotMatter) {
  const Batch batch = testing::pack(prompts_);
  const Metric metric = metric_of(prompts_);
  const SiteValues want = run(prompts_);
  Tape tape;
  forward_.run(batch, {}, {.tape = &tape});
  Backward other(model_);
  other.want_parameter_norms(true);
  other.seed(tape, metric.rows, metric.c);
  SiteValues got;
  Hooks hooks;
  testing::read_all(config_, hooks, got);
  int points = 0;
  other.run(tape, {}, hooks, [&](ReadPoint, std::span<const float>) { ++points; });
  EXPECT_EQ(points, 1 + config_.n_layers * (3 * config_.n_heads + (config_.d_mlp > 0 ? 1 : 0)));
  for (const auto& [site, values] : want) {
    for (std::size_t p = 0; p < values.size(); ++p) {
      EXPECT_TRUE(same_bits(values[p], got.at(site)[p])) << site_name(site);
    }
  }
  EXPECT_FALSE(other.parameter_norms().empty());
  other.want_parameter_norms(false);
  other.seed(tape, metric.rows, metric.c);
  other.run(tape);
  EXPECT_TRUE(other.parameter_norms().empty());
}

TEST_P(GradientProperty, SeedsAdd) {
  const Batch batch = testing::pack(prompts_);
  const Metric a = testing::random_metric(batch, config_, 1),
               b = testing::random_metric(batch, config_, 2);
  const std::vector<float> residual =
      testing::normal_values(size(batch.tokens() * config_.d_model), 3);
  Tape tape;
  forward_.run(batch, {}, {.tape = &tape});
  const auto back = [&](bool first, bool second, bool third) {
    if (first) backward_.seed(tape, a.rows, a.c);
    if (second) backward_.seed(tape, b.rows, b.c);
    if (third) backward_.seed_residual(tape, residual);
    SiteValues values;
    Hooks hooks;
    testing::read_all(config_, hooks, values);
    backward_.run(tape, {}, hooks);
    return values;
  };
  const SiteValues one = back(true, false, false), two = back(false, true, false),
                   three = back(false, false, true), together = back(true, true, true),
                   nothing = back(false, false, false);
  for (const auto& [site, values] : together) {
    std::vector<std::vector<float>> sum = one.at(site);
    for (std::size_t p = 0; p < sum.size(); ++p) {
      for (std::size_t i = 0; i < sum[p].size(); ++i) {
        sum[p][i] += two.at(site)[p][i] + three.at(site)[p][i];
      }
    }
    EXPECT_LE(testing::relative_error(values, sum), 2e-5) << site_name(site);
    EXPECT_TRUE(testing::all_zero(nothing.at(site))) << site_name(site) << ": seeds are used up";
  }
}

TEST_P(GradientProperty, ZeroedAtTheStreamNothingFlowsOn) {
  const Batch batch = testing::pack(prompts_);
  const Metric metric = metric_of(prompts_);
  Tape tape;
  forward_.run(batch, {}, {.tape = &tape});
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    backward_.seed(tape, metric.rows, metric.c);
    SiteValues values;
    Hooks hooks;
    const Site stop{SiteKind::resid_post, layer};
    hooks.write(stop, [](SiteView& v) { std::fill(v.values.begin(), v.values.end(), 0.0f); });
    testing::read_all(config_, hooks, values);
    backward_.run(tape, {}, hooks);
    const bool post = config_.norm_place == NormPlace::post;
    for (const auto& [site, gradient] : values) {
      const bool behind =
          site.kind == SiteKind::ln_final_scale || site.kind == SiteKind::ln_final_normalized ||
          site.layer > layer ||
          (post && site.layer == layer &&
           (site.kind == SiteKind::ln2_scale || site.kind == SiteKind::ln2_normalized));
      if (!behind) {
        EXPECT_TRUE(testing::all_zero(gradient)) << site_name(site);
      }
      if (behind && site.layer > layer && site.kind == SiteKind::resid_post) {
        EXPECT_FALSE(testing::all_zero(gradient)) << site_name(site);
      }
    }
  }
}

TEST_P(GradientProperty, FrozenPlacesStopTheFlow) {
  const SiteValues pattern = run(prompts_, {.frozen_pattern = true});
  const SiteValues mlp = run(prompts_, {.frozen_mlp = true});
  for (std::int32_t l = 0; l < config_.n_layers; ++l) {
    for (SiteKind kind :
         {SiteKind::q, SiteKind::k, SiteKind::rot_q, SiteKind::rot_k, SiteKind::attn_scores}) {
      if (!pattern.contains({kind, l})) continue;
      EXPECT_TRUE(testing::all_zero(pattern.at({kind, l}))) << site_name({kind, l});
    }
    EXPECT_FALSE(testing::all_zero(pattern.at({SiteKind::v, l})));
    for (SiteKind kind : {SiteKind::mlp_pre, SiteKind::mlp_pre_linear, SiteKind::mlp_post}) {
      if (mlp.contains({kind, l})) {
        EXPECT_TRUE(testing::all_zero(mlp.at({kind, l}))) << site_name({kind, l});
      }
    }
    if (config_.d_mlp > 0) {
      EXPECT_FALSE(testing::all_zero(mlp.at({SiteKind::mlp_out, l})));
    }
  }
}

// The way back is linear, and powers of two are exact: doubling the seeds doubles every bit.
TEST_P(GradientProperty, DoubledSeedsDoubleEveryBit) {
  const Batch batch = testing::pack(prompts_);
  Metric metric = metric_of(prompts_);
  const SiteValues once = testing::gradients(forward_, backward_, batch, metric);
  for (float& c : metric.c) c *= 2;
  for (const auto& [site, values] : testing::gradients(forward_, backward_, batch, metric)) {
    for (std::size_t p = 0; p < values.size(); ++p) {
      std::vector<float> twice = once.at(site)[p];
      for (float& value : twice) value *= 2;
      EXPECT_TRUE(same_bits(values[p], twice)) << site_name(site);
    }
  }
}

// A tape and a Backward that were used before, for other prompts and after a pass that failed.
TEST_P(GradientProperty, TapesAreReused) {
  const SiteValues want = run(prompts_);
  Tape tape;
  const Batch batch = testing::pack(prompts_);
  const Batch other = testing::pack({prompts_[2], prompts_[1]});
  Hooks written;
  written.write({SiteKind::attn_scores, 0}, [](SiteView& v) { v.values[0] += 1; });
  written.write({SiteKind::z, 0}, [](SiteView& v) { v.values[0] += 1; });
  forward_.run(other, written, {.tape = &tape});
  backward_.seed(tape, {}, {});
  backward_.run(tape);
  Hooks failing;
  failing.read({SiteKind::resid_mid, 1}, [](SiteView&) { throw Error("stop"); });
  failing.read({SiteKind::resid_post, 1}, [](SiteView&) { throw Error("stop"); });
  if (config_.d_mlp == 0 || config_.parallel) {
    failing = {};
    failing.read({SiteKind::resid_post, 1}, [](SiteView&) { throw Error("stop"); });
  }
  EXPECT_THROW(forward_.run(batch, failing, {.tape = &tape}), Error);
  EXPECT_THROW(backward_.run(tape), UsageError);  // half a tape
  forward_.run(batch, {}, {.tape = &tape});
  const Metric metric = metric_of(prompts_);
  backward_.seed(tape, metric.rows, metric.c);
  EXPECT_THROW(backward_.run(tape, {}, failing), Error);
  backward_.seed(tape, metric.rows, metric.c);
  SiteValues got;
  Hooks hooks;
  testing::read_all(config_, hooks, got);
  backward_.run(tape, {}, hooks);
  for (const auto& [site, values] : want) {
    for (std::size_t p = 0; p < values.size(); ++p) {
      EXPECT_TRUE(same_bits(values[p], got.at(site)[p])) << site_name(site);
    }
  }
}

TEST_P(GradientProperty, TapeSizeIsAsEstimated) {
  Tape tape;
  const Batch batch = testing::pack(prompts_);
  forward_.run(batch, {}, {.tape = &tape});
  const double estimate =
      static_cast<double>(Tape::bytes_per_token(config_) * size(batch.tokens()));
  EXPECT_NEAR(static_cast<double>(tape.bytes()), estimate, 0.35 * estimate);
}

INSTANTIATE_TEST_SUITE_P(Blocks, GradientProperty, ::testing::ValuesIn(testing::gradient_configs()),
                         [](const auto& test) { return testing::name_of(test.param); });

template <class Call>
std::string usage_error(Call call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  } catch (const Error& error) {
    return std::string("not a UsageError: ") + error.what();
  }
  return "no error";
}

void expect_message(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    EXPECT_NE(message.find(part), std::string::npos)
        << "'" << message << "' lacks '" << part << "'";
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(GradientErrors, SeedsOfTheWrongSizeOrPlace) {
  const Model model = testing::tiny_model({}), other = testing::tiny_model({}, 2);
  Forward forward(model);
  Backward backward(model);
  Tape tape;
  const std::vector<std::int64_t> row = {0};
  const std::vector<float> c(61), residual(6 * 24);
  expect_message(usage_error([&] { backward.seed(tape, row, c); }), {"no pass has filled"});
  expect_message(usage_error([&] { backward.run(tape); }), {"no pass has filled"});
  const Batch batch = testing::pack(testing::random_prompts({6}, 61, 1));
  forward.run(batch, {}, {.tape = &tape});
  const auto seed = [&](std::int64_t at, std::size_t values) {
    return usage_error([&] { backward.seed(tape, {&at, 1}, std::span(c).first(values)); });
  };
  expect_message(seed(6, 61), {"row 6", "6 rows"});
  expect_message(seed(-1, 61), {"row -1"});
  expect_message(seed(0, 60), {"60", "61"});
  expect_message(usage_error([&] { backward.seed_residual(tape, std::span(residual).first(24)); }),
                 {"24", "144"});
  EXPECT_EQ(seed(5, 61), "no error");
  Backward stranger(other);
  expect_message(usage_error([&] { stranger.run(tape); }), {"another model"});
  Tape second;
  forward.run(batch, {}, {.tape = &second});
  expect_message(usage_error([&] { backward.run(second); }), {"two tapes"});
  EXPECT_EQ(usage_error([&] { backward.run(second); }), "no error");  // the seeds are forgotten
  EXPECT_EQ(seed(5, 61), "no error");
  forward.run(testing::pack(testing::random_prompts({9}, 61, 1)), {}, {.tape = &tape});
  expect_message(usage_error([&] { backward.run(tape); }), {"filled again"});
  Hooks hooks;
  hooks.read({SiteKind::ln2_post_scale, 0}, [](SiteView&) {});
  expect_message(usage_error([&] { backward.run(tape, {}, hooks); }),
                 {"blocks.0.ln2_post.hook_scale"});
}

TEST(GradientErrors, ParameterNormsThatCannotBeTold) {
  const Model model = testing::tiny_model({});
  Forward forward(model);
  Backward backward(model);
  Tape tape;
  const Batch batch = testing::pack(testing::random_prompts({6}, 61, 1));
  const std::vector<std::int64_t> row = {0};
  const std::vector<float> c(61, 1.0f);
  forward.run(batch, {}, {.tape = &tape});
  backward.seed(tape, row, c);
  backward.want_parameter_norms(true);
  expect_message(usage_error([&] { backward.run(tape); }), {"after the seeds"});
  const std::vector<Step> steps = {{0}, {1, true, false}, {1, false, true}, {0}};
  forward.run(batch, {}, {.steps = steps, .tape = &tape});
  expect_message(usage_error([&] { backward.run(tape); }), {"layer 0 twice"});
  forward.run(batch, {}, {.steps = std::span(steps).first(3), .tape = &tape});
  backward.seed(tape, row, c);
  EXPECT_EQ(usage_error([&] { backward.run(tape); }), "no error");
  EXPECT_FALSE(backward.parameter_norms().empty());
}

// Nothing of an earlier model may stay on a tape: here its final norm.
TEST(GradientErrors, ATapeIsReusedForAnotherModel) {
  const Model normed = testing::tiny_model({});
  TinyConfig plain;
  plain.norm = plain.norm_place = "none";
  plain.final_norm = false;
  const Model bare = testing::tiny_model(plain);
  const Batch batch = testing::pack(testing::random_prompts({6}, 61, 1));
  const Metric metric = testing::random_metric(batch, bare.config(), 1);
  Forward first(normed), second(bare);
  Backward backward(bare);
  const SiteValues want = testing::gradients(second, backward, batch, metric);
  Tape tape;
  first.run(batch, {}, {.tape = &tape});
  second.run(batch, {}, {.tape = &tape});
  backward.seed(tape, metric.rows, metric.c);
  SiteValues got;
  Hooks hooks;
  testing::read_all(bare.config(), hooks, got);
  backward.run(tape, {}, hooks);
  for (const auto& [site, values] : want) {
    EXPECT_TRUE(same_bits(values[0], got.at(site)[0])) << site_name(site);
  }
}

}  // namespace
}  // namespace lamina
