// The depth analyses: against depth.json (make_depth_goldens.py), and on streams made so that the
// answer is known.

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numbers>
#include <random>

#include "depth_support.h"
#include "lamina/core/threads.h"
#include "lamina/probes/angular.h"
#include "lamina/probes/coding_rate.h"
#include "lamina/probes/contributions.h"
#include "lamina/probes/exit_layers.h"
#include "lamina/probes/growth.h"
#include "lamina/probes/magnitudes.h"
#include "lamina/probes/sparsity.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::GoldenRun;
using testing::goldens;
using testing::MadeStream;

constexpr const char* kModels[] = {"llama3", "gpt2", "lamina_parallel", "lamina_relu",
                                   "lamina_post"};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Choice {
  const char* label;
  TokenChoice tokens;
};
constexpr Choice kChoices[] = {{"all", {0, 1}}, {"some", {1, 3}}};

// |got − want| ≤ tolerance · max(1, |want|).
void expect_near(const std::vector<double>& got, const nlohmann::json& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (want[i].is_null()) {
      EXPECT_TRUE(std::isnan(got[i])) << what << " [" << i << "]";
      continue;
    }
    const double value = want[i].get<double>();
    EXPECT_NEAR(got[i], value, tolerance * std::max(1.0, std::abs(value)))
        << what << " [" << i << "]";
  }
}

void expect_contributions(const ContributionResults& r, const nlohmann::json& want,
                          double tolerance) {
  expect_near(r.attn_norm, want["attn_norm"], tolerance, "attn_norm");
  expect_near(r.mlp_norm, want["mlp_norm"], tolerance, "mlp_norm");
  expect_near(r.block_norm, want["block_norm"], tolerance, "block_norm");
  expect_near(r.attn_ratio, want["attn_ratio"], tolerance, "attn_ratio");
  expect_near(r.mlp_ratio, want["mlp_ratio"], tolerance, "mlp_ratio");
  expect_near(r.block_ratio, want["block_ratio"], tolerance, "block_ratio");
  expect_near(r.attn_cos, want["attn_cos"], tolerance, "attn_cos");
  expect_near(r.mlp_cos, want["mlp_cos"], tolerance, "mlp_cos");
  expect_near(r.block_cos, want["block_cos"], tolerance, "block_cos");
  expect_near(r.stream_cos, want["stream_cos"], tolerance, "stream_cos");
  expect_near(r.attn_norm_max, want["attn_norm_max"], tolerance, "attn_norm_max");
  expect_near(r.mlp_norm_max, want["mlp_norm_max"], tolerance, "mlp_norm_max");
  expect_near(r.block_norm_max, want["block_norm_max"], tolerance, "block_norm_max");
  expect_near(r.attn_ratio_max, want["attn_ratio_max"], tolerance, "attn_ratio_max");
  expect_near(r.mlp_ratio_max, want["mlp_ratio_max"], tolerance, "mlp_ratio_max");
  expect_near(r.block_ratio_max, want["block_ratio_max"], tolerance, "block_ratio_max");
}

void expect_growth(const GrowthResults& r, const nlohmann::json& want, double tolerance) {
  expect_near(r.norm, want["norm"], tolerance, "norm");
  expect_near(r.norm_max, want["norm_max"], tolerance, "norm_max");
  expect_near(r.rms, want["rms"], tolerance, "rms");
  expect_near(r.variance, want["variance"], tolerance, "variance");
  expect_near(r.pooled_variance, want["pooled_variance"], tolerance, "pooled_variance");
  expect_near(r.growth, want["growth"], tolerance, "growth");
}

void expect_angular(const AngularResults& r, const nlohmann::json& want, double tolerance) {
  nlohmann::json flat = nlohmann::json::array();
  for (const auto& row : want) flat.insert(flat.end(), row.begin(), row.end());
  expect_near(r.distance, flat, tolerance, "angular");
}

