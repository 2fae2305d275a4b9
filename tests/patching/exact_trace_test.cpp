// Causal tracing and attention knock-out against whole runs with hooks.

#include <cmath>
#include <limits>

#include "exact/counter_noise.h"
#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lamina/patching/causal_trace.h"
#include "lamina/patching/knockout.h"
#include "patching/exact_support.h"

namespace lamina {
namespace {

using namespace testing;

std::vector<Pair> pairs_with_subjects(std::int64_t d_vocab) {
  std::vector<Pair> pairs = random_pairs({8, 11, 6}, d_vocab, 9);
  pairs[0].subject = {2, 4};
  pairs[1].subject = {1, 2};
  pairs[2].subject = {3, 6};
  return pairs;
}

class ExactTrace : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model_ = tiny_model(GetParam(), 4);
  Forward forward_{model_};
  std::vector<Pair> pairs_ = pairs_with_subjects(GetParam().d_vocab);
  Metric metric_{MetricKind::logprob, pairs_, GetParam().d_vocab};

  std::vector<Node> nodes() const {
    std::vector<Node> out;
    for (const Site site : all_sites(model_.config())) {
      if (site.kind != SiteKind::resid_post && site.kind != SiteKind::attn_out &&
          site.kind != SiteKind::mlp_out && site.kind != SiteKind::z) {
        continue;
      }
      for (std::int64_t t = -1; t < 11; ++t) out.push_back({.site = site, .position = t});
      if (site.kind == SiteKind::z) out.push_back({.site = site, .position = 5, .head = 1});
    }
    return out;
  }
};

INSTANTIATE_TEST_SUITE_P(Blocks, ExactTrace, ::testing::ValuesIn(patch_configs()),
                         [](const auto& test) { return plain_name(test.param.label); });

TEST_P(ExactTrace, EqualsWholeRunsBitForBit) {
  const ModelConfig& config = model_.config();
  const std::vector<Node> nodes = this->nodes();
  const TraceOptions options{.noise_sigmas = 2.0, .samples = 3, .window = 2, .seed = 5};
  const TraceResult result = trace_causes(forward_, pairs_, metric_, nodes, options);

  // σ over the subjects' embeddings.
  std::vector<double> values;
  for (const Pair& pair : pairs_) {
    const std::vector<float> embed = record_all(forward_, pair.clean).at({SiteKind::embed, -1});
    for (auto i = pair.subject->first * config.d_model; i < pair.subject->second * config.d_model;
         ++i) {
      values.push_back(static_cast<double>(embed[static_cast<std::size_t>(i)]));
    }
  }
  double mean = 0.0, square = 0.0;
  for (const double v : values) mean += v / static_cast<double>(values.size());
  for (const double v : values) square += (v - mean) * (v - mean);
  EXPECT_NEAR(result.sigma, std::sqrt(square / static_cast<double>(values.size() - 1)), 1e-12);

  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const Pair& pair = pairs_[p];
    const auto index = static_cast<std::int64_t>(p);
    EXPECT_EQ(result.clean[p], metric_.value(index, last_logits(forward_, pair.clean)));
    const AllSites clean = record_all(forward_, pair.clean);
    double noised = 0.0;
    std::vector<double> restored(nodes.size(), 0.0);
    for (std::uint64_t sample = 0; sample < 3; ++sample) {
      const auto add_noise = [&](SiteView& view) {
        const std::uint64_t key = mixed(mixed(options.seed, mixed_name(pair.id)), sample);
        const std::int64_t from = pair.subject->first * config.d_model;
        const std::int64_t end = pair.subject->second * config.d_model;
        for (std::int64_t i = from; i < end; ++i) {
          view.values[static_cast<std::size_t>(i)] +=
              static_cast<float>(2.0 * result.sigma) *
              normal_number(key, static_cast<std::uint64_t>(i - from));
        }
      };
      Hooks hooks;
      hooks.write({SiteKind::embed, -1}, add_noise);
      noised += metric_.value(index, last_logits(forward_, pair.clean, hooks));
      for (std::size_t n = 0; n < nodes.size(); ++n) {
        const Node& node = nodes[n];
        if (node.position >= pair.tokens()) continue;
        Hooks both;
        both.write({SiteKind::embed, -1}, add_noise);
        // A window of two: the layer before and the layer itself.
        const bool window =
            node.site.kind == SiteKind::attn_out || node.site.kind == SiteKind::mlp_out;
        for (std::int32_t layer = node.site.layer - (window ? 1 : 0); layer <= node.site.layer;
             ++layer) {
          if (layer < 0) continue;
          const Site site{node.site.kind, layer};
          both.write(site, [&, site](SiteView& view) {
            for_values(node, config, pair.tokens(),
                       [&](std::size_t i) { view.values[i] = clean.at(site)[i]; });
          });
        }
        restored[n] += metric_.value(index, last_logits(forward_, pair.clean, both));
      }
    }
    EXPECT_EQ(result.noised[p], noised / 3);
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      const double got = result.restored[n * pairs_.size() + p];
      if (nodes[n].position >= pair.tokens()) {
        EXPECT_TRUE(std::isnan(got));
      } else {
        EXPECT_EQ(got, restored[n] / 3) << node_name(nodes[n]) << ", pair " << p;
      }
    }
  }
  EXPECT_GT(result.runs, 0);
  EXPECT_GT(result.skipped, 0);
}

