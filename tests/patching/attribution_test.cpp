// What attribution patching and integrated gradients must satisfy on any model.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "lamina/core/error.h"
#include "lamina/patching/attribution.h"
#include "patching/support.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;
using testing::TinyConfig;

// Pairs of these lengths whose prompts differ from the second token on.
std::vector<Pair> random_pairs(const std::vector<std::int64_t>& lengths, std::int64_t vocab) {
  const auto clean = testing::random_prompts(lengths, vocab, 5);
  const auto corrupted = testing::random_prompts(lengths, vocab, 6);
  std::vector<Pair> pairs;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    Pair pair;
    pair.id = fmt::format("{}", i);
    pair.clean = clean[i];
    pair.corrupted = corrupted[i];
    pair.corrupted[0] = pair.clean[0];
    pair.correct = {static_cast<std::int32_t>(3 + i)};
    pair.wrong = {static_cast<std::int32_t>(20 + i), static_cast<std::int32_t>(40 + i)};
    pairs.push_back(pair);
  }
  return pairs;
}

// The slow way: whole runs of one pair, one node written by a hook.
class Oracle {
 public:
  Oracle(Forward& forward, const std::vector<Pair>& pairs, const Metric& metric)
      : forward_(forward), pairs_(pairs), metric_(metric) {}

  double metric_of(std::size_t pair, bool clean, const Hooks& hooks = {}) {
    const Batch batch = batch_of(pair, clean);
    forward_.run(batch, hooks);
    const std::int64_t last = batch.tokens() - 1;
    std::vector<float> logits(static_cast<std::size_t>(forward_.model().config().d_vocab));
    forward_.run_logits({&last, 1}, logits);
    return metric_.value(static_cast<std::int64_t>(pair), logits);
  }

  // metric(node moved by `share` of the way to the other prompt's value).
  double moved(std::size_t pair, const Node& node, bool base_is_clean, double share) {
    std::vector<float> other;
    Hooks reading;
    reading.read(node.site,
                 [&](SiteView& view) { other.assign(view.values.begin(), view.values.end()); });
    forward_.run(batch_of(pair, !base_is_clean), reading);
    Hooks writing;
    writing.write(node.site, [&](SiteView& view) {
      for (std::size_t i = 0; i < other.size(); ++i) {
        const auto [base_index, mine] = place(pair, node, base_is_clean, i, view);
        if (!mine) continue;
        const float from = view.values[base_index];
        if (other[i] != from) {
          view.values[base_index] = from + static_cast<float>(share) * (other[i] - from);
        }
      }
    });
    return metric_of(pair, base_is_clean, writing);
  }

  double exact(std::size_t pair, const Node& node, bool base_is_clean) {
    return moved(pair, node, base_is_clean, 1.0) - metric_of(pair, base_is_clean);
  }

  // What fp32 leaves uncertain in a difference of metrics.
  double rounding(std::size_t pair) {
    return 1e-5 + 2e-6 * (std::abs(metric_of(pair, true)) + std::abs(metric_of(pair, false)));
  }

  double slope(std::size_t pair, const Node& node, bool base_is_clean) {
    const double h = 0.001;
    return (moved(pair, node, base_is_clean, h) - moved(pair, node, base_is_clean, -h)) / (2 * h);
  }

 private:
  Batch batch_of(std::size_t pair, bool clean) const {
    Batch batch;
    batch.add(clean ? pairs_[pair].clean : pairs_[pair].corrupted);
    return batch;
  }

