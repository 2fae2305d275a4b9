// The frozen model is linear, and the graph says by how much: doubling a source moves every later
// feature and every logit by its column.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "circuits/random_transcoders.h"
#include "lamina/circuits/attribution_graph.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::RandomDictionary;

struct Case {
  std::string folder;
  RandomDictionary kind;
  bool constant_first = false;
  bool cross_layer = false;
  std::string label() const {
    return folder + (cross_layer ? "_cross" : "") + (kind.norm_weights ? "_w" : "") + "_" +
           std::string(feature_activation_name(kind.activation)) + (kind.skip ? "_skip" : "") +
           "_in" + std::to_string(static_cast<int>(kind.input)) + (constant_first ? "_first" : "");
  }
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.label();
}

class Linearity : public ::testing::TestWithParam<Case> {
 protected:
  Linearity()
      : model_(Model::load(std::string(LAMINA_SOURCE_DIR "/tests/goldens/") + GetParam().folder)),
        forward_(model_),
        transcoders_(testing::random_transcoders(model_.config(), GetParam().kind, 7)),
        replacement_(replacement()),
        graph_(attribute(replacement_, {.max_logits = 5, .batch_tokens = 64})) {}

  Replacement replacement() {
    const ReplacementOptions options{.constant_first = GetParam().constant_first};
    if (!GetParam().cross_layer) return Replacement(forward_, transcoders_, ids(), options);
    testing::TempDir folder;  // its files stay mapped
    testing::write_random_cross_layer(model_.config(), 24, 5, folder.path());
    cross_ =
        std::make_unique<CrossLayerTranscoder>(folder.path(), "", "hook_resid_mid", "hook_mlp_out");
    return Replacement(forward_, *cross_, ids(), options);
  }

  std::vector<std::int32_t> ids() const {
    std::vector<std::int32_t> out;
    for (int i = 0; i < 9; ++i)
      out.push_back(static_cast<std::int32_t>((7 + 13 * i + i * i) % model_.config().d_vocab));
    return out;
  }

  // Doubles a source; a weaker feature is raised by 0.5, because the difference of two float32 runs
  // does not resolve less.
  double factor(std::int64_t source) const {
    const CircuitNode& node = graph_.nodes[static_cast<std::size_t>(source)];
    if (node.kind != CircuitNodeKind::feature) return 2.0;
    return 1.0 + std::max(1.0, 0.5 / node.activation);
  }

  // Largest error of the prediction over all features and logits, relative to the largest effect.
  double prediction_error(std::int64_t source, const ReplacementRun& run) const {
    const ReplacementRun& clean = replacement_.clean();
    const auto logits = salient_logits(replacement_, 0.95, 5);
    const double times = factor(source) - 1.0;
    double effect = 0, error = 0;
    for (std::size_t t = 0; t < graph_.nodes.size(); ++t) {
      const CircuitNode& node = graph_.nodes[t];
      double measured = 0;
      if (node.kind == CircuitNodeKind::feature) {
        measured = double{run.pre_activations[t]} - clean.pre_activations[t];
      } else if (node.kind == CircuitNodeKind::logit) {
        const auto at = t - (graph_.nodes.size() - logits.size());
        measured = logits[at].value(run) - logits[at].value(clean);
      } else {
        continue;
      }
      const IncomingEdges& in = graph_.incoming[t];
      const auto found = std::lower_bound(in.source.begin(), in.source.end(), source);
      const double predicted =
          found != in.source.end() && *found == source
              ? times * in.weight[static_cast<std::size_t>(found - in.source.begin())]
              : 0.0;
      effect = std::max(effect, std::abs(predicted));
      error = std::max(error, std::abs(measured - predicted));
    }
    return effect > 0 ? error / effect : error;
  }

  void expect_columns(const std::vector<std::int64_t>& sources) {
    std::vector<std::vector<SourceChange>> sets;
    for (std::int64_t s : sources) sets.push_back({{s, factor(s)}});
    const auto runs = replacement_.run(sets, Freedom::direct);
    double worst = 0;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const double error = prediction_error(sources[i], runs[i]);
      worst = std::max(worst, error);
      EXPECT_LT(error, 1e-4) << graph_.nodes[static_cast<std::size_t>(sources[i])].id;
    }
    std::printf("  %zu sources changed, worst relative error %.2e\n", sources.size(), worst);
  }

  Model model_;
  Forward forward_;
  std::vector<Transcoder> transcoders_;
  std::unique_ptr<CrossLayerTranscoder> cross_;
  Replacement replacement_;
  AttributionGraph graph_;
};

TEST_P(Linearity, DoublingAFeatureMovesWhatItsColumnSays) {
  std::vector<std::int64_t> sources(replacement_.features().size());
  std::iota(sources.begin(), sources.end(), 0);
  ASSERT_GE(sources.size(), 100U);
  std::shuffle(sources.begin(), sources.end(), std::mt19937_64(3));
  sources.resize(std::min<std::size_t>(sources.size(), 120));
  expect_columns(sources);
}

