// Passes that start in the middle (Forward::resume), run other steps than every layer once, start
// from given values, keep their state. Whatever is reused, the bits are those of the plain run.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/error.h"
#include "lamina/core/forward.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::random_prompts;
using testing::tiny_model;
using testing::TinyConfig;

using Values =
    std::map<std::string, std::vector<std::vector<float>>>;  // [site][prompt of the batch]

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

::testing::AssertionResult same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " values against " << b.size();
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "value " << i << ": " << a[i] << " against " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// Reads every site from layer `from` on, apart by prompt.
void collect(const ModelConfig& config, std::int32_t from, Hooks& hooks, Values& values) {
  for (Site site : all_sites(config)) {
    const bool final_site =
        site.kind == SiteKind::ln_final_scale || site.kind == SiteKind::ln_final_normalized;
    if (site.layer < from && !final_site) continue;
    auto& out = values[site_name(site)];
    hooks.read(site, [&out](SiteView& view) {
      out.resize(size(view.batch.prompts()));
      if (view.shape.attention) {
        out[size(view.prompt)].assign(view.values.begin(), view.values.end());
        return;
      }
      const std::int64_t row = view.shape.row();
      for (std::size_t p = 0; p < out.size(); ++p) {
        out[p].assign(view.values.begin() + view.batch.offsets[p] * row,
                      view.values.begin() + view.batch.offsets[p + 1] * row);
      }
    });
  }
}

void add_logits(Forward& forward, const Batch& batch, Values& values) {
  const std::int64_t v = forward.model().config().d_vocab;
  auto& out = values["logits"];
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    std::vector<std::int64_t> rows;
    for (std::int64_t r = batch.offsets[size(p)]; r < batch.offsets[size(p) + 1]; ++r) {
      rows.push_back(r);
    }
    out.emplace_back(rows.size() * size(v));
    forward.run_logits(rows, out.back());
  }
}

// Rows `first` … of one prompt of a full run's values of a site.
std::vector<float> later_rows(const std::vector<float>& values, std::int64_t length,
                              std::int64_t first, bool attention, std::int64_t heads) {
  const auto total = static_cast<std::int64_t>(values.size());
  if (!attention) return {values.begin() + total / length * first, values.end()};
  std::vector<float> out;
  for (std::int64_t h = 0; h < heads; ++h) {
    const auto at = values.begin() + h * length * length;
    out.insert(out.end(), at + first * length, at + length * length);
  }
  return out;
}

// A change that depends on the site, the position and the place in the row; leaves −∞ alone.
float changed(float value, std::int64_t position, std::int64_t i) {
  if (!std::isfinite(value)) return value;
  return value * (1.0f + 0.25f * static_cast<float>(i % 3)) +
         0.05f * static_cast<float>((position + i) % 5);
}

// Changes the rows at positions `first` … of prompt `prompt` of the pass, whose rows begin at
// `past`.
HookFunction change_rows(std::int64_t prompt, std::int64_t past, std::int64_t first) {
  return [=](SiteView& view) {
    if (view.shape.attention) {
      if (view.prompt != prompt) return;
      for (std::int64_t h = 0; h < view.shape.heads; ++h) {
        for (std::int64_t q = 0; q < view.queries; ++q) {
          if (past + q < first) continue;
          float* row = view.values.data() + (h * view.queries + q) * view.keys;
          for (std::int64_t j = 0; j < view.keys; ++j) row[j] = changed(row[j], past + q, h + j);
        }
      }
      return;
    }
    const std::int64_t row = view.shape.row(), begin = view.batch.offsets[size(prompt)];
    for (std::int64_t t = 0; t < view.batch.length(prompt); ++t) {
      if (past + t < first) continue;
      float* at = view.values.data() + (begin + t) * row;
      for (std::int64_t i = 0; i < row; ++i) at[i] = changed(at[i], past + t, i);
    }
  };
}

class Resume : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Resume() {
    for (const auto& prompt : prompts_) batch_.add(prompt);
  }

  std::int64_t length(std::int64_t prompt) const { return batch_.length(prompt); }
  bool is_attention(const std::string& site) const {
    return site != "logits" && site_shape(parse_site(site, config_), config_).attention;
  }
  // Continuation i of a resumed pass against prompt `prompt`, rows `first` …, of a full run.
  void expect_rows(const Values& resumed, std::size_t i, const Values& full, Continuation c,
                   const std::string& what) const {
    ASSERT_FALSE(resumed.empty());
    for (const auto& [site, values] : resumed) {
      ASSERT_LT(i, values.size()) << site << " never fired; " << what;
      const auto want = later_rows(full.at(site)[size(c.prompt)], length(c.prompt), c.first,
                                   is_attention(site), config_.n_heads);
      EXPECT_TRUE(same_bits(values[i], want)) << site << "; " << what;
    }
  }

  Model model_ = tiny_model(GetParam());
  const ModelConfig& config_ = model_.config();
  Forward forward_{model_};
  std::vector<std::vector<std::int32_t>> prompts_ =
      random_prompts({4, 1, 11}, GetParam().d_vocab, 3);
  Batch batch_;
};

