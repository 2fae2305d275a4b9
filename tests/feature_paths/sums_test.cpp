// Whatever is attributed is the sum of its parts, in every kind of model, and all ways together are
// the attribution graph.

#include <cmath>
#include <map>

#include "circuits/random_transcoders.h"
#include "gtest/gtest.h"
#include "lamina/circuits/attribution_graph.h"
#include "lamina/circuits/paths.h"
#include "lamina/core/error.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::RandomDictionary;

double sum_of(const std::vector<PathContribution>& parts, double& magnitude) {
  double sum = 0;
  magnitude = 0;
  for (const PathContribution& c : parts) {
    sum += c.value;
    magnitude += std::abs(c.value);
  }
  return sum;
}

// Follows the strongest of every kind at each step and adds up the parts. What is left is the
// rounding of float activations, whose own terms cancel.
void check_sums(const PathFinder& finder, const PathCursor& root, const std::string& what,
                int& steps) {
  std::vector<PathCursor> cursors = {root};
  for (int depth = 0; depth < 4 && !cursors.empty(); ++depth) {
    const auto all = finder.contributions(cursors);
    std::vector<PathCursor> next;
    for (std::size_t i = 0; i < cursors.size(); ++i) {
      double magnitude = 0;
      const double sum = sum_of(all[i], magnitude), value = cursors[i].value;
      EXPECT_NEAR(sum, value, 1e-5 * magnitude) << what << ", step " << depth;
      if (std::abs(value) > 0.05 * magnitude) {
        EXPECT_NEAR(sum, value, 1e-4 * std::abs(value)) << what << ", step " << depth;
      }
      ++steps;
      std::map<PathNodeKind, const PathContribution*> best;
      for (const PathContribution& c : all[i]) {
        if (c.node.kind != PathNodeKind::feature && c.node.kind != PathNodeKind::head &&
            c.node.kind != PathNodeKind::skip)
          continue;
        const PathContribution*& b = best[c.node.kind];
        if (b == nullptr || std::abs(c.value) > std::abs(b->value)) b = &c;
      }
      for (const auto& [kind, c] : best)
        if (c->value != 0) next.push_back(finder.follow(cursors[i], *c));
    }
    if (next.size() > 8) next.resize(8);
    cursors = std::move(next);
  }
}

bool can_be_replaced(const testing::TinyConfig& c) {
  return c.causal && c.norm_place != "post";
}

class Sums : public ::testing::TestWithParam<testing::TinyConfig> {};

TEST_P(Sums, PartsAddUp) {
  const testing::TinyConfig config = GetParam();
  if (!can_be_replaced(config)) GTEST_SKIP() << "no replacement model";
  const Model model = testing::tiny_model(config, 3);
  const bool norms =
      model.config().norm != NormKind::none && model.config().norm_place != NormPlace::none;
  const auto ids = testing::random_prompts({7}, config.d_vocab, 5).front();
  int steps = 0;
  if (model.config().d_mlp == 0) {
    Forward forward(model);
    const Replacement replacement(forward, std::span<const Transcoder>(), ids);
    const PathFinder finder(replacement);
    for (const std::int32_t token : {3, 4, 5, 6, 7})
      check_sums(finder, finder.logit(token), "attention only", steps);
    EXPECT_GT(steps, 10);
    return;
  }
  for (const bool skip : {false, true}) {
    for (const bool weights : {false, true}) {
      if (!norms && weights) continue;
      RandomDictionary kind;
      kind.input = !norms ? (config.parallel ? SiteKind::resid_pre : SiteKind::resid_mid)
                          : SiteKind::ln2_normalized;
      kind.norm_weights = weights;
      kind.features = 30;
      kind.skip = skip;
      kind.activation = skip ? FeatureActivation::topk : FeatureActivation::relu;
      std::vector<Transcoder> transcoders = testing::random_transcoders(model.config(), kind, 11);
      for (Transcoder& t : transcoders) bind_dictionary(t.config, model, true);
      if (skip) transcoders.erase(transcoders.begin() + 1);  // a layer that is all error
      Forward forward(model);
      const Replacement replacement(forward, transcoders, ids);
      const PathFinder finder(replacement);
      const std::string what = fmt::format("{} skip {} weights {}", config.label, skip, weights);
      check_sums(finder, finder.logit(3), what + " logit", steps);
      check_sums(finder, finder.logit(5, 9, 4), what + " difference", steps);
      for (const std::int32_t position : {2, 6})
        check_sums(finder, finder.feature(2, position, 4), what + " feature", steps);
      for (const ActiveFeature& f : replacement.features())
        if (f.layer == 2 && f.position == 5)
          check_sums(finder, finder.feature(2, 5, f.feature), what + " active", steps);
    }
  }
  EXPECT_GT(steps, 40);
}

