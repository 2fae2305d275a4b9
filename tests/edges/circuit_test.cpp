// Circuits of random models of every kind of block: what must hold exactly, and one way of
// computing against another.

#include "lamina/patching/circuit_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "lamina/core/error.h"
#include "lamina/patching/edges.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using ::testing::HasSubstr;

std::vector<testing::TinyConfig> edge_configs() {
  std::vector<testing::TinyConfig> configs;
  for (testing::TinyConfig& config : testing::varied_configs()) {
    if (config.norm_place == "post") continue;
    if (config.norm_place == "sandwich") config.out_bias = false;
    configs.push_back(config);
  }
  configs.push_back({.label = "attention only",
                     .n_kv_heads = 4,
                     .d_mlp = 0,
                     .norm = "none",
                     .norm_place = "none",
                     .positions = "learned",
                     .rotary_dim = 0,
                     .gated = false,
                     .final_norm = false});
  return configs;
}

std::vector<Pair> random_pairs(std::int64_t vocabulary) {
  std::vector<Pair> pairs;
  const std::int64_t first[] = {2, 0, 4, 1, 6, 3};
  const auto prompts = testing::random_prompts({6, 3, 7, 5, 7, 4}, vocabulary, 5);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    Pair pair{.id = std::to_string(p), .clean = prompts[p], .corrupted = prompts[p]};
    for (std::size_t t = static_cast<std::size_t>(first[p]); t < prompts[p].size(); t += 2)
      pair.corrupted[t] = static_cast<std::int32_t>((prompts[p][t] + 7) % vocabulary);
    pair.correct = {1, 2};
    pair.wrong = {3};
    pairs.push_back(pair);
  }
  pairs[5].corrupted = pairs[5].clean;  // nothing to patch
  return pairs;
}

class Circuits : public ::testing::TestWithParam<testing::TinyConfig> {
 protected:
  Circuits()
      : grouped_(testing::tiny_model(GetParam())),
        model_(grouped_.ungrouped()),
        forward_(model_),
        pairs_(random_pairs(model_.config().d_vocab)),
        metric_(MetricKind::logit_diff, pairs_, model_.config().d_vocab),
        edges_(static_cast<std::size_t>(EdgeGraph(GraphShape::of(model_.config())).edges())) {}

  std::vector<EdgeMask> random_circuits(const std::vector<double>& shares) const {
    std::mt19937_64 random(9);
    std::vector<EdgeMask> circuits;
    for (const double share : shares) {
      std::bernoulli_distribution in(share);
      EdgeMask mask(edges_);
      for (std::uint8_t& edge : mask) edge = in(random) ? 1 : 0;
      circuits.push_back(mask);
    }
    return circuits;
  }

  Model grouped_, model_;
  Forward forward_;
  std::vector<Pair> pairs_;
  Metric metric_;
  std::size_t edges_;
};

TEST_P(Circuits, TheWholeGraphIsTheCleanRunAndTheEmptyOneTheCorrupted) {
  CircuitRunner runner(forward_, pairs_, metric_);
  const std::vector<EdgeMask> both = {EdgeMask(edges_, 1), EdgeMask(edges_, 0)};
  const std::vector<double> values = runner.run(both);
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    EXPECT_EQ(values[p], runner.clean()[p]) << p;
    EXPECT_EQ(values[pairs_.size() + p], runner.corrupted()[p]) << p;
  }
  EXPECT_NE(runner.clean()[0], runner.corrupted()[0]);
  EXPECT_EQ(runner.clean()[5], runner.corrupted()[5]);
}

TEST_P(Circuits, TheWholeGraphIsTheCleanRunUnderEveryAblation) {
  for (const Ablation ablation : {Ablation::zero, Ablation::mean}) {
    CircuitRunner runner(forward_, pairs_, metric_, {.ablation = ablation});
    const EdgeMask all(edges_, 1);
    EXPECT_EQ(runner.run(std::span(&all, 1)), runner.clean());
  }
}

