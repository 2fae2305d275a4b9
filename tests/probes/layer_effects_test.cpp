// Effects of skipped layers: against the authors' released code (make_effects_goldens.py), against
// full passes with the layer skipped bit for bit, and where the answer is known.

#include "lamina/probes/layer_effects.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "effects_support.h"
#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lamina/core/tokenizer.h"
#include "lens/row_stats.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::as_prompts;
using testing::effects_golden;
using testing::golden_model;
using testing::random_prompts;
using testing::tiny_model;
using testing::TinyConfig;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::vector<double> flat(const nlohmann::json& rows) {
  std::vector<double> out;
  for (const auto& row : rows) {
    if (row.is_array()) {
      for (const auto& v : row) out.push_back(v);
    } else {
      out.push_back(row);
    }
  }
  return out;
}

void expect_near(const std::vector<double>& got, const nlohmann::json& want, double tolerance,
                 const std::string& what) {
  const std::vector<double> expected = flat(want);
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], expected[i], tolerance) << what << " [" << i << "]";
  }
}

TEST(LayerEffects, EqualTheAuthorsCode) {
  const Model model = golden_model();
  Forward forward(model);
  const auto& golden = effects_golden();
  const std::vector<Prompt> prompts = as_prompts(golden["prompts"]);
  LayerEffectsOptions options;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    EXPECT_EQ(effect_splits(prompts[p], options),
              golden["splits"][p].get<std::vector<std::int64_t>>());
  }
  // Golden in double, here float: a layer's change is a difference of streams some times its size,
  // effects are up to 2.6 and logits ~10. Measured: 2.7e-6 off at most.
  constexpr double kEffect = 1e-5, kOut = 1e-5;
  for (const auto& [name, want] : golden["skip"].items()) {
    const std::size_t space = name.find(' ');
    options.variants = {parse_effect_variant(name.substr(0, space))};
    options.part = parse_effect_part(name.substr(space + 1));
    const LayerEffects results = measure_layer_effects(forward, prompts, options);
    ASSERT_EQ(results.tables.size(), 1u);
    const EffectTable& table = results.tables[0];
    EXPECT_EQ(table.prompts, 3);
    expect_near(table.effect[0], want["effect_max"], kEffect, name + " max");
    expect_near(table.effect[1], want["effect_mean"], kEffect, name + " mean");
    if (want.contains("out_max")) {
      expect_near(table.out[0], want["out_max"], kOut, name + " out max");
      expect_near(table.out[1], want["out_mean"], kOut, name + " out mean");
    } else {
      EXPECT_TRUE(table.out[0].empty());
    }
    if (name != "future layer") continue;
    EXPECT_EQ(table.splits, 9);
    for (std::size_t i = 0; i < 2; ++i) {
      expect_near(table.layer_effect[i], golden["layer_effect"][i], kEffect, "e");
      EXPECT_NEAR(table.depth_score[i], golden["depth_score"][i].get<double>(), kEffect);
      EXPECT_NEAR(table.out_depth_score[i], golden["out_depth_score"][i].get<double>(), kOut);
    }
  }
}

// Effects of one prompt and split by full passes with hooks, the plain way.
struct Plain {
  std::vector<double> effect, out;  // [L, L], [L]: maxima
  std::vector<double> effect_sum, out_sum;
};

