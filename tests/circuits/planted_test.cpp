// Planted models with perfect transcoders (the neurons themselves): the graph is what was planted.
// Threshold of the pruning: 0.9999 of the influence, for nodes and for edges.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "circuits/planted_neurons.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"
#include "lamina/core/prompts.h"

namespace lamina {
namespace {

using Edge = std::pair<std::string, std::string>;
constexpr PruneOptions kThreshold{.node_share = 0.9999, .edge_share = 0.9999};

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

class Planted : public ::testing::Test {
 protected:
  explicit Planted(const std::string& name)
      : folder_(LAMINA_SOURCE_DIR "/data/planted/" + name),
        model_(Model::load(folder_)),
        forward_(model_),
        transcoders_(testing::planted_neurons(folder_)) {}

  AttributionGraph graph_of(const std::string& text) {
    Replacement replacement(forward_, transcoders_, model_.tokenizer()->encode(text));
    return attribute(replacement);
  }

  static std::vector<std::pair<Edge, double>> edges(const AttributionGraph& graph) {
    std::vector<std::pair<Edge, double>> out;
    for (std::size_t t = 0; t < graph.nodes.size(); ++t)
      for (std::size_t e = 0; e < graph.incoming[t].source.size(); ++e)
        out.push_back({{graph.nodes[size(graph.incoming[t].source[e])].id, graph.nodes[t].id},
                       graph.incoming[t].weight[e]});
    return out;
  }

  // Area under the curve of "in the pruned graph" for "planted", ties counted half.
  static double auroc(const std::vector<std::pair<bool, bool>>& in_and_planted) {
    double wins = 0, pairs = 0;
    for (const auto& [a, good] : in_and_planted) {
      for (const auto& [b, other] : in_and_planted) {
        if (!good || other) continue;
        pairs += 1;
        wins += a && !b ? 1.0 : a == b ? 0.5 : 0.0;
      }
    }
    return pairs > 0 ? wins / pairs : 1.0;
  }

  std::string folder_;
  Model model_;
  Forward forward_;
  std::vector<Transcoder> transcoders_;
};

class Majority : public Planted {
 protected:
  Majority() : Planted("majority") {}
};

TEST_F(Majority, TheGraphIsTheCountingCircuit) {
  std::vector<std::string> prompts;
  for (const Prompt& p :
       read_prompts(folder_ + "/prompts.jsonl", model_.tokenizer(), model_.config().d_vocab))
    if (prompts.size() < 20) prompts.push_back(p.text);
  ASSERT_EQ(prompts.size(), 20U);
  std::int64_t with_others = 0;
  for (const std::string& text : prompts) {
    const AttributionGraph whole = graph_of(text), pruned = prune(whole, kThreshold);
    const auto n = static_cast<double>(whole.tokens.size());
    const std::int32_t last = static_cast<std::int32_t>(whole.tokens.size()) - 1;

    // What was planted (programs.py): letter i is neuron i of layer 0 and reads
    // first − 34 · balance; x is neuron 8 and reads 34 · balance; balance is the mean of +1 for
    // x and −1 for letters; the logits read 4 · out, here around their mean.
    const std::string letters = "abcdefgh";
    std::set<std::string> planted;
    std::map<Edge, double> weights;
    for (const CircuitNode& node : whole.nodes) {
      if (node.kind != CircuitNodeKind::feature || node.layer != 0 || node.position != last)
        continue;
      ASSERT_LE(node.index, 8);
      planted.insert(node.id);
      for (const CircuitNode& token : whole.nodes) {
        if (token.kind != CircuitNodeKind::token || token.position == 0) continue;
        const std::string& word = whole.tokens[size(token.position)];
        const double sign = word == "x" ? 1.0 : -1.0;
        double w = (node.index == 8 ? 34.0 : -34.0) * sign / n;
        if (node.index < 8 && token.position == 1 && word == letters.substr(size(node.index), 1))
          w += 1.0;
        if (w != 0) weights[{token.id, node.id}] = w;
      }
      for (const CircuitNode& logit : whole.nodes) {
        if (logit.kind != CircuitNodeKind::logit) continue;
        const std::string answer = node.index == 8 ? "x" : letters.substr(size(node.index), 1);
        weights[{node.id, logit.id}] = 4 * node.activation *
                                       ((logit.label == answer ? 1.0 : 0.0) -
                                        1.0 / static_cast<double>(model_.config().d_vocab));
      }
    }
    ASSERT_FALSE(planted.empty()) << text;
    with_others +=
        whole.count(CircuitNodeKind::feature) > static_cast<std::int64_t>(planted.size());

    std::vector<std::pair<bool, bool>> node_flags, edge_flags;
    for (const CircuitNode& node : whole.nodes) {
      if (node.kind == CircuitNodeKind::token || node.kind == CircuitNodeKind::logit) continue;
      node_flags.emplace_back(pruned.find(node.id) >= 0, planted.contains(node.id));
    }
    std::set<Edge> left;
    for (const auto& [edge, weight] : edges(pruned)) {
      left.insert(edge);
      const auto found = weights.find(edge);
      ASSERT_NE(found, weights.end()) << text << ": " << edge.first << " -> " << edge.second;
      EXPECT_NEAR(weight, found->second, 1e-5 * (1 + std::abs(found->second)));
    }
    for (const auto& [edge, weight] : edges(whole))
      edge_flags.emplace_back(left.contains(edge), weights.contains(edge));
    EXPECT_EQ(left.size(), weights.size()) << text;
    EXPECT_DOUBLE_EQ(auroc(node_flags), 1.0) << text;
    EXPECT_DOUBLE_EQ(auroc(edge_flags), 1.0) << text;
    const GraphScores scores = graph_scores(whole);
    EXPECT_NEAR(scores.replacement, 1.0, 1e-5);
    EXPECT_NEAR(scores.completeness, 1.0, 1e-5);
  }
  EXPECT_GT(with_others, 10);  // there was something to leave out
}

class IndirectObject : public Planted {
 protected:
  IndirectObject() : Planted("indirect_object") {}
};

// Here MLPs only decide where heads look. Patterns are frozen: the graph is the name mover's and
// a2.h1's copying alone, whatever the features are.
TEST_F(IndirectObject, FeaturesThatOnlyMoveAttentionAreNotInTheGraph) {
  const AttributionGraph whole =
      graph_of("When Mary and Kate went to the store , Mary gave a ring to");
  EXPECT_GT(whole.count(CircuitNodeKind::feature), 0);
  const AttributionGraph pruned = prune(whole, kThreshold);
  EXPECT_EQ(pruned.count(CircuitNodeKind::feature), 0);
  EXPECT_EQ(pruned.count(CircuitNodeKind::error), 0);
  const std::int64_t kate =
      pruned.find(fmt::format("E_{}_4", *model_.tokenizer()->find_piece("Kate")));
  ASSERT_GE(kate, 0);
  const std::size_t first_logit = pruned.nodes.size() - size(pruned.count(CircuitNodeKind::logit));
  EXPECT_EQ(pruned.nodes[first_logit].label, "Kate");
}

}  // namespace
}  // namespace lamina