// The recorded values of the reference, read as they are: only the analyses' own arithmetic is
// between the two. Sums of a few thousand doubles: 1e-12.
TEST(Depth, EqualsNumpyOnRecordedValues) {
  for (const char* name : kModels) {
    GoldenRun run(name);
    const ModelConfig& config = run.config();
    for (const Choice& choice : kChoices) {
      SCOPED_TRACE(std::string(name) + " " + choice.label);
      const nlohmann::json& want = goldens()[name][choice.label];
      ContributionProbe contributions(config, choice.tokens);
      GrowthProbe growth(config, choice.tokens);
      AngularProbe angular(config, choice.tokens);
      SparsityOptions sparse = default_sparsity(config);
      sparse.tokens = choice.tokens;
      SparsityProbe sparsity(config, sparse);
      MagnitudeProbe magnitudes(config, choice.tokens);
      CodingRateProbe unit(config, {0.5, true, choice.tokens});
      CodingRateProbe raw(config, {0.1, false, choice.tokens});
      for (Probe* probe : std::initializer_list<Probe*>{&contributions, &growth, &angular,
                                                        &sparsity, &magnitudes, &unit, &raw}) {
        run.observe(*probe);
      }
      EXPECT_EQ(contributions.results().tokens, want["tokens"]);
      expect_contributions(contributions.results(), want["contributions"], 1e-12);
      expect_growth(growth.results(), want["growth"], 1e-12);
      expect_angular(angular.results(), want["angular"], 1e-12);

      const SparsityResults s = sparsity.results();
      for (std::int64_t l = 0; l < s.layers; ++l) {
        std::int64_t active = 0, never = 0;
        for (std::int64_t i = 0; i < s.neurons; ++i) {
          const std::int64_t count = want["sparsity"][l][i];
          EXPECT_EQ(s.counts[l * s.neurons + i], count) << "layer " << l << " neuron " << i;
          active += count;
          never += count == 0;
        }
        EXPECT_DOUBLE_EQ(s.active[l],
                         static_cast<double>(active) / static_cast<double>(s.tokens * s.neurons));
        EXPECT_EQ(s.never[l], never);
      }

      const MagnitudeResults m = magnitudes.results();
      for (std::int64_t o = 0; o < 3; ++o) {
        const nlohmann::json& one = want["magnitudes"][kMagnitudeOutputs[o]];
        for (std::int64_t l = 0; l < m.layers; ++l) {
          for (std::int64_t b = 0; b < MagnitudeResults::kBins; ++b) {
            EXPECT_EQ(m.histogram[(o * m.layers + l) * MagnitudeResults::kBins + b],
                      one["histogram"][l][b]);
          }
          EXPECT_NEAR(m.top_share[o * m.layers + l], one["top"][l], 1e-12);
          EXPECT_EQ(m.half_share[o * m.layers + l], one["half"][l]);
          const auto first = m.mean[o].begin() + l * m.width[o];
          expect_near({first, first + m.width[o]}, one["mean"][l], 1e-12, "mean magnitude");
        }
      }
      // Products of float rows of norm 1 add up errors of 1e-7 in entries of the matrix, times
      // D/ε² = 100 in what the determinant is taken of.
      expect_near(unit.results().rate, want["unit_rate"], 2e-6, "coding rate");
      expect_near(raw.results().rate, want["raw_rate"], 1e-12, "coding rate of raw rows");
    }
  }
}

// The whole way: the engine computes the streams in float.
TEST(Depth, EqualsNumpyLive) {
  for (const char* name : kModels) {
    SCOPED_TRACE(name);
    GoldenRun run(name);
    Forward forward(run.model());
    const nlohmann::json& want = goldens()[name]["all"];
    ContributionProbe contributions(run.config());
    GrowthProbe growth(run.config());
    AngularProbe angular(run.config());
    Probe* const probes[] = {&contributions, &growth, &angular};
    run_probes(probes, forward, run.prompts());
    expect_contributions(contributions.results(), want["contributions"], 1e-5);
    expect_growth(growth.results(), want["growth"], 1e-5);
    expect_angular(angular.results(), want["angular"], 1e-5);
  }
}

// Their function ran in float32. Its mean norms are left out: it never adds up the sums of norms,
// so that they are those of the last prompt over the tokens of all.
TEST(Depth, EqualsTheAuthorsCode) {
  GoldenRun run("llama3");
  ContributionProbe contributions(run.config());
  GrowthProbe growth(run.config());
  run.observe(contributions);
  run.observe(growth);
  const ContributionResults r = contributions.results();
  const nlohmann::json& want = goldens()["authors"];
  const std::pair<const char*, const std::vector<double>*> both[] = {
      {"attn_ratio", &r.attn_ratio},
      {"mlp_ratio", &r.mlp_ratio},
      {"block_ratio", &r.block_ratio},
      {"attn_cos", &r.attn_cos},
      {"mlp_cos", &r.mlp_cos},
      {"block_cos", &r.block_cos},
      {"stream_cos", &r.stream_cos},
      {"attn_norm_max", &r.attn_norm_max},
      {"mlp_norm_max", &r.mlp_norm_max},
      {"attn_ratio_max", &r.attn_ratio_max},
      {"mlp_ratio_max", &r.mlp_ratio_max},
  };
  for (const auto& [name, got] : both) expect_near(*got, want[name], 1e-6, name);
  expect_near(growth.results().norm_max, want["norm_max"], 1e-6, "norm_max");
}