Plain plain_effects(Forward& forward, const std::vector<std::int32_t>& ids, std::int64_t end,
                    std::int64_t first, EffectPart part) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t layers = config.n_layers, d = config.d_model, v = config.d_out();
  const auto n = static_cast<std::int64_t>(ids.size());
  Batch batch;
  batch.add(ids);
  std::vector<std::int64_t> rows;
  for (std::int64_t p = first; p < n; ++p) rows.push_back(p);
  struct Pass {
    std::vector<std::vector<float>> pre, post;
    std::vector<float> p;
  };
  const auto run = [&](Hooks hooks) {
    Pass pass;
    pass.pre.resize(size(layers));
    pass.post.resize(size(layers));
    for (std::int32_t l = 0; l < layers; ++l) {
      hooks.read({SiteKind::resid_pre, l}, [&pass, l](SiteView& view) {
        pass.pre[size(l)].assign(view.values.begin(), view.values.end());
      });
      hooks.read({SiteKind::resid_post, l}, [&pass, l](SiteView& view) {
        pass.post[size(l)].assign(view.values.begin(), view.values.end());
      });
    }
    forward.run(batch, hooks);
    pass.p.resize(rows.size() * size(v));
    forward.run_logits(rows, pass.p);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      rows::to_probabilities(std::span(pass.p).subspan(r * size(v), size(v)));
    }
    return pass;
  };
  const Pass clean = run({});
  Plain out;
  out.effect.assign(size(layers * layers), 0.0);
  out.effect_sum = out.effect;
  out.out.assign(size(layers), 0.0);
  out.out_sum = out.out;
  for (std::int32_t s = 0; s < layers; ++s) {
    Hooks hooks;
    const SiteKind kind = part == EffectPart::layer       ? SiteKind::resid_post
                          : part == EffectPart::attention ? SiteKind::attn_out
                                                          : SiteKind::mlp_out;
    hooks.write({kind, s}, [&](SiteView& view) {
      for (std::int64_t i = d; i < end * d; ++i) {
        view.values[size(i)] = part == EffectPart::layer ? clean.pre[size(s)][size(i)] : 0.0f;
      }
    });
    const Pass skipped = run(hooks);
    for (std::int64_t l = 0; l < layers; ++l) {
      for (std::int64_t p = first; p < n; ++p) {
        double change = 0, was = 0;
        for (std::int64_t i = p * d; i < (p + 1) * d; ++i) {
          const float a = clean.post[size(l)][size(i)] - clean.pre[size(l)][size(i)];
          const float b = skipped.post[size(l)][size(i)] - skipped.pre[size(l)][size(i)];
          change += (double{a} - b) * (double{a} - b);
          was += double{a} * a;
        }
        const double e = std::sqrt(change) / std::max(std::sqrt(was), 1e-6);
        double& most = out.effect[size(s * layers + l)];
        most = std::max(most, e);
        out.effect_sum[size(s * layers + l)] += e;
      }
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const double e = rows::distance(std::span(clean.p).subspan(r * size(v), size(v)),
                                      std::span(skipped.p).subspan(r * size(v), size(v)));
      out.out[size(s)] = std::max(out.out[size(s)], e);
      out.out_sum[size(s)] += e;
    }
  }
  return out;
}

class Families : public ::testing::TestWithParam<TinyConfig> {};