TEST_P(Circuits, AnEmptyGraphUnderZeroAblationHasOnlyTheBiases) {
  CircuitRunner runner(forward_, pairs_, metric_, {.ablation = Ablation::zero});
  const EdgeMask none(edges_, 0);
  const std::vector<double> values = runner.run(std::span(&none, 1));
  for (const double value : values) EXPECT_EQ(value, values[0]);  // of no prompt
}

TEST_P(Circuits, BatchesAndMemoryChangeNoBit) {
  const std::vector<EdgeMask> circuits = random_circuits({0.05, 0.3, 0.6, 0.9, 0.98});
  for (const Ablation ablation : {Ablation::patching, Ablation::mean}) {
    CircuitRunner wide(forward_, pairs_, metric_, {.ablation = ablation});
    CircuitRunner narrow(forward_, pairs_, metric_,
                         {.ablation = ablation, .batch_tokens = 7, .memory = 4096});
    EXPECT_EQ(wide.run(circuits), narrow.run(circuits));
    EXPECT_EQ(wide.without_each_edge(), narrow.without_each_edge());
  }
}

TEST_P(Circuits, WithoutEachEdgeIsTheCircuitWithoutIt) {
  for (const Ablation ablation : {Ablation::patching, Ablation::zero, Ablation::mean}) {
    CircuitRunner runner(forward_, pairs_, metric_, {.ablation = ablation});
    std::vector<EdgeMask> circuits(edges_, EdgeMask(edges_, 1));
    for (std::size_t e = 0; e < edges_; ++e) circuits[e][e] = 0;
    const std::vector<double> slow = runner.run_means(circuits);
    const std::vector<double> fast = runner.without_each_edge();
    for (std::size_t e = 0; e < edges_; ++e) {
      EXPECT_NEAR(fast[e], slow[e], 2e-5) << ablation_name(ablation) << " "
                                          << runner.graph().edge_name(static_cast<std::int64_t>(e));
    }
  }
}

TEST_P(Circuits, StartingAtALaterLayerIsTheSame) {
  CircuitRunner runner(forward_, pairs_, metric_);
  const EdgeGraph& graph = runner.graph();
  std::vector<EdgeMask> circuits = random_circuits({0.2, 0.5, 0.9});
  for (EdgeMask& mask : circuits) {
    for (std::int64_t e = 0; e < graph.edges(); ++e) {
      const ReadPoint point = graph.read_point(graph.read_of_edge(e));
      if (point.layer >= 0 && point.layer < 2) mask[static_cast<std::size_t>(e)] = 1;
    }
  }
  const std::vector<double> whole = runner.run(circuits), later = runner.run(circuits, 2);
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(later[i], whole[i], 1e-6) << i;
}

// The definition, node by node, without the engine's residual stream: every read point's input is
// summed up anew from what the sources added, by passes that are cut off after each layer.
TEST_P(Circuits, RemovingAllEdgesIntoOneReadGivesItTheCorruptedStream) {
  CircuitRunner runner(forward_, pairs_, metric_);
  const EdgeGraph& graph = runner.graph();
  const ModelConfig& config = model_.config();
  const std::int32_t layer = 1;
  const std::int64_t head = 2, read = graph.read_index({ReadPoint::Kind::v, layer, head});
  EdgeMask mask(edges_, 1);
  for (std::int64_t u = 0; u < graph.sources_of(read); ++u)
    mask[static_cast<std::size_t>(graph.edge_id(u, read))] = 0;
  const std::vector<double> got = runner.run(std::span(&mask, 1));

  // The same by hand: that head's v of the corrupted run written into the clean one.
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    Batch clean, corrupted;
    clean.add(pairs_[p].clean);
    corrupted.add(pairs_[p].corrupted);
    std::vector<float> v;
    Hooks take, give;
    take.read({SiteKind::v, layer},
              [&](SiteView& view) { v.assign(view.values.begin(), view.values.end()); });
    give.write({SiteKind::v, layer}, [&](SiteView& view) {
      for (std::int64_t t = 0; t < clean.tokens(); ++t) {
        const auto at = static_cast<std::size_t>((t * config.n_heads + head) * config.d_head);
        std::copy_n(v.begin() + static_cast<std::ptrdiff_t>(at), config.d_head,
                    view.values.begin() + static_cast<std::ptrdiff_t>(at));
      }
    });
    forward_.run(corrupted, take);
    forward_.run(clean, give);
    std::vector<float> logits(static_cast<std::size_t>(config.d_vocab));
    const std::int64_t last = clean.tokens() - 1;
    forward_.run_logits(std::span(&last, 1), logits);
    EXPECT_EQ(got[p], metric_.value(static_cast<std::int64_t>(p), logits)) << p;
  }
}