TEST_P(ExactTrace, MemoryAndThreadsChangeNoBit) {
  const std::vector<Node> nodes = this->nodes();
  TraceOptions options{.samples = 2, .window = 3, .seed = 1};
  const int before = threads();
  set_threads(1);
  const TraceResult one = trace_causes(forward_, pairs_, metric_, nodes, options);
  set_threads(2);
  options.memory = 1000;
  const TraceResult two = trace_causes(forward_, pairs_, metric_, nodes, options);
  set_threads(before);
  EXPECT_EQ(one.noised, two.noised);
  EXPECT_EQ(one.runs, two.runs);
  for (std::size_t i = 0; i < one.restored.size(); ++i) {
    EXPECT_TRUE(one.restored[i] == two.restored[i] || std::isnan(one.restored[i]));
  }
}

TEST_P(ExactTrace, KnockoutEqualsWholeRuns) {
  const ModelConfig& config = model_.config();
  std::vector<std::int32_t> layers;
  for (std::int32_t l = 0; l < config.n_layers; ++l) layers.push_back(l);
  struct Case {
    const char *from, *to;
    std::int64_t window;
  };
  for (const Case& c : {Case{"subject", "last", 1}, Case{"subject", "last", 3},
                        Case{"1-2", "3,-1", 2}, Case{"last", "first", 1}}) {
    KnockoutOptions options{.from = PositionSet::parse(c.from, "from"),
                            .to = PositionSet::parse(c.to, "to"),
                            .window = c.window};
    const KnockoutResult result = knock_out(forward_, pairs_, metric_, layers, options);
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const Pair& pair = pairs_[p];
      const std::int64_t length = pair.tokens();
      const std::set<std::int64_t> from = [&]() -> std::set<std::int64_t> {
        if (std::string(c.from) == "1-2") return {1, 2};
        if (std::string(c.from) == "last") return {length - 1};
        std::set<std::int64_t> subject;
        for (auto t = pair.subject->first; t < pair.subject->second; ++t) subject.insert(t);
        return subject;
      }();
      const std::set<std::int64_t> to =
          std::string(c.to) == "3,-1"    ? std::set<std::int64_t>{3, length - 1}
          : std::string(c.to) == "first" ? std::set<std::int64_t>{0}
                                         : std::set<std::int64_t>{length - 1};
      for (const std::int32_t centre : layers) {
        Hooks hooks;
        for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
          const std::int64_t half = c.window / 2;
          if (layer < centre - half || layer >= centre - half + c.window) continue;
          hooks.write({SiteKind::attn_scores, layer}, [&](SiteView& view) {
            for (std::int64_t h = 0; h < config.n_heads; ++h) {
              for (const std::int64_t q : to) {
                for (const std::int64_t k : from) {
                  view.values[static_cast<std::size_t>((h * view.queries + q) * view.keys + k)] =
                      -std::numeric_limits<float>::infinity();
                }
              }
            }
          });
        }
        EXPECT_EQ(
            result.knocked[static_cast<std::size_t>(centre) * pairs_.size() + p],
            metric_.value(static_cast<std::int64_t>(p), last_logits(forward_, pair.clean, hooks)))
            << c.from << " → " << c.to << ", layer " << centre << ", pair " << p;
      }
    }
    if (std::string(c.to) == "first" && config.causal) {
      EXPECT_EQ(result.runs, 0);  // the first token sees no later one
    }
  }
}

TEST_P(ExactTrace, MistakesAreNamed) {
  const std::vector<Node> nodes = this->nodes();
  const auto expect = [](const std::function<void()>& act, const std::string& text) {
    try {
      act();
      ADD_FAILURE() << "no error; expected: " << text;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  expect([&] { trace_causes(forward_, pairs_, metric_, nodes, {.samples = 0}); }, "0 noised runs");
  expect([&] { trace_causes(forward_, pairs_, metric_, nodes, {.window = 0}); }, "window of 0");
  std::vector<Node> pattern = {{.site = {SiteKind::pattern, 0}, .position = 1}};
  expect([&] { trace_causes(forward_, pairs_, metric_, pattern, {}); }, "cannot be restored");
  std::vector<Pair> plain = pairs_;
  plain[1].subject.reset();
  expect([&] { trace_causes(forward_, plain, metric_, nodes, {}); }, "pair 'p1' has no subject");
  expect([&] { PositionSet::parse("sub", "--knockout"); }, "--knockout: 'sub' of 'sub'");
  expect([&] { PositionSet::parse("", "--knockout"); }, "''");
  expect([&] { PositionSet::parse("4x", "--knockout"); }, "'4x'");
  const std::vector<std::int32_t> layers = {0};
  const auto knock = [&](const char* from, const char* to) {
    knock_out(forward_, pairs_, metric_, layers,
              {.from = PositionSet::parse(from, "f"), .to = PositionSet::parse(to, "t")});
  };
  expect([&] { knock("40", "last"); }, "position 40 of a prompt of 8 tokens");
  expect([&] { knock("5-2", "last"); }, "not in order");
  if (model_.config().causal) expect([&] { knock("0", "0"); }, "nothing to attend to");
}

TEST(CounterNoise, IsStandardNormalAndFreeOfCorrelation) {
  constexpr int kCount = 200'000;
  double mean = 0.0, square = 0.0, fourth = 0.0, neighbour = 0.0, other_key = 0.0;
  for (int i = 0; i < kCount; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    const double x = normal_number(7, index), y = normal_number(7, index + 1),
                 z = normal_number(8, index);
    mean += x, square += x * x, fourth += x * x * x * x, neighbour += x * y, other_key += x * z;
  }
  // Five standard errors each.
  const double error = 5.0 / std::sqrt(kCount);
  EXPECT_NEAR(mean / kCount, 0.0, error);
  EXPECT_NEAR(square / kCount, 1.0, error * std::sqrt(2.0));
  EXPECT_NEAR(fourth / kCount, 3.0, error * std::sqrt(96.0));
  EXPECT_NEAR(neighbour / kCount, 0.0, error);
  EXPECT_NEAR(other_key / kCount, 0.0, error);
}

}  // namespace
}  // namespace lamina