  // Where value i of the other run stands in the base run, and whether the node has it.
  std::pair<std::size_t, bool> place(std::size_t pair, const Node& node, bool base_is_clean,
                                     std::size_t i, const SiteView& view) const {
    if (view.shape.attention) {
      const auto t = static_cast<std::size_t>(view.keys);
      const auto head = static_cast<std::int64_t>(i / (t * t));
      const auto query = static_cast<std::int64_t>(i / t % t);
      return {
          i, (node.head < 0 || node.head == head) && (node.position < 0 || node.position == query)};
    }
    const auto row = static_cast<std::size_t>(view.shape.row());
    const auto at = static_cast<std::int64_t>(i / row);  // in the other prompt
    const auto inner = static_cast<std::int64_t>(i % row);
    std::int64_t clean = at, base = at;
    if (base_is_clean) {
      clean = -1;
      for (std::int64_t p = 0; p < pairs_[pair].tokens(); ++p) {
        if (pairs_[pair].corrupted_position(p) == at) clean = p;
      }
      base = clean;
    } else {
      base = pairs_[pair].corrupted_position(clean);
    }
    if (clean < 0) return {0, false};
    const bool mine = (node.position < 0 || node.position == clean) &&
                      (node.head < 0 || node.head == inner / view.shape.width) &&
                      (node.neuron < 0 || node.neuron == inner);
    return {static_cast<std::size_t>(base) * row + static_cast<std::size_t>(inner), mine};
  }

  Forward& forward_;
  const std::vector<Pair>& pairs_;
  const Metric& metric_;
};

struct Bench {
  explicit Bench(const TinyConfig& config, const std::vector<std::int64_t>& lengths = {9, 4, 6})
      : model(testing::tiny_model(config)),
        pairs(random_pairs(lengths, model.config().d_vocab)),
        metric(MetricKind::logit_diff, pairs, model.config().d_vocab),
        forward(model),
        oracle(forward, pairs, metric) {}
  Model model;
  std::vector<Pair> pairs;
  Metric metric;
  Forward forward;
  Oracle oracle;
};

TinyConfig without_norms() {
  return {.label = "no norms", .norm = "none", .norm_place = "none", .final_norm = false};
}

// Nodes that the metric is a linear function of: the estimate is exact patching.
TEST(Attribution, IsExactWhereTheModelIsLinear) {
  Bench s(without_norms());
  const std::int32_t last = static_cast<std::int32_t>(s.model.config().n_layers) - 1;
  std::vector<Node> nodes;
  for (const SiteKind kind : {SiteKind::resid_post, SiteKind::mlp_out, SiteKind::mlp_post}) {
    for (std::int64_t p = -1; p < 9; ++p) nodes.push_back({{kind, last}, p});
  }
  for (std::int64_t n = 0; n < 40; n += 7) nodes.push_back({{SiteKind::mlp_post, last}, -1, -1, n});
  for (const Direction direction : {Direction::denoise, Direction::noise}) {
    const bool clean = direction == Direction::noise;
    for (const std::int64_t steps : {0, 1, 3}) {
      for (const bool other : {false, true}) {
        const std::vector<double> got =
            attribute(s.forward, s.pairs, s.metric, nodes,
                      {.direction = direction, .gradient_at_other = other, .ig_steps = steps});
        double largest = 0;
        for (std::size_t n = 0; n < nodes.size(); ++n) {
          for (std::size_t p = 0; p < s.pairs.size(); ++p) {
            const double score = got[n * s.pairs.size() + p];
            if (nodes[n].position >= s.pairs[p].tokens()) {
              EXPECT_TRUE(std::isnan(score));
              continue;
            }
            const double exact = s.oracle.exact(p, nodes[n], clean);
            EXPECT_NEAR(score, exact, s.oracle.rounding(p)) << node_name(nodes[n]) << " pair " << p;
            largest = std::max(largest, std::abs(exact));
          }
        }
        EXPECT_GT(largest, 0.5);
      }
    }
  }
}

class AttributionOf : public ::testing::TestWithParam<TinyConfig> {};