// Roots have the model's own values: logits, a soft-cap undone, and pre-activations.
TEST_P(Sums, RootsAreTheModelsValues) {
  const testing::TinyConfig config = GetParam();
  if (!can_be_replaced(config)) GTEST_SKIP() << "no replacement model";
  const Model model = testing::tiny_model(config, 3);
  const auto ids = testing::random_prompts({7}, config.d_vocab, 5).front();
  Forward forward(model);
  std::vector<Transcoder> transcoders;
  if (model.config().d_mlp > 0) {
    RandomDictionary kind;
    if (config.norm == "none") kind = {.input = SiteKind::resid_mid, .norm_weights = false};
    transcoders = testing::random_transcoders(model.config(), kind, 11);
    for (Transcoder& t : transcoders) bind_dictionary(t.config, model, true);
  }
  const Replacement replacement(forward, transcoders, ids);
  const PathFinder finder(replacement);
  std::vector<double> logits(replacement.logits().begin(), replacement.logits().end());
  const double cap = model.config().final_softcap;
  double mean = 0;
  for (double& x : logits) {
    if (cap > 0) x = cap * std::atanh(x / cap);
    mean += x / static_cast<double>(logits.size());
  }
  for (const std::int32_t token : {0, 17, 60}) {
    const double own = logits[static_cast<std::size_t>(token)];
    EXPECT_NEAR(finder.logit(token).value, own - mean, 1e-4) << token;
    EXPECT_NEAR(finder.logit(token, 30).value, own - logits[30], 1e-4) << token;
  }
  for (std::size_t i = 0; i < replacement.features().size(); ++i) {
    const ActiveFeature& f = replacement.features()[i];
    EXPECT_NEAR(finder.feature(f.layer, f.position, f.feature).value, f.activation, 1e-5);
  }
  EXPECT_EQ(replacement.features().empty(), model.config().d_mlp == 0);
}

INSTANTIATE_TEST_SUITE_P(Models, Sums, ::testing::ValuesIn(testing::varied_configs()),
                         [](const auto& one) {
                           std::string name = one.param.label;
                           for (char& c : name)
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           return name;
                         });

// The cross-layer transcoder's features act on several MLP outputs.
TEST(Paths, PartsAddUpAcrossLayers) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 4);
  testing::TempDir folder;
  testing::write_random_cross_layer(model.config(), 24, 2, folder.path());
  CrossLayerTranscoder clt(folder.path(), "", "hook_resid_mid", "hook_mlp_out");
  clt.bind(model, true);
  Forward forward(model);
  const auto ids = testing::random_prompts({6}, config.d_vocab, 5).front();
  const Replacement replacement(forward, clt, ids);
  const PathFinder finder(replacement);
  int steps = 0;
  check_sums(finder, finder.logit(3), "logit", steps);
  for (const ActiveFeature& f : replacement.features())
    if (f.layer == 2)
      check_sums(finder, finder.feature(2, f.position, f.feature), "feature", steps);
  EXPECT_GT(steps, 40);
}

// What a source adds over all ways through heads and skips.
void add_ways(const PathFinder& finder, const PathCursor& root,
              std::map<std::string, double>& sums) {
  std::vector<PathCursor> cursors = {root};
  while (!cursors.empty()) {
    std::vector<PathCursor> next;
    const auto all = finder.contributions(cursors);
    for (std::size_t i = 0; i < cursors.size(); ++i) {
      for (const PathContribution& c : all[i]) {
        if (c.node.kind == PathNodeKind::head || c.node.kind == PathNodeKind::skip) {
          if (c.value != 0) next.push_back(finder.follow(cursors[i], c));
        } else {
          sums[path_node_name(c.node)] += c.value;
        }
      }
    }
    cursors = std::move(next);
  }
}