// What starts in the middle, several splits at once, is the full pass with the layer skipped.
TEST_P(Families, AreThoseOfFullPassesBitForBit) {
  const Model model = tiny_model(GetParam());
  if (!model.config().causal || model.config().head != Head::language) {
    Forward forward(model);
    const auto prompts = as_prompts(random_prompts({5}, GetParam().d_vocab, 3));
    EXPECT_THROW(measure_layer_effects(forward, prompts), UsageError);
    return;
  }
  Forward forward(model);
  const auto ids = random_prompts({13, 6, 2, 9}, GetParam().d_vocab, 3);
  const std::vector<Prompt> prompts = as_prompts(ids);
  const std::int64_t layers = model.config().n_layers;
  for (const EffectPart part : {EffectPart::layer, EffectPart::attention, EffectPart::mlp}) {
    if (part == EffectPart::mlp && model.config().d_mlp == 0) continue;
    LayerEffectsOptions options;
    options.part = part;
    options.split_at = {3, 5, 10};
    options.variants = {EffectVariant::future, EffectVariant::current};
    options.batch_tokens = 17;
    const LayerEffects results = measure_layer_effects(forward, prompts, options);
    for (const EffectTable& table : results.tables) {
      std::vector<double> most(size(layers * layers), 0.0), sum = most, token_sum = most;
      std::vector<double> out(size(layers), 0.0), out_sum = out, out_token_sum = out;
      std::int64_t used = 0, tokens = 0;
      for (const auto& prompt : ids) {
        const auto n = static_cast<std::int64_t>(prompt.size());
        std::vector<Plain> plains;
        if (table.variant == EffectVariant::current) {
          plains.push_back(plain_effects(forward, prompt, n, 1, part));
          tokens += n - 1;
        } else {
          for (const std::int64_t t : options.split_at) {
            if (t >= n) continue;
            plains.push_back(plain_effects(forward, prompt, t, t, part));
            tokens += n - t;
          }
        }
        if (plains.empty()) continue;
        ++used;
        for (std::size_t i = 0; i < most.size(); ++i) {
          double m = 0;
          for (const Plain& p : plains) {
            m = std::max(m, p.effect[i]);
            token_sum[i] += p.effect_sum[i];
          }
          most[i] = std::max(most[i], m);
          sum[i] += m;
        }
        for (std::size_t i = 0; i < out.size(); ++i) {
          double m = 0;
          for (const Plain& p : plains) {
            m = std::max(m, p.out[i]);
            out_token_sum[i] += p.out_sum[i];
          }
          out[i] = std::max(out[i], m);
          out_sum[i] += m;
        }
      }
      const std::string what = GetParam().label + " " + std::string(effect_part_name(part)) + " " +
                               std::string(effect_variant_name(table.variant));
      EXPECT_EQ(table.prompts, used) << what;
      EXPECT_EQ(table.tokens, tokens) << what;
      EXPECT_EQ(table.effect[0], most) << what;
      EXPECT_EQ(table.out[0], out) << what;
      for (double& v : sum) v /= static_cast<double>(used);
      for (double& v : out_sum) v /= static_cast<double>(used);
      EXPECT_EQ(table.effect[1], sum) << what;
      EXPECT_EQ(table.out[1], out_sum) << what;
      // Sums over tokens may differ in their order.
      for (std::size_t i = 0; i < token_sum.size(); ++i) {
        EXPECT_NEAR(table.effect[2][i], token_sum[i] / static_cast<double>(tokens),
                    1e-13 * std::max(1.0, most[i]))
            << what;
      }
      for (std::size_t i = 0; i < out.size(); ++i) {
        EXPECT_NEAR(table.out[2][i], out_token_sum[i] / static_cast<double>(tokens), 1e-13) << what;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Canonical, Families, ::testing::ValuesIn(testing::varied_configs()));

void expect_same(const LayerEffects& a, const LayerEffects& b) {
  ASSERT_EQ(a.tables.size(), b.tables.size());
  for (std::size_t v = 0; v < a.tables.size(); ++v) {
    EXPECT_EQ(a.tables[v].effect, b.tables[v].effect);
    EXPECT_EQ(a.tables[v].out, b.tables[v].out);
    EXPECT_EQ(a.tables[v].tokens, b.tables[v].tokens);
  }
}

TEST(LayerEffects, DependOnNeitherThreadsNorBatchesNorMemory) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = as_prompts(effects_golden()["prompts"]);
  LayerEffectsOptions options;
  options.variants = {EffectVariant::future, EffectVariant::current, EffectVariant::local,
                      EffectVariant::current_local};
  const int before = threads();
  set_threads(1);
  const LayerEffects one = measure_layer_effects(forward, prompts, options);
  set_threads(2);
  expect_same(measure_layer_effects(forward, prompts, options), one);
  options.batch_tokens = 45;
  options.memory = 0;
  expect_same(measure_layer_effects(forward, prompts, options), one);
  set_threads(before);
}

// With nothing between two layers the local effect is the whole one: their inputs differ only by
// the rounding of h + Δ − Δ.
TEST(LayerEffects, LocalIsWholeForNeighbours) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = as_prompts(effects_golden()["prompts"]);
  LayerEffectsOptions options;
  options.variants = {EffectVariant::future, EffectVariant::local, EffectVariant::current,
                      EffectVariant::current_local};
  const LayerEffects r = measure_layer_effects(forward, prompts, options);
  for (std::size_t v = 0; v < 4; v += 2) {
    for (std::size_t i = 0; i < 3; ++i) {
      for (const std::size_t at : {0 * 3 + 1, 1 * 3 + 2}) {
        EXPECT_NEAR(r.tables[v].effect[i][at], r.tables[v + 1].effect[i][at], 2e-5);
      }
      EXPECT_GT(std::abs(r.tables[v].effect[i][2] - r.tables[v + 1].effect[i][2]), 1e-2);
    }
  }
}

// A layer whose attention and MLP write nothing: E[s, ·] and E_out[s] are exactly 0, and nobody
// else's are.
TEST(LayerEffects, AnIdentityLayerHasNone) {
  const Model model = tiny_model({.label = "identity", .n_layers = 4});
  Forward forward(model);
  const auto prompts = as_prompts(random_prompts({20, 15}, 61, 9));
  LayerEffectsOptions options;
  options.variants = {EffectVariant::future, EffectVariant::current};
  const LayerEffects full = measure_layer_effects(forward, prompts, options);
  for (const EffectTable& t : full.tables) {
    for (std::int64_t s = 0; s < 3; ++s) {
      for (std::int64_t l = s + 1; l < 4; ++l) EXPECT_GT(t.effect[0][size(s * 4 + l)], 1e-3);
      EXPECT_GT(t.out[0][size(s)], 1e-4);
    }
    for (std::int64_t s = 0; s < 4; ++s) {
      for (std::int64_t l = 0; l < s; ++l) EXPECT_EQ(t.effect[0][size(s * 4 + l)], 0.0);
    }
  }
  const Model passive = testing::with_identity_layer({.label = "identity", .n_layers = 4}, 2);
  Forward passive_forward(passive);
  const LayerEffects r = measure_layer_effects(passive_forward, prompts, options);
  for (const EffectTable& t : r.tables) {
    for (std::int64_t s = 0; s < 4; ++s) {
      for (std::int64_t l = s; l < 4; ++l) {
        const double e = t.effect[0][size(s * 4 + l)];
        const bool diagonal_of_current = t.variant == EffectVariant::current && s == l;
        if (s == 2 || l == 2) {
          EXPECT_EQ(e, 0.0) << s << " on " << l;
        } else if (diagonal_of_current) {
          EXPECT_EQ(e, 1.0);
        } else if (l > s) {
          EXPECT_GT(e, 1e-3) << s << " on " << l;
        }
      }
    }
    EXPECT_EQ(t.out[0][2], 0.0);
    EXPECT_GT(t.out[0][1], 1e-4);
  }
}

std::vector<Prompt> planted_prompts(const Model& model, const std::string& name) {
  return read_prompts(
      std::filesystem::path(LAMINA_SOURCE_DIR) / "data/planted" / name / "prompts.jsonl",
      model.tokenizer(), model.config().d_vocab);
}

// Indirect object: names are compared and flagged where they stand (layer 0), the last token looks
// the flag up (layer 1) and moves the name (layer 2). So of all that happens before the last token
// only layer 0 matters for it, and at the last token all three do.
TEST(LayerEffects, OfAPlantedCircuitAreWhereItIs) {
  const Model model =
      Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "data/planted/indirect_object");
  Forward forward(model);
  for (const Prompt& prompt : planted_prompts(model, "indirect_object")) {
    LayerEffectsOptions options;
    options.split_at = {static_cast<std::int64_t>(prompt.ids.size()) - 1};
    options.variants = {EffectVariant::future, EffectVariant::current};
    const LayerEffects r = measure_layer_effects(forward, {&prompt, 1}, options);
    const EffectTable &future = r.tables[0], &current = r.tables[1];
    EXPECT_GT(future.out[0][0], 0.5) << prompt.id;
    EXPECT_LT(future.out[0][1], 1e-3) << prompt.id;
    EXPECT_EQ(future.out[0][2], 0.0) << prompt.id;
    for (const double e : current.out[0]) EXPECT_GT(e, 0.5) << prompt.id;
    EXPECT_LT(future.out_depth_score[0], 0.01) << prompt.id;
  }
}