TEST(Depth, ExitsEqualTheModelsOwnHead) {
  for (const char* name : {"llama3", "gpt2"}) {
    GoldenRun run(name);
    Forward forward(run.model());
    const std::unique_ptr<Readout> readout = model_readout(forward);
    for (const Choice& choice : kChoices) {
      for (std::uint64_t bytes :
           {std::uint64_t{1}, std::uint64_t{1} << 11, std::uint64_t{1} << 26}) {
        SCOPED_TRACE(std::string(name) + " " + choice.label);
        ExitProbe probe(run.config(), *readout, {choice.tokens, bytes});
        run.observe(probe);
        const ExitResults& r = probe.results();
        const nlohmann::json& want = goldens()[name][choice.label]["exit"];
        EXPECT_EQ(r.tokens, goldens()[name][choice.label]["tokens"]);
        EXPECT_EQ(r.targets, want["targets"]);
        EXPECT_EQ(r.agree, want["agree"].get<std::vector<std::int64_t>>());
        EXPECT_EQ(r.correct, want["correct"].get<std::vector<std::int64_t>>());
        EXPECT_EQ(r.exits, want["exits"].get<std::vector<std::int64_t>>());
      }
    }
  }
}

// --- streams with known answers ---

TEST(DepthPlanted, LayersThatDoNothing) {
  MadeStream made(4, 24, 5);
  made.layers([](std::int64_t, const std::vector<float>& h) { return h; });
  ContributionProbe contributions(made.config());
  GrowthProbe growth(made.config());
  AngularProbe angular(made.config());
  made.observe({&contributions, &growth, &angular});
  const ContributionResults c = contributions.results();
  for (std::size_t l = 0; l < 4; ++l) {
    EXPECT_EQ(c.attn_ratio[l], 0.0);
    EXPECT_EQ(c.mlp_ratio[l], 0.0);
    EXPECT_EQ(c.block_ratio[l], 0.0);
    EXPECT_EQ(c.block_cos[l], 0.0);  // of a zero vector, as torch has it
    EXPECT_NEAR(c.stream_cos[l], 1.0, 1e-15);
  }
  EXPECT_EQ(growth.results().growth, std::vector<double>(5, 1.0));
  const AngularResults a = angular.results();
  for (std::int64_t i = 0; i < 4; ++i) {
    // A cosine one rounding below 1 is an angle of √(2·2⁻⁵²).
    for (std::int64_t n = 1; i + n <= 4; ++n) EXPECT_LE(a.distance[i * 4 + n - 1], 1e-8);
  }
}

TEST(DepthPlanted, LayersThatTurnByAKnownAngle) {
  const double angle[] = {0.5, 0.1, 0.05, 0.4};
  MadeStream made(4, 2, 7);
  made.layers([&](std::int64_t l, const std::vector<float>& h) {
    const double c = 2 * std::cos(angle[l]), s = 2 * std::sin(angle[l]);  // and grow twofold
    return std::vector<float>{static_cast<float>(c * h[0] - s * h[1]),
                              static_cast<float>(s * h[0] + c * h[1])};
  });
  AngularProbe angular(made.config());
  GrowthProbe growth(made.config());
  made.observe({&angular, &growth});
  const AngularResults a = angular.results();
  for (std::int64_t i = 0; i < 4; ++i) {
    double sum = 0;
    for (std::int64_t n = 1; i + n <= 4; ++n) {
      sum += angle[i + n - 1];
      EXPECT_NEAR(a.distance[i * 4 + n - 1], sum / std::numbers::pi, 1e-6);
    }
    for (std::int64_t n = 5 - i; n <= 4; ++n) EXPECT_TRUE(std::isnan(a.distance[i * 4 + n - 1]));
  }
  EXPECT_EQ(a.first, (std::vector<std::int32_t>{2, 1, 1, 0}));
  const GrowthResults g = growth.results();
  for (std::size_t s = 1; s < 5; ++s) EXPECT_NEAR(g.norm[s] / g.norm[s - 1], 2.0, 1e-6);
}