TEST_P(Linearity, DoublingAnErrorOrATokenMovesWhatItsColumnSays) {
  std::vector<std::int64_t> sources;
  for (auto s = static_cast<std::int64_t>(replacement_.features().size());
       s < replacement_.sources(); ++s) {
    const std::vector<float> vector = replacement_.source_vector(s);
    if (std::any_of(vector.begin(), vector.end(), [](float v) { return v != 0; }))
      sources.push_back(s);
  }
  expect_columns(sources);
}

TEST_P(Linearity, IncomingWeightsAndBiasAddUpToThePreActivation) {
  double worst = 0;
  for (std::size_t t = 0; t < graph_.nodes.size(); ++t) {
    const CircuitNode& node = graph_.nodes[t];
    if (node.kind != CircuitNodeKind::feature && node.kind != CircuitNodeKind::logit) continue;
    double sum = node.bias, size = std::abs(node.bias);
    for (float w : graph_.incoming[t].weight) {
      sum += w;
      size += std::abs(w);
    }
    const double error = std::abs(sum - node.pre_activation) / size;
    worst = std::max(worst, error);
    EXPECT_LT(error, 1e-5) << node.id << ": " << sum << " for " << node.pre_activation;
  }
  std::printf("  worst relative error of a sum %.2e\n", worst);
}

// The read-outs of logit nodes are the model's own logits around their mean, a soft-cap undone.
TEST_P(Linearity, LogitNodesAreTheModelsLogits) {
  const double cap = model_.config().final_softcap;
  std::vector<double> logits(replacement_.logits().begin(), replacement_.logits().end());
  if (cap > 0)
    for (double& l : logits) l = cap * std::atanh(l / cap);
  const double mean =
      std::accumulate(logits.begin(), logits.end(), 0.0) / static_cast<double>(logits.size());
  for (const CircuitNode& node : graph_.nodes) {
    if (node.kind != CircuitNodeKind::logit) continue;
    EXPECT_NEAR(node.pre_activation, logits[static_cast<std::size_t>(node.index)] - mean, 2e-5);
  }
}

TEST_P(Linearity, AnUnchangedRunIsThePrompt) {
  for (const Freedom freedom : {Freedom::direct, Freedom::constrained, Freedom::free}) {
    const auto runs = replacement_.run(std::vector<std::vector<SourceChange>>(2), freedom);
    ASSERT_EQ(runs.size(), 2U);
    for (std::size_t i = 0; i < runs[1].logits.size(); ++i)
      EXPECT_NEAR(runs[1].logits[i], replacement_.logits()[i], 2e-5) << freedom_name(freedom);
  }
}

// The forward pass that measures knows nothing of the rows of a batch: neither may the graph.
TEST_P(Linearity, TheSizeOfABatchDoesNotMatter) {
  const AttributionGraph other = attribute(replacement_, {.max_logits = 5, .batch_tokens = 9});
  ASSERT_EQ(other.edges(), graph_.edges());
  for (std::size_t t = 0; t < graph_.nodes.size(); ++t) {
    ASSERT_EQ(other.incoming[t].source, graph_.incoming[t].source);
    for (std::size_t e = 0; e < graph_.incoming[t].weight.size(); ++e)
      EXPECT_NEAR(other.incoming[t].weight[e], graph_.incoming[t].weight[e],
                  1e-6 * (1 + std::abs(graph_.incoming[t].weight[e])));
  }
}

constexpr RandomDictionary kMid{.input = SiteKind::resid_mid, .norm_weights = false};
constexpr RandomDictionary kPlain{.norm_weights = false,
                                  .activation = FeatureActivation::jump_relu};
constexpr RandomDictionary kSkip{.activation = FeatureActivation::topk, .skip = true};
constexpr RandomDictionary kPre{.input = SiteKind::ln1_normalized, .skip = true};

INSTANTIATE_TEST_SUITE_P(
    Families, Linearity,
    ::testing::Values(Case{"llama3", {}}, Case{"llama3", kMid}, Case{"llama3", kSkip},
                      Case{"gemma2", kPlain}, Case{"gemma2", kSkip}, Case{"gemma3", kMid},
                      Case{"gemma3", kPlain, true}, Case{"gpt2", {}}, Case{"gpt2", kPlain},
                      Case{"gpt2", kSkip, true}, Case{"qwen3", {}}, Case{"gpt_neox", {}},
                      Case{"gpt_neox", kSkip}, Case{"llama3", kPre},
                      Case{"llama3", kMid, false, true}, Case{"gemma2", kMid, true, true}),
    [](const auto& p) { return p.param.label(); });

}  // namespace
}  // namespace lamina
