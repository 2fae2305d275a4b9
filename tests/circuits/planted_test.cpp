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

  // What was planted: the nodes that act on a logit, and every edge among them with its weight.
  struct Truth {
    std::set<std::string> nodes;  // features, errors and tokens
    std::map<Edge, double> weights;
  };
  struct Edges {
    Edge ends;
    double weight = 0, influence = 0;  // |share| · (influence of the target + its probability)
  };

  static std::vector<Edges> edges(const AttributionGraph& graph) {
    const std::vector<double> influence = node_influence(graph);
    std::vector<Edges> out;
    for (std::size_t t = 0; t < graph.nodes.size(); ++t) {
      const IncomingEdges& in = graph.incoming[t];
      double sum = 0;
      for (float w : in.weight) sum += std::abs(w);
      for (std::size_t e = 0; e < in.source.size(); ++e) {
        out.push_back({{graph.nodes[size(in.source[e])].id, graph.nodes[t].id},
                       in.weight[e],
                       std::abs(in.weight[e]) / sum * (influence[t] + graph.nodes[t].probability)});
      }
    }
    return out;
  }

  // Area under the ROC curve of a score for "planted", ties counted half.
  struct Scored {
    double score = 0;
    bool planted = false;
  };
  static double auroc(std::vector<Scored> all) {
    std::sort(all.begin(), all.end(), [](auto a, auto b) { return a.score < b.score; });
    double below = 0, wins = 0, planted = 0;  // others with a smaller score
    for (std::size_t i = 0; i < all.size();) {
      double good = 0, other = 0;
      const double score = all[i].score;
      for (; i < all.size() && all[i].score == score; ++i) (all[i].planted ? good : other) += 1;
      wins += good * (below + other / 2);
      below += other;
      planted += good;
    }
    EXPECT_GT(planted, 0);
    EXPECT_GT(below, 0);  // there is something to tell apart
    return wins / (planted * below);
  }

  // The pruned graph is the truth, weights included, and both influences order the whole graph so
  // that everything planted stands in front of everything else.
  void expect_planted(const AttributionGraph& whole, const Truth& truth) {
    const AttributionGraph pruned = prune(whole, kThreshold);
    const std::vector<double> influence = node_influence(whole);
    std::vector<Scored> nodes, kept_nodes, by_influence, kept_edges;
    for (std::size_t i = 0; i < whole.nodes.size(); ++i) {
      const CircuitNode& node = whole.nodes[i];
      if (node.kind == CircuitNodeKind::logit) continue;
      const bool planted = truth.nodes.contains(node.id);
      nodes.push_back({influence[i], planted});
      (planted ? least_ : most_) =
          planted ? std::min(least_, influence[i]) : std::max(most_, influence[i]);
      (planted ? planted_nodes_ : other_nodes_) += 1;
      // Pruning keeps all tokens.
      if (node.kind != CircuitNodeKind::token)
        kept_nodes.push_back({pruned.find(node.id) >= 0 ? 1.0 : 0.0, planted});
    }
    std::set<Edge> left;
    for (const Edges& edge : edges(pruned)) {
      left.insert(edge.ends);
      const auto found = truth.weights.find(edge.ends);
      ASSERT_NE(found, truth.weights.end()) << edge.ends.first << " -> " << edge.ends.second;
      EXPECT_NEAR(edge.weight, found->second, 1e-5 * (1 + std::abs(found->second)));
    }
    EXPECT_EQ(left.size(), truth.weights.size());
    for (const Edges& edge : edges(whole)) {
      const bool planted = truth.weights.contains(edge.ends);
      by_influence.push_back({edge.influence, planted});
      kept_edges.push_back({left.contains(edge.ends) ? 1.0 : 0.0, planted});
      (planted ? planted_edges_ : other_edges_) += 1;
    }
    for (const Scored& node : kept_nodes) EXPECT_EQ(node.score == 1.0, node.planted);
    const auto worst = [](double& smallest, double value) {
      EXPECT_DOUBLE_EQ(value, 1.0);
      smallest = std::min(smallest, value);
    };
    worst(node_auroc_, auroc(nodes));
    worst(edge_auroc_, auroc(by_influence));
    worst(edge_auroc_, auroc(kept_edges));
    ++prompts_;
  }

  ~Planted() override {
    fmt::print(
        "{}: {} prompts, {} of {} nodes and {} of {} edges planted; smallest AUROC of nodes {}, of "
        "edges {}; influence of planted nodes from {:.2g}, of others up to {:.2g}\n",
        model_.id(), prompts_, planted_nodes_, planted_nodes_ + other_nodes_, planted_edges_,
        planted_edges_ + other_edges_, node_auroc_, edge_auroc_, least_, most_);
  }

  std::string folder_;
  Model model_;
  Forward forward_;
  std::vector<Transcoder> transcoders_;

 private:
  std::int64_t prompts_ = 0, planted_nodes_ = 0, other_nodes_ = 0, planted_edges_ = 0,
               other_edges_ = 0;
  double node_auroc_ = 1.0, edge_auroc_ = 1.0, least_ = 1.0, most_ = 0.0;
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
    SCOPED_TRACE(text);
    const AttributionGraph whole = graph_of(text);
    const auto n = static_cast<double>(whole.tokens.size());
    const std::int32_t last = static_cast<std::int32_t>(whole.tokens.size()) - 1;

    // What was planted (programs.py): letter i is neuron i of layer 0 and reads
    // first − 34 · balance; x is neuron 8 and reads 34 · balance; balance is the mean of +1 for
    // x and −1 for letters; the logits read 4 · out, here around their mean.
    const std::string letters = "abcdefgh";
    Truth truth;
    for (const CircuitNode& node : whole.nodes) {
      if (node.kind != CircuitNodeKind::feature || node.layer != 0 || node.position != last)
        continue;
      ASSERT_LE(node.index, 8);
      truth.nodes.insert(node.id);
      for (const CircuitNode& token : whole.nodes) {
        if (token.kind != CircuitNodeKind::token || token.position == 0) continue;
        const std::string& word = whole.tokens[size(token.position)];
        const double sign = word == "x" ? 1.0 : -1.0;
        double w = (node.index == 8 ? 34.0 : -34.0) * sign / n;
        if (node.index < 8 && token.position == 1 && word == letters.substr(size(node.index), 1))
          w += 1.0;
        if (w == 0) continue;
        truth.nodes.insert(token.id);
        truth.weights[{token.id, node.id}] = w;
      }
      for (const CircuitNode& logit : whole.nodes) {
        if (logit.kind != CircuitNodeKind::logit) continue;
        const std::string answer = node.index == 8 ? "x" : letters.substr(size(node.index), 1);
        truth.weights[{node.id, logit.id}] = 4 * node.activation *
                                             ((logit.label == answer ? 1.0 : 0.0) -
                                              1.0 / static_cast<double>(model_.config().d_vocab));
      }
    }
    ASSERT_FALSE(truth.nodes.empty());
    std::int64_t planted = 0;
    for (const CircuitNode& node : whole.nodes)
      planted += node.kind == CircuitNodeKind::feature && truth.nodes.contains(node.id);
    with_others += whole.count(CircuitNodeKind::feature) > planted;
    expect_planted(whole, truth);
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
TEST_F(IndirectObject, TheGraphIsWhatTheLastHeadsCopy) {
  const std::set<std::string> names = {"Mary", "John", "Anna", "Paul", "Kate", "Tom"};
  std::vector<std::string> prompts;
  for (const Prompt& p :
       read_prompts(folder_ + "/prompts.jsonl", model_.tokenizer(), model_.config().d_vocab))
    if (prompts.size() < 20) prompts.push_back(p.text);
  ASSERT_EQ(prompts.size(), 20U);
  for (const std::string& text : prompts) {
    SCOPED_TRACE(text);
    const AttributionGraph whole = graph_of(text);
    EXPECT_GT(whole.count(CircuitNodeKind::feature), 0);
    // The name mover's scores (programs.py): 60 for a name, 8 less for the one that is inhibited,
    // which stands there twice: what still leaks from it, e^-8, is not the circuit. a2.h1 looks
    // everywhere. The logits read 10 · out, and out is the name mover's name and twice a2.h1's
    // other words.
    std::map<std::string, int> times;
    for (const std::string& word : whole.tokens) times[word] += names.contains(word);
    double sum = 0;
    const auto attention = [&](const std::string& word) {
      return times[word] == 0 ? 0.0 : times[word] == 1 ? 1.0 : std::exp(-8.0);
    };
    for (const std::string& word : whole.tokens) sum += attention(word);
    const auto vocabulary = static_cast<double>(model_.config().d_vocab);
    Truth truth;
    for (const CircuitNode& token : whole.nodes) {
      if (token.kind != CircuitNodeKind::token) continue;
      const std::string& word = whole.tokens[size(token.position)];
      if (times[word] > 1) continue;
      const double copied = 10 * (times[word] > 0 ? attention(word) / sum
                                                  : 2.0 / static_cast<double>(whole.tokens.size()));
      truth.nodes.insert(token.id);
      for (const CircuitNode& logit : whole.nodes) {
        if (logit.kind != CircuitNodeKind::logit) continue;
        truth.weights[{token.id, logit.id}] =
            copied * ((logit.label == word ? 1.0 : 0.0) - 1.0 / vocabulary);
      }
    }
    expect_planted(whole, truth);
    EXPECT_EQ(
        times[whole.nodes[whole.nodes.size() - size(whole.count(CircuitNodeKind::logit))].label],
        1);  // the likeliest: the name that stands there once
  }
}

}  // namespace
}  // namespace lamina