// The estimate is the slope of the metric when the node moves towards the other value.
TEST_P(AttributionOf, IsTheSlopeAtEverySite) {
  Bench s(GetParam());
  const ModelConfig& config = s.model.config();
  std::vector<Node> nodes;
  for (const Site site : all_sites(config)) {
    const SiteShape shape = site_shape(site, config);
    nodes.push_back({site, 3});
    nodes.push_back({site, -1});
    if (shape.attention || shape.heads > 0) {
      nodes.push_back({site, 3, 1});
      nodes.push_back({site, -1, 0});
    }
    if (site.kind == SiteKind::mlp_pre || site.kind == SiteKind::mlp_post) {
      nodes.push_back({site, 3, -1, 5});
    }
  }
  const std::vector<double> got = attribute(s.forward, s.pairs, s.metric, nodes);
  std::map<Site, double> unit;  // the site's largest score
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    for (std::size_t p = 0; p < s.pairs.size(); ++p) {
      double& u = unit[nodes[n].site];
      u = std::max(u, std::abs(got[n * s.pairs.size() + p]));
    }
  }
  double largest = 0;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    for (std::size_t p = 0; p < 2; ++p) {
      const double slope = s.oracle.slope(p, nodes[n], false);
      // The fp32 metric (± 10⁻⁶ over steps of 0.002) limits the comparison; longer steps meet the
      // kinks of ReLU.
      const double allowed = 2e-3 + 0.02 * unit[nodes[n].site];
      EXPECT_NEAR(got[n * s.pairs.size() + p], slope, allowed) << node_name(nodes[n]) << " " << p;
      largest = std::max(largest, std::abs(slope));
    }
  }
  EXPECT_GT(largest, 0.1);
}

// Integrated gradients add up to the difference of the two runs.
TEST_P(AttributionOf, IntegratedGradientsAreComplete) {
  Bench s(GetParam());
  const auto error = [&](IgPath path, Site site, std::int64_t steps) {
    const Node all{site, -1};
    const std::vector<double> got =
        attribute(s.forward, s.pairs, s.metric, {&all, 1}, {.ig_steps = steps, .ig_path = path});
    double worst = 0;
    for (std::size_t p = 0; p < s.pairs.size(); ++p) {
      const double whole = s.oracle.metric_of(p, true) - s.oracle.metric_of(p, false);
      worst = std::max(worst, std::abs(got[p] - whole));
    }
    return worst;
  };
  const Site embed{SiteKind::embed, -1};
  const auto both = {std::pair{IgPath::inputs, embed},
                     {IgPath::node, embed},
                     {IgPath::node, Site{SiteKind::resid_pre, 1}},
                     {IgPath::node, Site{SiteKind::resid_post, 2}}};
  for (const auto& [path, site] : both) {
    const double coarse = error(path, site, 8), fine = error(path, site, 128);
    EXPECT_LT(fine, 2e-3 + 0.15 * coarse) << site_name(site);  // first order: 1/16
  }
  EXPECT_EQ(error(IgPath::inputs, embed, 8), error(IgPath::node, embed, 8));
}

// One step stands at the base run: the gradient there. The node's path starts in its own layer and
// must still give the bits of a whole pass.
TEST_P(AttributionOf, OneStepIsTheGradientAtTheBaseRun) {
  Bench s(GetParam());
  std::vector<Node> nodes;
  for (const Site site : all_sites(s.model.config())) nodes.push_back({site, 2});
  const std::vector<double> plain = attribute(s.forward, s.pairs, s.metric, nodes);
  EXPECT_EQ(plain, attribute(s.forward, s.pairs, s.metric, nodes,
                             {.ig_steps = 1, .ig_path = IgPath::inputs}));
  EXPECT_EQ(plain, attribute(s.forward, s.pairs, s.metric, nodes,
                             {.ig_steps = 1, .ig_path = IgPath::node}));
}

