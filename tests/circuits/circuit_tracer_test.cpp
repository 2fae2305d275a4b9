// Attribution graphs against circuit-tracer's own (circuit_tracer_graphs.py): the same nodes, edge
// weights, pruned graph and scores.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "lamina/circuits/attribution_graph.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

struct Case {
  const char* name;
  const char* model;
  SiteKind input;
  bool norm_weights;
  FeatureActivation activation;
  std::int64_t features = 0;  // kept
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

class CircuitTracer : public ::testing::TestWithParam<Case> {
 protected:
  CircuitTracer()
      : file_(open_safetensors(LAMINA_SOURCE_DIR "/tests/circuits/graphs/" +
                               std::string(GetParam().name) + ".safetensors")),
        model_(Model::load(LAMINA_SOURCE_DIR "/tests/goldens/" + std::string(GetParam().model))),
        forward_(model_) {
    const Case& c = GetParam();
    if (file_.find("W_dec_0") != nullptr) {
      read_cross_layer();
      return;
    }
    for (std::int32_t l = 0; l < model_.config().n_layers; ++l) {
      const std::string at = std::to_string(l) + ".";
      Transcoder t;
      t.encoder = floats(at + "W_enc");
      t.encoder_bias = floats(at + "b_enc");
      t.decoder = floats(at + "W_dec");
      t.decoder_bias = floats(at + "b_dec");
      if (file_.find(at + "W_skip") != nullptr) t.skip = floats(at + "W_skip");
      if (file_.find(at + "threshold") != nullptr) t.threshold = floats(at + "threshold");
      t.config = {.name = at,
                  .model_id = "",
                  .input = {{c.input, l}, c.norm_weights},
                  .output = {{SiteKind::mlp_out, l}, false},
                  .d_in = model_.config().d_model,
                  .d_out = model_.config().d_model,
                  .features = static_cast<std::int64_t>(t.encoder_bias.size()),
                  .activation = c.activation,
                  .k = c.activation == FeatureActivation::topk ? 3 : 0,
                  .subtract_decoder_bias = false,
                  .skip = !t.skip.empty()};
      transcoders_.push_back(std::move(t));
    }
  }

  // The tensors of a cross-layer transcoder in files of its layout.
  void read_cross_layer() {
    testing::TempDir folder;  // its files stay mapped
    for (std::int64_t l = 0; l < model_.config().n_layers; ++l) {
      for (const bool decoder : {false, true}) {
        std::vector<std::string> names;
        for (const char* name : {"W_enc", "b_enc", "b_dec", "threshold"})
          if (!decoder) names.push_back(fmt::format("{}_{}", name, l));
        if (decoder) names.push_back(fmt::format("W_dec_{}", l));
        std::vector<std::vector<float>> values;
        for (const std::string& name : names) values.push_back(floats(name));
        std::vector<F32Tensor> tensors;
        for (std::size_t i = 0; i < names.size(); ++i)
          tensors.push_back({names[i], file_.find(names[i])->shape, values[i]});
        write_safetensors(
            folder.path() / fmt::format("{}_{}.safetensors", decoder ? "W_dec" : "W_enc", l),
            tensors);
      }
    }
    cross_ =
        std::make_unique<CrossLayerTranscoder>(folder.path(), "", "hook_resid_mid", "hook_mlp_out");
  }

  std::vector<float> floats(const std::string& name) const {
    const TensorInfo* t = file_.find(name);
    std::vector<float> out(t->elements());
    expand_to_f32(t->dtype, t->bytes, out);
    return out;
  }
  std::vector<std::int32_t> integers(const std::string& name) const {
    const TensorInfo* t = file_.find(name);
    const auto* first = reinterpret_cast<const std::int32_t*>(t->bytes.data());
    return {first, first + t->elements()};
  }
  std::vector<std::uint8_t> flags(const std::string& name) const {
    const TensorInfo* t = file_.find(name);
    const auto* first = reinterpret_cast<const std::uint8_t*>(t->bytes.data());
    return {first, first + t->elements()};
  }

  static std::vector<float> dense(const AttributionGraph& graph) {
    const std::size_t n = graph.nodes.size();
    std::vector<float> out(n * n);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t e = 0; e < graph.incoming[t].source.size(); ++e)
        out[t * n + static_cast<std::size_t>(graph.incoming[t].source[e])] =
            graph.incoming[t].weight[e];
    return out;
  }

  TensorStore file_;
  Model model_;
  Forward forward_;
  std::vector<Transcoder> transcoders_;
  std::unique_ptr<CrossLayerTranscoder> cross_;
};