TEST_P(Circuits, AcdcDoesNotDependOnHowManyAreTriedAtOnce) {
  CircuitRunner runner(forward_, pairs_, metric_);
  const AcdcResult one = acdc(runner, {.threshold = 0.02, .at_once = 1});
  const AcdcResult many = acdc(runner, {.threshold = 0.02, .at_once = 7});
  EXPECT_EQ(one.circuit, many.circuit);
  EXPECT_EQ(one.change, many.change);
  const auto kept = std::count(one.circuit.begin(), one.circuit.end(), 1);
  EXPECT_GT(kept, 0);
  EXPECT_LT(kept, static_cast<std::int64_t>(edges_));
}

TEST_P(Circuits, ScoresDoNotDependOnBatches) {
  Forward grouped(grouped_);
  for (const EdgeGradient gradient : {EdgeGradient::eap, EdgeGradient::eap_ig}) {
    const std::vector<double> wide = score_edges(grouped, pairs_, metric_, {.gradient = gradient});
    const std::vector<double> narrow =
        score_edges(grouped, pairs_, metric_, {.gradient = gradient, .batch_tokens = 1});
    const std::vector<double> apart =
        score_edges(forward_, pairs_, metric_, {.gradient = gradient});
    for (std::size_t e = 0; e < edges_; ++e) {
      EXPECT_NEAR(wide[e], narrow[e], 1e-6 * (1 + std::abs(wide[e]))) << e;
      EXPECT_NEAR(wide[e], apart[e], 1e-6 * (1 + std::abs(wide[e]))) << e;
    }
  }
}

// Gradients along the way from the corrupted to the clean input add up to the difference of the
// metric: all edges out of the input together carry it.
TEST_P(Circuits, IntegratedGradientsAddUpToTheEffectOfTheInput) {
  CircuitRunner runner(forward_, pairs_, metric_);
  const EdgeGraph& graph = runner.graph();
  const auto of_input = [&](std::int64_t steps) {
    const std::vector<double> scores =
        score_edges(forward_, pairs_, metric_, {.gradient = EdgeGradient::eap_ig, .steps = steps});
    double sum = 0.0;
    for (std::int64_t read = 0; read < graph.reads(); ++read)
      sum += scores[static_cast<std::size_t>(graph.edge_id(0, read))];
    return sum;
  };
  double effect = 0.0, size = 0.0;
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    effect += (runner.clean()[p] - runner.corrupted()[p]) / static_cast<double>(pairs_.size());
    size += std::abs(runner.clean()[p] - runner.corrupted()[p]);
  }
  // The left sum's error falls with 1/m: extrapolated to m = ∞.
  EXPECT_NEAR(2 * of_input(400) - of_input(200), effect, 2e-3 * size);
}

INSTANTIATE_TEST_SUITE_P(Models, Circuits, ::testing::ValuesIn(edge_configs()));

TEST(CircuitRunner, RefusesWhatItCannotDo) {
  const auto message = [](const testing::TinyConfig& config, bool apart) -> std::string {
    const Model grouped = testing::tiny_model(config);
    const Model model = apart ? grouped.ungrouped() : testing::tiny_model(config);
    Forward forward(model);
    const std::vector<Pair> pairs = random_pairs(config.d_vocab);
    const Metric metric(MetricKind::logit_diff, pairs, config.d_vocab);
    try {
      CircuitRunner runner(forward, pairs, metric);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({}, false), HasSubstr("2 for 4"));
  EXPECT_EQ(message({}, true), "");
  EXPECT_THAT(message({.norm_place = "post"}, true), HasSubstr("there are no edges"));
  EXPECT_THAT(message({.norm_place = "sandwich", .out_bias = true}, true),
              HasSubstr("there are no edges"));
}

}  // namespace
}  // namespace lamina