TEST(DepthPlanted, CodingRates) {
  const std::int64_t d = 6;
  MadeStream made(2, d, 6);
  made.layers([&](std::int64_t l, const std::vector<float>& h) {
    std::vector<float> out(h.size());
    // Layer 0 gives every token a direction of its own, layer 1 all of them the same.
    out[l == 0 ? static_cast<std::size_t>(made.token()) : 3] = 5.0F;
    return out;
  });
  for (double epsilon : {0.5, 0.1}) {
    CodingRateProbe unit(made.config(), {epsilon, true, {}});
    CodingRateProbe raw(made.config(), {epsilon, false, {}});
    made.observe({&unit, &raw});
    const double e2 = epsilon * epsilon, n = static_cast<double>(d);
    EXPECT_NEAR(unit.results().rate[1], 0.5 * n * std::log(1 + 1 / e2), 1e-10);
    EXPECT_NEAR(unit.results().rate[2], 0.5 * std::log(1 + n / e2), 1e-10);
    EXPECT_NEAR(raw.results().rate[1], 0.5 * n * std::log(1 + 25 / e2), 1e-10);
    EXPECT_NEAR(raw.results().rate[2], 0.5 * std::log(1 + n * 25 / e2), 1e-10);
  }
}

TEST(DepthPlanted, SparsityAndMagnitudesOfAFewNeurons) {
  MadeStream made(1, 8, 4);
  made.mlp_post([](std::int64_t token, std::int64_t neuron) {
    return neuron <= token ? -2.0F : 0.0F;  // token t uses neurons 0 … t
  });
  SparsityProbe sparsity(made.config(), {0.0, false, {}});
  SparsityProbe half(made.config(), {1.0, true, {}});  // above its own RMS
  SparsityProbe none(made.config(), {2.0, false, {}});
  MagnitudeProbe magnitudes(made.config());
  made.observe({&sparsity, &half, &none, &magnitudes});
  const SparsityResults s = sparsity.results();
  EXPECT_EQ(s.counts, (std::vector<std::int64_t>{4, 3, 2, 1, 0, 0, 0, 0}));
  EXPECT_EQ(s.active[0], 10.0 / 32);
  EXPECT_EQ(s.never[0], 4);
  EXPECT_EQ(half.results().counts, s.counts);
  EXPECT_EQ(none.results().active[0], 0.0);
  EXPECT_EQ(none.results().never[0], 8);
  const MagnitudeResults m = magnitudes.results();
  // u·8 of token t: 8/(t + 1) on t + 1 units: 8, 4, 4, 8/3 ×3, 2 ×4.
  const std::int64_t* bins = m.histogram.data() + 2 * MagnitudeResults::kBins;
  EXPECT_EQ(bins[0], 32 - 10);
  EXPECT_EQ(bins[1 - MagnitudeResults::kFirstOctave + 1], 3 + 4);  // 2 ≤ u < 4
  EXPECT_EQ(bins[2 - MagnitudeResults::kFirstOctave + 1], 2);
  EXPECT_EQ(bins[3 - MagnitudeResults::kFirstOctave + 1], 1);
  EXPECT_DOUBLE_EQ(m.mean[2][0], (8 + 4 + 8.0 / 3 + 2) / 4);
  EXPECT_DOUBLE_EQ(m.top_share[2], (8 + 4 + 8.0 / 3 + 2) / 32);
  EXPECT_DOUBLE_EQ(m.half_share[2], 1.0 / 8);
}

// --- the fold ---

using MakeProbe = std::function<std::unique_ptr<Probe>(const ModelConfig&, const Readout&)>;
struct Kind {
  const char* label;
  MakeProbe make;
  // Everything it found; equal if the results are.
  std::function<std::vector<double>(const Probe&)> numbers;
  bool sums;  // of doubles: shards may differ by rounding
};

void append(std::vector<double>& to, const auto& from) {
  for (const auto& value : from) to.push_back(static_cast<double>(value));
}