TEST(LayerEffects, SplitsAndRefusals) {
  const Model model = golden_model();
  Forward forward(model);
  Prompt prompt = as_prompts(random_prompts({100}, 90, 1))[0];
  LayerEffectsOptions options;
  // 8 … 88: eleven candidates; the middles of four parts of them.
  EXPECT_EQ(effect_splits(prompt, options), (std::vector<std::int64_t>{16, 40, 56, 80}));
  prompt.given = 77;
  options.split_at_answer = true;
  EXPECT_EQ(effect_splits(prompt, options), (std::vector<std::int64_t>{77}));
  options = {};
  prompt.ids.resize(12);
  EXPECT_EQ(effect_splits(prompt, options), (std::vector<std::int64_t>{6}));
  prompt.ids.resize(3);
  EXPECT_EQ(effect_splits(prompt, options), (std::vector<std::int64_t>{2}));
  prompt.ids.resize(2);
  EXPECT_TRUE(effect_splits(prompt, options).empty());
  EXPECT_THROW(measure_layer_effects(forward, {&prompt, 1}, options), Error);
  options.split_at = {1};
  EXPECT_THROW(measure_layer_effects(forward, {&prompt, 1}, options), UsageError);
  options = {};
  options.part = EffectPart::mlp;
  options.variants = {EffectVariant::local};
  EXPECT_THROW(measure_layer_effects(forward, {&prompt, 1}, options), UsageError);
  EXPECT_THROW(parse_effect_variant("past"), UsageError);
  EXPECT_DOUBLE_EQ(depth_score(std::vector<double>{1, 1, 2}), 5.0 / 4);
  EXPECT_TRUE(std::isnan(depth_score(std::vector<double>{0, 0})));
}

}  // namespace
}  // namespace lamina