TEST_P(Resume, EveryLayerAndRowEqualsTheFullRun) {
  Values full;
  Hooks hooks;
  collect(config_, -1, hooks, full);
  RunState state;
  const auto run = forward_.run(batch_, hooks, {.keep = &state});
  const std::vector<float> residual(run.begin(), run.end());
  add_logits(forward_, batch_, full);
  for (std::int32_t layer = 0; layer <= config_.n_layers; ++layer) {
    for (std::int64_t p = 0; p < batch_.prompts(); ++p) {
      for (std::int64_t first = 0; first < (config_.causal ? length(p) : 1); ++first) {
        const Continuation c{p, first};
        Values values;
        Hooks reading;
        collect(config_, layer, reading, values);
        const auto out = forward_.resume(state, layer, {&c, 1}, reading);
        const auto from = batch_.offsets[size(p)] + first;
        EXPECT_TRUE(same_bits(
            out, std::span(residual).subspan(size(from * config_.d_model),
                                             size((length(p) - first) * config_.d_model))));
        Batch rows;
        rows.add(std::span(prompts_[size(p)]).subspan(size(first)));
        add_logits(forward_, rows, values);
        expect_rows(values, 0, full, c,
                    fmt::format("layer {}, prompt {} from {}", layer, p, first));
      }
    }
  }
}

// Several continuations of the same prompt in one pass, each with its own change, against one full
// run per change: at every site.
TEST_P(Resume, ChangedSitesEqualTheFullRunWithTheSameHooks) {
  RunState state;
  forward_.run(batch_, {}, {.keep = &state});
  const std::vector<Continuation> which =
      config_.causal ? std::vector<Continuation>{{2, 3}, {0, 0}, {2, 3}, {2, 10}, {1, 0}, {2, 0}}
                     : std::vector<Continuation>{{2, 0}, {0, 0}, {2, 0}};
  for (Site site : all_sites(config_)) {
    if (site.kind == SiteKind::embed || site.kind == SiteKind::pos_embed) continue;
    const std::int32_t layer = site.layer < 0 ? config_.n_layers : site.layer;
    Values values;
    Hooks hooks;
    // Continuation 2 stays as it is: what is changed beside it must not reach it.
    for (std::size_t i = 0; i < which.size(); ++i) {
      if (i == 2) continue;
      hooks.write(site, change_rows(static_cast<std::int64_t>(i), which[i].first,
                                    which[i].first + (i == 3 ? 0 : 1)));
    }
    collect(config_, layer, hooks, values);
    forward_.resume(state, layer, which, hooks);
    Batch rows;
    for (const Continuation& c : which) {
      rows.add(std::span(prompts_[size(c.prompt)]).subspan(size(c.first)));
    }
    add_logits(forward_, rows, values);
    for (std::size_t i = 0; i < which.size(); ++i) {
      Values full;
      Hooks whole;
      if (i != 2) {
        whole.write(site, change_rows(which[i].prompt, 0, which[i].first + (i == 3 ? 0 : 1)));
      }
      collect(config_, layer, whole, full);
      forward_.run(batch_, whole);
      add_logits(forward_, batch_, full);
      expect_rows(values, i, full, which[i],
                  fmt::format("{}, continuation {}", site_name(site), i));
    }
  }
}