const std::vector<Kind>& kinds() {
  static const TokenChoice choice{1, 2};
  static const std::vector<Kind> all = {
      {"contributions",
       [](const ModelConfig& c, const Readout&) {
         return std::make_unique<ContributionProbe>(c, choice);
       },
       [](const Probe& p) {
         const ContributionResults r = dynamic_cast<const ContributionProbe&>(p).results();
         std::vector<double> out = {static_cast<double>(r.tokens)};
         for (const auto* v : {&r.attn_norm, &r.block_norm, &r.attn_ratio, &r.block_ratio,
                               &r.attn_cos, &r.block_cos, &r.stream_cos, &r.block_ratio_max}) {
           append(out, *v);
         }
         return out;
       },
       true},
      {"growth",
       [](const ModelConfig& c, const Readout&) {
         return std::make_unique<GrowthProbe>(c, choice);
       },
       [](const Probe& p) {
         const GrowthResults r = dynamic_cast<const GrowthProbe&>(p).results();
         std::vector<double> out = r.norm;
         for (const auto* v : {&r.norm_max, &r.rms, &r.variance, &r.pooled_variance}) {
           append(out, *v);
         }
         return out;
       },
       true},
      {"angular",
       [](const ModelConfig& c, const Readout&) {
         return std::make_unique<AngularProbe>(c, choice);
       },
       [](const Probe& p) { return dynamic_cast<const AngularProbe&>(p).results().least; }, true},
      {"sparsity",
       [](const ModelConfig& c, const Readout&) {
         SparsityOptions options = default_sparsity(c);
         options.tokens = choice;
         return std::make_unique<SparsityProbe>(c, options);
       },
       [](const Probe& p) {
         std::vector<double> out;
         append(out, dynamic_cast<const SparsityProbe&>(p).results().counts);
         return out;
       },
       false},
      {"magnitudes",
       [](const ModelConfig& c, const Readout&) {
         return std::make_unique<MagnitudeProbe>(c, choice);
       },
       [](const Probe& p) {
         const MagnitudeResults r = dynamic_cast<const MagnitudeProbe&>(p).results();
         std::vector<double> out = r.mean[0];
         append(out, r.mean[2]);
         append(out, r.histogram);
         return out;
       },
       true},
      {"coding rate",
       [](const ModelConfig& c, const Readout&) {
         return std::make_unique<CodingRateProbe>(c, CodingRateOptions{0.5, true, {1, 1}});
       },
       [](const Probe& p) { return dynamic_cast<const CodingRateProbe&>(p).results().rate; }, true},
      {"exit",
       [](const ModelConfig& c, const Readout& readout) {
         return std::make_unique<ExitProbe>(c, readout, ExitOptions{choice});
       },
       [](const Probe& p) {
         const ExitResults r = dynamic_cast<const ExitProbe&>(p).results();
         std::vector<double> out;
         append(out, r.agree);
         append(out, r.correct);
         append(out, r.exits);
         return out;
       },
       false},
  };
  return all;
}

std::vector<Prompt> made_prompts(std::int64_t d_vocab) {
  std::vector<Prompt> prompts;
  for (const auto& ids : testing::random_prompts({50, 1, 90, 64, 2, 110}, d_vocab, 11)) {
    Prompt& p = prompts.emplace_back();
    p.id = "p" + std::to_string(prompts.size());
    p.ids = ids;
    p.given = static_cast<std::int64_t>(ids.size());
  }
  return prompts;
}

// NaN equal to NaN.
bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) {
           return x == y || (std::isnan(x) && std::isnan(y));
         });
}

TEST(DepthFold, LiveRecordedThreadsBlocksAndShards) {
  for (const testing::TinyConfig& tiny : testing::varied_configs()) {
    const Model model = testing::tiny_model(tiny, 3);
    const ModelConfig& config = model.config();
    Forward forward(model);
    const std::unique_ptr<Readout> readout = model_readout(forward);
    const std::vector<Prompt> prompts = made_prompts(config.d_vocab);
    for (const Kind& kind : kinds()) {
      if (config.d_mlp == 0 && std::string(kind.label) == "sparsity") continue;
      if (config.norm_place == NormPlace::post && std::string(kind.label) == "exit") continue;
      SCOPED_TRACE(tiny.label + " " + kind.label);
      const auto run = [&](Probe& probe, const LiveOptions& options) {
        Probe* const probes[] = {&probe};
        run_probes(probes, forward, prompts, options);
        return kind.numbers(probe);
      };
      set_threads(1);
      const auto probe = kind.make(config, *readout);
      const std::vector<double> live = run(*probe, {});
      ASSERT_FALSE(live.empty());
      set_threads(2);
      LiveOptions small;
      small.batch_tokens = 1;
      EXPECT_TRUE(same(run(*kind.make(config, *readout), {}), live));
      EXPECT_TRUE(same(run(*kind.make(config, *readout), small), live));

      const auto merged = kind.make(config, *readout);
      for (std::int64_t first : {0, 2, 3}) {
        LiveOptions part;
        part.first_prompt = first;
        part.last_prompt = first == 0 ? 2 : first == 2 ? 3 : 6;
        const std::unique_ptr<Probe> shard = merged->fresh();
        run(*shard, part);
        merged->merge(*shard);
      }
      const std::vector<double> parts = kind.numbers(*merged);
      ASSERT_EQ(parts.size(), live.size());
      for (std::size_t i = 0; i < live.size(); ++i) {
        if (std::isnan(live[i])) continue;
        if (!kind.sums) {
          EXPECT_EQ(parts[i], live[i]);
        }
        // Other products of float rows in the coding rate; sums of doubles elsewhere.
        const double tolerance = std::string(kind.label) == "coding rate" ? 1e-6 : 1e-13;
        EXPECT_NEAR(parts[i], live[i], tolerance * std::max(1.0, std::abs(live[i])));
      }

      const testing::TempDir folder;
      testing::record(forward, prompts, folder.path() / "run.h5", merged->sites(config));
      const Recording recording = Recording::open(folder.path() / "run.h5");
      const auto recorded = kind.make(config, *readout);
      Probe* const probes[] = {recorded.get()};
      run_probes(probes, recording, 1);
      EXPECT_TRUE(same(kind.numbers(*recorded), live));
    }
  }
}