TEST_P(AttributionOf, IsTheSameInAnyBatchAndWithAnyThreads) {
  Bench s(GetParam());
  const std::vector<Site> sites = all_sites(s.model.config());
  const std::vector<Node> nodes = nodes_of(sites, {.position = true}, 9, s.model.config());
  for (const std::int64_t steps : {0, 2}) {
    AttributionOptions options{.rules = BackwardRules::relp(), .ig_steps = steps};
    options.batch_tokens = 1;
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    std::vector<double> alone = attribute(s.forward, s.pairs, s.metric, nodes, options);
    omp_set_num_threads(3);
    options.batch_tokens = 13;
    std::vector<double> some = attribute(s.forward, s.pairs, s.metric, nodes, options);
    options.batch_tokens = 4096;
    std::vector<double> all = attribute(s.forward, s.pairs, s.metric, nodes, options);
    const std::vector<double> last =
        attribute(s.forward, s.pairs, s.metric, {&nodes.back(), 1}, options);
    omp_set_num_threads(before);
    EXPECT_EQ(last[0], all[all.size() - s.pairs.size()]);
    for (auto* list : {&alone, &some, &all}) {
      for (double& v : *list) {
        if (std::isnan(v)) v = 1e300;  // equal only where the other is NaN too
      }
    }
    EXPECT_EQ(alone, all);
    EXPECT_EQ(some, all);
  }
}

TEST_P(AttributionOf, TurnsAroundWithTheDirection) {
  Bench s(GetParam());
  std::vector<Node> nodes;
  for (const Site site : all_sites(s.model.config())) nodes.push_back({site, 3});
  std::vector<double> there = attribute(s.forward, s.pairs, s.metric, nodes);
  const std::vector<double> back =
      attribute(s.forward, s.pairs, s.metric, nodes,
                {.direction = Direction::noise, .gradient_at_other = true});
  for (double& v : there) v = -v;
  EXPECT_EQ(there, back);
}

INSTANTIATE_TEST_SUITE_P(Models, AttributionOf, ::testing::ValuesIn(testing::varied_configs()));

TEST(Attribution, EqualPromptsGiveZero) {
  Bench s({.label = "gated"});
  for (Pair& pair : s.pairs) pair.corrupted = pair.clean;
  std::vector<Node> nodes;
  for (const Site site : all_sites(s.model.config())) nodes.push_back({site, -1});
  for (const double v : attribute(s.forward, s.pairs, s.metric, nodes)) EXPECT_EQ(v, 0.0);
}

// A corrupted prompt with two tokens more in front, mapped onto the clean one.
TEST(Attribution, FollowsTokenMaps) {
  for (const Direction direction : {Direction::denoise, Direction::noise}) {
    const bool clean = direction == Direction::noise;
    Bench s(without_norms());
    for (Pair& pair : s.pairs) {
      pair.corrupted.insert(pair.corrupted.begin(), {7, 8});
      for (std::int64_t p = 0; p < pair.tokens(); ++p) {
        pair.token_map.push_back(static_cast<std::int32_t>(p) + 2);
      }
    }
    const std::vector<Node> nodes = {{{SiteKind::mlp_out, 2}, 3},
                                     {{SiteKind::resid_post, 2}, 3},
                                     {{SiteKind::resid_post, 2}, 5},
                                     {{SiteKind::resid_post, 2}, -1}};
    for (const std::int64_t steps : {0, 2}) {
      const std::vector<double> got = attribute(s.forward, s.pairs, s.metric, nodes,
                                                {.direction = direction, .ig_steps = steps});
      double largest = 0;
      for (std::size_t n = 0; n < nodes.size(); ++n) {
        for (std::size_t p = 0; p < s.pairs.size(); ++p) {
          if (nodes[n].position >= s.pairs[p].tokens()) continue;
          const double exact = s.oracle.exact(p, nodes[n], clean);
          EXPECT_NEAR(got[n * s.pairs.size() + p], exact, s.oracle.rounding(p));
          largest = std::max(largest, std::abs(exact));
        }
      }
      EXPECT_GT(largest, 0.5);
    }
    const Node pattern{{SiteKind::pattern, 1}, 2};
    expect_message(message_of<UsageError>([&] {
                     attribute(s.forward, s.pairs, s.metric, {&pattern, 1});
                   }),
                   "blocks.1.attn.hook_pattern", "mapped");
  }
}