TEST_P(Resume, AKeptStateHoldsWhatHooksWrote) {
  if (config_.n_layers < 2) GTEST_SKIP();
  Hooks hooks;
  hooks.write({SiteKind::resid_post, 0}, change_rows(2, 0, 5));
  hooks.write({SiteKind::v, 1}, change_rows(2, 0, 2));
  RunState state;
  const auto run = forward_.run(batch_, hooks, {.keep = &state});
  const std::vector<float> want(run.begin(), run.end());
  const Continuation c{2, config_.causal ? 9 : 0};
  // Layer 2's input and layer 1's values are the written ones, whatever hooks are there now.
  const auto out = forward_.resume(state, 2, {&c, 1});
  EXPECT_TRUE(same_bits(
      out, std::span(want).subspan(size((batch_.offsets[2] + c.first) * config_.d_model))));
  if (!config_.causal) return;
  // The continued rows are computed again without the hooks; the keys and values before them stay.
  Hooks later;
  later.write({SiteKind::resid_pre, 1}, [](SiteView&) {});
  later.write({SiteKind::v, 1}, change_rows(0, c.first, 2));
  const auto again = forward_.resume(state, 1, {&c, 1}, later);
  EXPECT_TRUE(same_bits(
      again, std::span(want).subspan(size((batch_.offsets[2] + c.first) * config_.d_model))));
}

TEST_P(Resume, AStateIsReusedForAnotherBatch) {
  RunState state;
  forward_.run(batch_, {}, {.keep = &state});
  Batch other;
  other.add(prompts_[2]);
  forward_.run(other, {}, {.keep = &state});
  RunState fresh;
  forward_.run(other, {}, {.keep = &fresh});
  EXPECT_EQ(state.batch.ids, fresh.batch.ids);
  ASSERT_EQ(state.resid.size(), size(config_.n_layers + 1));
  for (std::size_t l = 0; l < fresh.resid.size(); ++l) {
    EXPECT_TRUE(same_bits(state.resid[l], fresh.resid[l]));
  }
  for (std::size_t l = 0; l < fresh.keys.size(); ++l) {
    EXPECT_TRUE(same_bits(state.keys[l], fresh.keys[l]));
    EXPECT_TRUE(same_bits(state.values[l], fresh.values[l]));
  }
  EXPECT_EQ(state.bytes(), RunState::bytes_per_token(config_) * size(other.tokens()));
}

TEST_P(Resume, KeepingAndTapingChangeNoBit) {
  const auto plain = forward_.run(batch_);
  const std::vector<float> want(plain.begin(), plain.end());
  RunState state;
  Tape tape;
  EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.keep = &state}), want));
  EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.tape = &tape}), want));
  EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.keep = &state, .tape = &tape}), want));
  EXPECT_TRUE(same_bits(state.resid.back(), want));
  EXPECT_EQ(tape.batch().ids, batch_.ids);
}

TEST_P(Resume, StepsLeftOutEqualZeroedSublayers) {
  // With norms behind the additions a sublayer that is left out leaves out its norm as well.
  const bool post = config_.norm_place == NormPlace::post;
  const auto zero = [](SiteView& view) { std::fill(view.values.begin(), view.values.end(), 0.0f); };
  std::vector<bool> sublayers = {true};
  if (config_.d_mlp > 0) sublayers.push_back(false);
  for (std::int32_t layer = 0; layer < config_.n_layers && !post; ++layer) {
    for (bool attention : sublayers) {
      std::vector<Step> steps = all_steps(config_);
      (attention ? steps[size(layer)].attention : steps[size(layer)].mlp) = false;
      Hooks hooks;
      hooks.write({attention ? SiteKind::attn_out : SiteKind::mlp_out, layer}, zero);
      const auto run = forward_.run(batch_, hooks);
      const std::vector<float> want(run.begin(), run.end());
      EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.steps = steps}), want))
          << "layer " << layer << (attention ? " attention" : " mlp");
    }
  }
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    std::vector<Step> steps = all_steps(config_);
    steps[size(layer)] = {layer, false, false};
    const auto without = forward_.run(batch_, {}, {.steps = steps});
    const std::vector<float> want(without.begin(), without.end());
    steps.erase(steps.begin() + layer);
    if (steps.empty()) continue;
    EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.steps = steps}), want)) << "layer " << layer;
  }
}

TEST_P(Resume, SitesOfALeftOutSublayerDoNotFire) {
  std::vector<Step> steps = all_steps(config_);
  steps[1].attention = false;
  int attention = 0, others = 0;
  Hooks hooks;
  for (SiteKind kind : {SiteKind::q, SiteKind::k, SiteKind::v, SiteKind::attn_scores,
                        SiteKind::pattern, SiteKind::z, SiteKind::result, SiteKind::attn_out}) {
    hooks.read({kind, 1}, [&](SiteView&) { ++attention; });
    hooks.read({kind, 2}, [&](SiteView&) { ++others; });
  }
  forward_.run(batch_, hooks, {.steps = steps});
  EXPECT_EQ(attention, 0);
  EXPECT_GE(others, 8);
}