TEST(DepthFold, HostileInputIsNamed) {
  GoldenRun run("llama3");
  Forward forward(run.model());
  const std::unique_ptr<Readout> readout = model_readout(forward);
  const auto message = [](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.label);
    const auto probe = kind.make(run.config(), *readout);
    for (float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      ActivationBlock block = run.block();
      const Site site = probe->sites(run.config()).back();
      auto& values = block.sites[ActivationBlock::site_key(site)];
      // Prompt 2 begins at row 6; its position 5 is read by every probe here ((2 + 5 − 1) % 2: the
      // choice takes odd sums only where skip allows), so both of two neighbours are spoilt.
      for (std::int64_t row : {11, 12}) values.values[row * values.shape.row() + 3] = bad;
      const std::string got = message([&] { kind.make(run.config(), *readout)->observe(block); });
      EXPECT_NE(got.find("not finite"), std::string::npos) << got;
      EXPECT_NE(got.find("prompt \"2\", position "), std::string::npos) << got;
    }
    ActivationBlock block = run.block();
    const Site site = probe->sites(run.config()).back();
    block.sites[ActivationBlock::site_key(site)].values.pop_back();
    EXPECT_NE(message([&] { probe->observe(block); }), "no error");
    block.sites.erase(ActivationBlock::site_key(site));
    EXPECT_NE(message([&] { probe->observe(block); }), "no error");
    for (const Kind& other : kinds()) {
      if (&other == &kind) continue;
      const auto stranger = other.make(run.config(), *readout);
      EXPECT_NE(message([&] { probe->merge(*stranger); }).find("cannot be merged"),
                std::string::npos);
    }
  }
  EXPECT_THROW(GrowthProbe(run.config(), {-1, 1}), UsageError);
  EXPECT_THROW(GrowthProbe(run.config(), {0, 0}), UsageError);
  EXPECT_THROW(SparsityProbe(run.config(), {kNaN, false, {}}), UsageError);
  EXPECT_THROW(SparsityProbe(run.config(), {-1, false, {}}), UsageError);
  EXPECT_THROW(CodingRateProbe(run.config(), {0, true, {}}), UsageError);
  EXPECT_THROW(ExitProbe(GoldenRun("lamina_post").config(), *readout), UsageError);
}

TEST(DepthFold, NothingReadIsNaN) {
  GoldenRun run("llama3");
  GrowthProbe growth(run.config(), {1000, 1});
  AngularProbe angular(run.config(), {1000, 1});
  CodingRateProbe rate(run.config(), {0.5, true, {1000, 1}});
  for (Probe* probe : std::initializer_list<Probe*>{&growth, &angular, &rate}) run.observe(*probe);
  EXPECT_TRUE(std::isnan(growth.results().norm[0]));
  EXPECT_TRUE(std::isnan(growth.results().norm_max[0]));
  EXPECT_TRUE(std::isnan(angular.results().least[0]));
  EXPECT_EQ(angular.results().first[0], -1);
  EXPECT_TRUE(std::isnan(rate.results().rate[0]));
}

}  // namespace
}  // namespace lamina