Conservation conserved(Bench& s, AttributionOptions options) {
  options.conservation = true;
  return attribute_with_runs(s.forward, s.pairs, s.metric, {}, options).conservation;
}

// Norms and patterns frozen, half of every gated product, act(x)/x: each step of a model without
// biases is then a homogeneous function, and relevance flows to the input without loss.
TEST(Conservation, HoldsWhereEveryStepIsLinear) {
  for (const std::string act : {"silu", "gelu_tanh"}) {
    TinyConfig config{.label = "gated", .act = act};
    config.norm_place = act == "silu" ? "pre" : "sandwich";
    Bench s(config);
    BackwardRules rules = BackwardRules::relp();
    rules.frozen_pattern = true;
    for (const bool other : {false, true}) {
      const Conservation whole = conserved(s, {.gradient_at_other = other, .rules = rules});
      for (std::size_t p = 0; p < s.pairs.size(); ++p) {
        EXPECT_EQ(whole.metric[p], s.oracle.metric_of(p, other));
        EXPECT_NEAR(whole.embed[p], whole.metric[p], 2e-5);
        for (std::size_t l = 0; l < 3; ++l) {
          EXPECT_NEAR(whole.resid_pre[l * s.pairs.size() + p], whole.metric[p], 2e-5);
        }
        EXPECT_GT(std::abs(whole.metric[p]), 0.01);
      }
      const Conservation gradient = conserved(s, {.gradient_at_other = other});
      EXPECT_GT(std::abs(gradient.embed[0] - gradient.metric[0]), 1e-2);
    }
  }
}

// With both runs' metrics and exact patching of the same nodes: the check of an attribution.
TEST(Attribution, IsComparedWithExactPatching) {
  Bench s({.label = "gated"}, {6, 4, 6});
  std::vector<Site> sites;
  for (const SiteKind kind : {SiteKind::resid_pre, SiteKind::mlp_out}) {
    for (std::int32_t layer = 0; layer < 3; ++layer) sites.push_back({kind, layer});
  }
  const std::vector<Node> nodes = nodes_of(sites, {.position = true}, 6, s.model.config());
  for (const std::int64_t steps : {0, 2}) {
    for (const bool other : {false, true}) {
      const Attributed got = attribute_with_runs(s.forward, s.pairs, s.metric, nodes,
                                                 {.gradient_at_other = other, .ig_steps = steps});
      for (std::size_t p = 0; p < s.pairs.size(); ++p) {
        EXPECT_EQ(got.base[p], s.oracle.metric_of(p, false));
        EXPECT_EQ(got.other[p], s.oracle.metric_of(p, true));
      }
      EXPECT_EQ(got.scores.size(), nodes.size() * 3);
    }
  }
  const std::vector<double> scores = attribute(s.forward, s.pairs, s.metric, nodes);
  const PatchResult exact = patch_exactly(s.forward, s.pairs, s.metric, nodes);
  std::vector<double> effect;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    effect.push_back(exact.patched[i] - exact.corrupted[i % 3]);
  }
  const std::vector<SiteAgreement> parts = agreement_by_site(nodes, scores, effect, 4, 100, 1);
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_FALSE(parts[0].kind.has_value());
  EXPECT_EQ(parts[1].kind, SiteKind::resid_pre);
  EXPECT_EQ(parts[2].kind, SiteKind::mlp_out);
  EXPECT_EQ(parts[0].by_node.nodes, 36);
  EXPECT_EQ(parts[0].by_pair.nodes, 3 * 36 - 12);  // the pair of 4 tokens lacks 2 of 6 positions
  EXPECT_EQ(parts[1].by_node.nodes, 18);
  // The same numbers from hand-made lists.
  std::vector<double> estimate, measured;
  for (std::size_t n = 18; n < 36; ++n) {
    const bool all = nodes[n].position < 4;
    const auto mean = [&](const std::vector<double>& v) {
      return all ? (v[n * 3] + v[n * 3 + 1] + v[n * 3 + 2]) / 3 : (v[n * 3] + v[n * 3 + 2]) / 2;
    };
    estimate.push_back(mean(scores));
    measured.push_back(mean(effect));
  }
  EXPECT_EQ(parts[2].by_node.pearson.value, agreement(estimate, measured, 4, 0, 1).pearson.value);
  EXPECT_EQ(agreement_by_site(std::span(nodes).first(18), std::span(scores).first(54),
                              std::span(effect).first(54), 4, 0, 1)
                .size(),
            1u);
  EXPECT_THROW(agreement_by_site(nodes, scores, std::span(effect).first(54), 4, 0, 1), UsageError);
}