// Any sequence of steps equals running them one at a time, each from what the last one left.
TEST_P(Resume, StepsOneAtATimeThroughStart) {
  const std::vector<Step> steps = {{2}, {0}, {0}, {1, true, false}, {1, false, true}, {2}};
  const auto all = forward_.run(batch_, {}, {.steps = steps});
  const std::vector<float> want(all.begin(), all.end());
  std::vector<float> x;
  for (const Step& step : steps) {
    const auto run = forward_.run(batch_, {}, {.steps = {&step, 1}, .start = x});
    x.assign(run.begin(), run.end());
  }
  EXPECT_TRUE(same_bits(x, want));
}

TEST_P(Resume, StartIsWhatEntersTheFirstStep) {
  std::vector<float> entering;
  Hooks hooks;
  hooks.read({SiteKind::resid_pre, 0},
             [&](SiteView& view) { entering.assign(view.values.begin(), view.values.end()); });
  const auto run = forward_.run(batch_, hooks);
  const std::vector<float> want(run.begin(), run.end());
  EXPECT_TRUE(same_bits(forward_.run(batch_, {}, {.start = entering}), want));
  for (float& value : entering) value *= 1.5f;
  EXPECT_FALSE(same_bits(forward_.run(batch_, {}, {.start = entering}), want));
}