TEST(Paths, AllWaysTogetherAreTheAttributionGraph) {
  int edges = 0;
  for (const char* place : {"pre", "sandwich"}) {
    for (const bool skip : {false, true}) {
      testing::TinyConfig config;
      config.norm_place = place;
      config.norm = skip ? "layer" : "rms";
      config.qkv_bias = config.out_bias = skip;
      const Model model = testing::tiny_model(config, 6);
      RandomDictionary kind;
      kind.features = 12;
      kind.skip = skip;
      const std::vector<Transcoder> transcoders =
          testing::random_transcoders(model.config(), kind, 3);
      Forward forward(model);
      const auto ids = testing::random_prompts({4}, config.d_vocab, 8).front();
      Replacement replacement(forward, transcoders, ids);
      const AttributionGraph graph = attribute(replacement, {.max_logits = 2});
      const PathFinder finder(replacement);
      for (std::size_t n = 0; n < graph.nodes.size(); ++n) {
        const CircuitNode& target = graph.nodes[n];
        const bool logit = target.kind == CircuitNodeKind::logit;
        const bool feature =
            target.kind == CircuitNodeKind::feature && target.layer == 2 && target.position == 3;
        if (!logit && !feature) continue;
        const PathCursor root = logit ? finder.logit(static_cast<std::int32_t>(target.index))
                                      : finder.feature(target.layer, target.position, target.index);
        EXPECT_NEAR(root.value, target.pre_activation, 1e-5 * (1 + std::abs(root.value)));
        std::map<std::string, double> sums;
        add_ways(finder, root, sums);
        double magnitude = 0;
        for (const auto& [name, value] : sums) magnitude += std::abs(value);
        const IncomingEdges& in = graph.incoming[n];
        for (std::size_t e = 0; e < in.source.size(); ++e) {
          const CircuitNode& source = graph.nodes[static_cast<std::size_t>(in.source[e])];
          PathNode node{.kind = PathNodeKind::feature,
                        .layer = source.layer,
                        .position = source.position,
                        .index = source.index};
          if (source.kind == CircuitNodeKind::error) node.kind = PathNodeKind::error;
          if (source.kind == CircuitNodeKind::token) node.kind = PathNodeKind::token;
          ASSERT_TRUE(sums.contains(path_node_name(node))) << source.id;
          EXPECT_NEAR(sums[path_node_name(node)], in.weight[e], 1e-5 * magnitude)
              << place << " " << source.id << " → " << target.id;
          ++edges;
        }
      }
    }
  }
  EXPECT_GT(edges, 200);
}

TEST(Paths, AccountsOfASearchAddUpAndTheGraphToo) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 4);
  const std::vector<Transcoder> transcoders = testing::random_transcoders(model.config(), {}, 3);
  Forward forward(model);
  const auto ids = testing::random_prompts({6}, config.d_vocab, 8).front();
  const Replacement replacement(forward, transcoders, ids);
  const PathFinder finder(replacement);
  const PathNode root{.kind = PathNodeKind::logit, .layer = -1, .position = 5, .index = 7};
  for (const bool absolute : {false, true}) {
    const FoundPaths found =
        find_paths(finder, root, finder.logit(7), {.depth = 3, .width = 6, .absolute = absolute});
    EXPECT_LT(found.rounding(), 1e-6);
    std::map<std::int32_t, int> kept;
    for (const PathPrefix& p : found.prefixes) ++kept[p.depth];
    EXPECT_EQ(kept[0], 1);
    for (int depth = 1; depth <= 3; ++depth) EXPECT_EQ(kept[depth], 6) << depth;
    // What points to a node of the graph is all that was followed of it.
    const PathGraph graph = merge_paths(found);
    std::map<std::string, double> followed;
    for (const PathPrefix& p : found.prefixes)
      if (p.expanded) followed[path_node_name(p.node)] += p.contribution;
    std::map<std::string, double> into;
    for (const PathGraph::Edge& e : graph.edges)
      into[graph.nodes[static_cast<std::size_t>(e.target)].name] += e.weight;
    EXPECT_EQ(into.size(), followed.size());
    for (const auto& [name, value] : followed) EXPECT_NEAR(into[name], value, 1e-5) << name;
    // A wider search begins with the same strongest paths of one step.
    const FoundPaths wide =
        find_paths(finder, root, finder.logit(7), {.depth = 1, .width = 12, .absolute = absolute});
    for (std::size_t i = 1; i <= 6; ++i) EXPECT_EQ(wide.prefixes[i].node, found.prefixes[i].node);
  }
}

TEST(Paths, RefusesWhatIsNotThere) {
  testing::TinyConfig config;
  const Model model = testing::tiny_model(config, 4);
  const std::vector<Transcoder> transcoders = testing::random_transcoders(model.config(), {}, 3);
  Forward forward(model);
  const auto ids = testing::random_prompts({6}, config.d_vocab, 8).front();
  const Replacement replacement(forward, transcoders, ids);
  const PathFinder finder(replacement);
  EXPECT_THROW(finder.feature(3, 0, 0), Error);
  EXPECT_THROW(finder.feature(0, 6, 0), Error);
  EXPECT_THROW(finder.feature(0, 0, 64), Error);
  EXPECT_THROW(finder.logit(61), Error);
  EXPECT_THROW(finder.logit(1, -2), Error);
  EXPECT_THROW(finder.logit(1, -1, 6), Error);
  const PathCursor root = finder.logit(1);
  const PathNode token{.kind = PathNodeKind::token, .layer = -1, .position = 5, .index = 1};
  EXPECT_THROW(finder.follow(root, {token, 1.0}), Error);
  EXPECT_THROW(find_paths(finder, token, root, {.depth = 0}), Error);
  const Replacement constant(forward, transcoders, ids, {.constant_first = true});
  EXPECT_THROW(PathFinder{constant}, Error);
}

}  // namespace
}  // namespace lamina