TEST(Attribution, SamplesNodesWithoutRepeats) {
  const std::vector<std::size_t> some = sample_nodes(100, 30, 7);
  ASSERT_EQ(some.size(), 30u);
  for (std::size_t i = 1; i < some.size(); ++i) EXPECT_LT(some[i - 1], some[i]);
  EXPECT_LT(some.back(), 100u);
  EXPECT_EQ(some, sample_nodes(100, 30, 7));
  EXPECT_NE(some, sample_nodes(100, 30, 8));
  EXPECT_EQ(sample_nodes(5, 9, 1), (std::vector<std::size_t>{0, 1, 2, 3, 4}));
  // Every node is drawn about equally often: 3000 draws of 100, 30 ± 5.5 of each.
  std::vector<int> times(100);
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    for (const std::size_t n : sample_nodes(100, 30, seed)) ++times[n];
  }
  for (const int t : times) {
    EXPECT_GT(t, 10);
    EXPECT_LT(t, 55);
  }
}

TEST(Attribution, RefusesWhatIsNotThere) {
  Bench s({.label = "gated"});
  const auto refuse = [&](const Node& node, const AttributionOptions& options = {}) {
    return message_of<UsageError>([&] {
      attribute(s.forward, s.pairs, s.metric, {&node, 1}, options);
    });
  };
  expect_message(refuse({{SiteKind::z, 3}, 0}), "blocks.3.attn.hook_z");
  expect_message(refuse({{SiteKind::z, 1}, 0, 4}), "head 4", "hook_z", "4");
  expect_message(refuse({{SiteKind::k, 1}, 0, 2}), "head 2", "hook_k", "it has 2");
  expect_message(refuse({{SiteKind::resid_pre, 1}, 0, 0}), "head 0", "it has 0");
  expect_message(refuse({{SiteKind::mlp_post, 1}, 0, -1, 40}), "neuron 40", "it has 40");
  expect_message(refuse({{SiteKind::resid_pre, 1}, 0, -1, 3}), "neuron 3", "it has 0");
  expect_message(refuse({{SiteKind::resid_pre, 1}, -2}), "position -2");
  expect_message(refuse({{SiteKind::resid_pre, 1}, 0}, {.ig_steps = -1}), "-1 steps");
  expect_message(refuse({{SiteKind::resid_pre, 1}, 0}, {.batch_tokens = 0}), "0 tokens");
  AttributionOptions both{.ig_steps = 4};
  both.conservation = true;
  expect_message(refuse({{SiteKind::resid_pre, 1}, 0}, both), "integrated gradients have 4");
  const Node node{{SiteKind::resid_pre, 1}, 0};
  const Metric fewer(MetricKind::logit_diff, std::span(s.pairs).first(1), s.model.config().d_vocab);
  expect_message(message_of<UsageError>([&] {
                   attribute(s.forward, s.pairs, fewer, {&node, 1});
                 }),
                 "1 pairs", "3 pairs");
}

}  // namespace
}  // namespace lamina