TEST_P(CircuitTracer, SameGraphSamePruningSameScores) {
  const Case& c = GetParam();
  const auto ids = integers("ids");
  Replacement replacement =
      cross_ != nullptr ? Replacement(forward_, *cross_, ids, {.constant_first = true})
                        : Replacement(forward_, transcoders_, ids, {.constant_first = true});
  // Their ranking: 2 batches of 4 features.
  const AttributionGraph graph =
      attribute(replacement, {.max_features = c.features, .rank_every = 8});

  const auto features = integers("features");
  const auto activations = floats("activations");
  ASSERT_EQ(graph.count(CircuitNodeKind::feature), static_cast<std::int64_t>(activations.size()));
  for (std::size_t i = 0; i < activations.size(); ++i) {
    EXPECT_EQ(graph.nodes[i].layer, features[3 * i]);
    EXPECT_EQ(graph.nodes[i].position, features[3 * i + 1]);
    EXPECT_EQ(graph.nodes[i].index, features[3 * i + 2]);
    EXPECT_NEAR(graph.nodes[i].activation, activations[i], 2e-5 * (1 + activations[i]));
  }
  const auto tokens = integers("logit_tokens");
  const auto probabilities = floats("logit_probabilities");
  const std::size_t n = graph.nodes.size();
  ASSERT_EQ(graph.count(CircuitNodeKind::logit), static_cast<std::int64_t>(tokens.size()));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const CircuitNode& node = graph.nodes[n - tokens.size() + i];
    EXPECT_EQ(node.index, tokens[i]);
    EXPECT_NEAR(node.probability, probabilities[i], 1e-5);
  }

  const auto expected = floats("adjacency");
  ASSERT_EQ(expected.size(), n * n);
  const auto weights = dense(graph);
  float largest = 0, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(weights[i] - expected[i]));
  }
  EXPECT_LT(worst, 2e-5 * largest);

  const GraphScores scores = graph_scores(graph);
  const auto their_scores = floats("scores");
  EXPECT_NEAR(scores.replacement, their_scores[0], 2e-5);
  EXPECT_NEAR(scores.completeness, their_scores[1], 2e-5);

  const AttributionGraph pruned = prune(graph);
  const auto nodes = flags("node_mask"), edges = flags("edge_mask");
  const auto cumulative = floats("cumulative");
  const auto pruned_weights = dense(pruned);
  std::vector<std::int64_t> at(n, -1);
  for (std::size_t i = 0; i < n; ++i) {
    at[i] = pruned.find(graph.nodes[i].id);
    EXPECT_EQ(at[i] >= 0, nodes[i] != 0) << graph.nodes[i].id;
    if (at[i] >= 0 && graph.nodes[i].kind != CircuitNodeKind::logit) {
      EXPECT_NEAR(pruned.nodes[static_cast<std::size_t>(at[i])].influence, cumulative[i], 1e-4);
    }
  }
  std::int64_t kept = 0;
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t s = 0; s < n; ++s) {
      const bool there = at[t] >= 0 && at[s] >= 0 &&
                         pruned_weights[static_cast<std::size_t>(at[t]) * pruned.nodes.size() +
                                        static_cast<std::size_t>(at[s])] != 0;
      EXPECT_EQ(there, edges[t * n + s] != 0 && nodes[t] != 0 && nodes[s] != 0)
          << graph.nodes[s].id << " -> " << graph.nodes[t].id;
      kept += there ? 1 : 0;
    }
  }
  EXPECT_EQ(kept, pruned.edges());
  std::printf("  %zu nodes, %ld edges: worst weight off by %.1e of the largest\n", n,
              static_cast<long>(graph.edges()), worst / largest);
}

INSTANTIATE_TEST_SUITE_P(
    Graphs, CircuitTracer,
    ::testing::Values(
        Case{"llama", "llama2", SiteKind::ln2_normalized, true, FeatureActivation::relu},
        Case{"llama_skip", "llama2", SiteKind::resid_mid, false, FeatureActivation::topk},
        Case{"llama_some", "llama2", SiteKind::ln2_normalized, true, FeatureActivation::relu, 40},
        Case{"gemma2", "gemma2", SiteKind::ln2_normalized, false, FeatureActivation::jump_relu},
        Case{"llama_cross", "llama2", SiteKind::resid_mid, false, FeatureActivation::jump_relu},
        Case{"gpt2", "gpt2", SiteKind::ln2_normalized, true, FeatureActivation::relu}),
    [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace lamina