TEST_P(Resume, ReadHeadGivesTheBitsOfTheSites) {
  const std::int64_t d = config_.d_head;
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    std::vector<float> residual;
    std::map<SiteKind, std::vector<float>> sites;
    Hooks hooks;
    hooks.read({SiteKind::resid_pre, layer},
               [&](SiteView& view) { residual.assign(view.values.begin(), view.values.end()); });
    for (SiteKind kind : {SiteKind::q, SiteKind::k, SiteKind::v}) {
      hooks.read({kind, layer}, [&, kind](SiteView& view) {
        sites[kind].assign(view.values.begin(), view.values.end());
      });
    }
    forward_.run(batch_, hooks);
    for (const auto& [kind, values] : sites) {
      const std::int64_t heads = kind == SiteKind::q ? config_.n_heads : config_.n_kv_heads;
      for (std::int64_t head = 0; head < heads; ++head) {
        std::vector<float> want, got(size(batch_.tokens() * d));
        for (std::int64_t t = 0; t < batch_.tokens(); ++t) {
          const auto at = values.begin() + (t * heads + head) * d;
          want.insert(want.end(), at, at + d);
        }
        forward_.read_head(kind, layer, head, residual, got);
        EXPECT_TRUE(same_bits(got, want)) << site_name({kind, layer}) << " head " << head;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, Resume, ::testing::ValuesIn(testing::varied_configs()),
                         [](const auto& test) {
                           std::string name = test.param.label;
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name;
                         });

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

TEST(ResumeErrors, RowsAndLayersThatAreNotThere) {
  const Model model = tiny_model({});
  Forward forward(model);
  Batch batch;
  for (const auto& prompt : random_prompts({3, 6}, 61, 1)) batch.add(prompt);
  RunState state;
  forward.run(batch, {}, {.keep = &state});
  const auto resume = [&](std::int32_t layer, Continuation c) {
    return usage_error([&] { forward.resume(state, layer, {&c, 1}); });
  };
  EXPECT_EQ(resume(0, {1, 5}), "no error");
  expect_message(resume(0, {1, 6}), {"prompt 1", "6 tokens"});
  expect_message(resume(0, {1, -1}), {"prompt 1", "-1"});
  expect_message(resume(0, {2, 0}), {"prompt 2", "2"});
  expect_message(resume(0, {-1, 0}), {"prompt -1"});
  expect_message(resume(4, {0, 0}), {"4", "3"});
  expect_message(resume(-1, {0, 0}), {"-1"});
  EXPECT_THROW(forward.resume(state, 0, {}), Error);
  EXPECT_EQ(resume(3, {0, 0}), "no error");

  const Continuation first{0, 0};
  expect_message(usage_error([&] { forward.resume({}, 0, {&first, 1}); }), {"-1", "3"});
  // Of another model: as many layers, other sizes.
  const Model other = tiny_model({.d_model = 32});
  Forward wider(other);
  expect_message(usage_error([&] { wider.resume(state, 0, {&first, 1}); }), {"state"});
  const Model grouped = tiny_model({.n_kv_heads = 4});
  Forward more_heads(grouped);
  expect_message(usage_error([&] { more_heads.resume(state, 0, {&first, 1}); }), {"state"});
}

TEST(ResumeErrors, BidirectionalModelsResumeFromRowZeroOnly) {
  const Model model = tiny_model(testing::varied_configs()[4]);
  ASSERT_FALSE(model.config().causal);
  Forward forward(model);
  Batch batch;
  batch.add(random_prompts({6}, 61, 1)[0]);
  RunState state;
  forward.run(batch, {}, {.keep = &state});
  const Continuation c{0, 2};
  expect_message(usage_error([&] {
                   forward.resume(state, 0, {&c, 1});
                 }),
                 {"both directions", "row 0", "2"});
}

TEST(ResumeErrors, OptionsThatExcludeEachOther) {
  const Model model = tiny_model({});
  const ModelConfig& config = model.config();
  Forward forward(model);
  Batch batch;
  batch.add(random_prompts({6}, 61, 1)[0]);
  const auto run = [&](const RunOptions& options) {
    return usage_error([&] { forward.run(batch, {}, options); });
  };
  KvCache cache(config, 1);
  RunState state;
  Tape tape;
  const std::vector<Step> every = all_steps(config);
  std::vector<Step> fewer = {every[0]};
  const std::vector<float> start(size(6 * config.d_model));
  expect_message(run({.cache = &cache, .keep = &state}), {"cache", "state"});
  expect_message(run({.cache = &cache, .tape = &tape}), {"cache", "tape"});
  expect_message(run({.cache = &cache, .steps = fewer}), {"cache", "layer"});
  expect_message(run({.steps = fewer, .keep = &state}), {"state", "every layer"});
  expect_message(run({.start = start, .keep = &state}), {"state", "embedding"});
  expect_message(run({.start = std::span(start).first(24)}), {"24", "144"});
  fewer[0].layer = 3;
  expect_message(run({.steps = fewer}), {"layer 3", "3"});
  fewer[0].layer = -1;
  expect_message(run({.steps = fewer}), {"layer -1"});
  // All of these alone are fine, and a refused pass leaves nothing behind.
  EXPECT_EQ(cache.length(0), 0);
  EXPECT_EQ(run({.steps = every, .keep = &state}), "no error");
  EXPECT_EQ(run({.cache = &cache, .steps = every}), "no error");
  EXPECT_EQ(run({.start = start, .tape = &tape}), "no error");
}

TEST(ResumeErrors, HeadsThatDoNotExist) {
  const Model model = tiny_model({});  // 4 heads, 2 of keys and values, 3 layers
  Forward forward(model);
  const std::vector<float> residual(24);
  std::vector<float> out(6);
  const auto read = [&](SiteKind kind, std::int32_t layer, std::int64_t head) {
    return usage_error([&] { forward.read_head(kind, layer, head, residual, out); });
  };
  EXPECT_EQ(read(SiteKind::q, 2, 3), "no error");
  EXPECT_EQ(read(SiteKind::k, 2, 1), "no error");
  expect_message(read(SiteKind::q, 2, 4), {"head 4", "blocks.2.attn.hook_q"});
  expect_message(read(SiteKind::k, 2, 2), {"head 2", "blocks.2.attn.hook_k"});
  expect_message(read(SiteKind::v, 3, 0), {"blocks.3.attn.hook_v"});
  expect_message(read(SiteKind::z, 0, 0), {"hook_z"});
  std::vector<float> small(5);
  expect_message(usage_error([&] { forward.read_head(SiteKind::q, 0, 0, residual, small); }),
                 {"5", "6"});
  expect_message(usage_error([&] {
                   forward.read_head(SiteKind::q, 0, 0, std::span(residual).first(23), out);
                 }),
                 {"23", "24"});
}

// A hook that throws leaves the Forward usable and the cache as it was.
TEST(ResumeErrors, AHookThatThrowsLeavesTheNextPassAlone) {
  const Model model = tiny_model({});
  Forward forward(model);
  Batch batch;
  batch.add(random_prompts({6}, 61, 1)[0]);
  RunState state;
  const auto run = forward.run(batch, {}, {.keep = &state});
  const std::vector<float> want(run.begin(), run.end());
  Hooks hooks;
  hooks.read({SiteKind::z, 1}, [](SiteView&) { throw Error("stop"); });
  const Continuation c{0, 2};
  EXPECT_THROW(forward.resume(state, 0, {&c, 1}, hooks), Error);
  EXPECT_TRUE(same_bits(forward.run(batch), want));
  EXPECT_THROW(forward.run(batch, hooks), Error);
  EXPECT_TRUE(same_bits(forward.resume(state, 0, {&c, 1}), std::span(want).subspan(2 * 24)));
}

}  // namespace
}  // namespace lamina
