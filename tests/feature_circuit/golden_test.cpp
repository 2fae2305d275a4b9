// Effects, measured effects and circuits against torch (make_goldens.py).

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "lamina/circuits/feature_circuit.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"

namespace lamina {
namespace {

constexpr double kTolerance = 1e-4;  // of the terms' sum: fp32 here, double precision there

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

class FeatureCircuitGolden : public ::testing::TestWithParam<std::string> {
 protected:
  FeatureCircuitGolden()
      : store_(open_safetensors(LAMINA_SOURCE_DIR "/tests/feature_circuit/goldens/" + GetParam() +
                                ".safetensors")),
        model_(Model::load(LAMINA_SOURCE_DIR "/tests/goldens/" + GetParam())),
        forward_(model_) {
    for (std::int32_t l = 0; l < model_.config().n_layers; ++l) {
      for (const SiteKind kind : {SiteKind::attn_out, SiteKind::mlp_out, SiteKind::resid_post}) {
        dictionaries_.push_back(dictionary({kind, l}));
      }
    }
    for (int i = 0; store_.find(fmt::format("clean/{}", i)) != nullptr; ++i) {
      Pair pair;
      pair.id = std::to_string(i);
      pair.clean = ints(fmt::format("clean/{}", i));
      pair.corrupted = ints(fmt::format("corrupted/{}", i));
      pair.correct = {ints("answers")[0]};
      pair.wrong = {ints("answers")[1]};
      pairs_.push_back(pair);
    }
    metric_.emplace(MetricKind::logit_diff, pairs_, model_.config().d_vocab);
  }

  std::vector<std::int32_t> ints(const std::string& name) const {
    const TensorInfo* tensor = store_.find(name);
    if (tensor == nullptr) throw Error(name);
    std::vector<std::int32_t> out(tensor->elements());
    std::memcpy(out.data(), tensor->bytes.data(), tensor->bytes.size());
    return out;
  }
  std::vector<float> floats(const std::string& name) const {
    const TensorInfo* tensor = store_.find(name);
    if (tensor == nullptr) throw Error(name);
    std::vector<float> out(tensor->elements());
    expand_to_f32(tensor->dtype, tensor->bytes, out);
    return out;
  }
  Transcoder dictionary(Site site) const {
    const std::string at = "/" + site_name(site);
    Transcoder t;
    t.encoder = floats("W_enc" + at);
    t.encoder_bias = floats("b_enc" + at);
    t.decoder = floats("W_dec" + at);
    t.decoder_bias = floats("b_dec" + at);
    t.config.name = site_name(site);
    t.config.input = t.config.output = {site, false};
    t.config.d_in = t.config.d_out = std::ssize(t.decoder_bias);
    t.config.features = std::ssize(t.encoder_bias);
    if (store_.find("threshold" + at) != nullptr) {
      t.threshold = floats("threshold" + at);
      t.config.activation = FeatureActivation::jump_relu;
    }
    if (store_.find("k" + at) != nullptr) {
      t.config.k = ints("k" + at)[0];
      t.config.activation = FeatureActivation::topk;
    }
    t.check();
    return t;
  }
  FeatureStudy study() { return {forward_, dictionaries_, pairs_, *metric_}; }
  FeatureCircuit kept(bool complement, ErrorNodes errors) const {
    FeatureCircuit circuit{.nodes = {}, .complement = complement, .errors = errors};
    for (std::size_t d = 0; d < dictionaries_.size(); ++d) {
      const auto keep = ints("keep/" + dictionaries_[d].config.name);
      for (std::size_t f = 0; f < keep.size(); ++f) {
        if (keep[f] == 0) continue;
        circuit.nodes.push_back(
            {.dictionary = static_cast<std::int32_t>(d),
             .feature = f + 1 == keep.size() ? kErrorNode : static_cast<std::int32_t>(f)});
      }
    }
    return circuit;
  }

  TensorStore store_;
  Model model_;
  Forward forward_;
  std::vector<Transcoder> dictionaries_;
  std::vector<Pair> pairs_;
  std::optional<Metric> metric_;
};

constexpr FeatureBaseline kBaselines[] = {FeatureBaseline::pair, FeatureBaseline::zero,
                                          FeatureBaseline::mean};

// Every node of every site at every position, by every method and baseline.
TEST_P(FeatureCircuitGolden, Effects) {
  for (const FeatureBaseline baseline : kBaselines) {
    const std::string how(feature_baseline_name(baseline));
    FeatureEffectOptions options;
    options.baseline = baseline;
    options.by_position = true;
    const FeatureEffects effects = feature_effects(study(), options);
    options.by_position = false;
    const FeatureEffects summed = feature_effects(study(), options);
    const auto metric = floats("metric");
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      EXPECT_NEAR(effects.clean[p], metric[p], 1e-5);
      EXPECT_NEAR(effects.corrupted[p], metric[pairs_.size() + p], 1e-5);
    }
    for (std::size_t m = 0; m < 3; ++m) {
      const std::string method(feature_method_name(options.methods[m]));
      std::map<FeatureNode, double> found;
      for (std::size_t i = 0; i < effects.nodes.size(); ++i)
        found[effects.nodes[i]] = effects.of(m)[i];
      std::map<FeatureNode, double> sums;
      double worst = 0;
      std::size_t compared = 0;
      for (std::size_t d = 0; d < dictionaries_.size(); ++d) {
        const std::string at = how + "/" + method + "/" + dictionaries_[d].config.name;
        const std::vector<float> want = floats(at), terms = floats("terms/" + at);
        const std::size_t width = size(dictionaries_[d].config.features) + 1;
        for (std::size_t t = 0; t < terms.size(); ++t) {
          for (std::size_t f = 0; f < width; ++f) {
            FeatureNode node{
                .dictionary = static_cast<std::int32_t>(d),
                .position = static_cast<std::int32_t>(t) - static_cast<std::int32_t>(terms.size()),
                .feature = f + 1 == width ? kErrorNode : static_cast<std::int32_t>(f)};
            const auto it = found.find(node);
            const double got = it == found.end() ? 0.0 : it->second;
            const double expected = want[t * width + f];
            const double error = std::abs(got - expected) / (double{terms[t]} + 1e-12);
            if (terms[t] > 0) worst = std::max(worst, error);
            EXPECT_LE(error, kTolerance) << feature_node_name(node, dictionaries_) << " " << at;
            compared += it != found.end();
            node.position = kAllPositions;
            sums[node] += expected;
          }
        }
      }
      EXPECT_EQ(compared, effects.nodes.size());  // nothing that the reference lacks
      EXPECT_GT(compared, 500U);
      double scale = 0;
      for (const auto& [node, sum] : sums) scale = std::max(scale, std::abs(sum));
      for (std::size_t i = 0; i < summed.nodes.size(); ++i) {
        EXPECT_NEAR(summed.of(m)[i], sums.at(summed.nodes[i]), kTolerance * scale);
      }
      RecordProperty(how + "_" + method, fmt::format("{:.2g}", worst));
    }
  }
}

TEST_P(FeatureCircuitGolden, MeasuredEffects) {
  for (const FeatureBaseline baseline : kBaselines) {
    const std::string how(feature_baseline_name(baseline));
    for (std::size_t d = 0; d < dictionaries_.size(); d += 4) {
      const std::vector<float> want = floats("exact/" + how + "/" + dictionaries_[d].config.name);
      std::vector<FeatureNode> nodes;
      for (std::size_t f = 0; f < want.size(); ++f) {
        nodes.push_back(
            {.dictionary = static_cast<std::int32_t>(d),
             .feature = f + 1 == want.size() ? kErrorNode : static_cast<std::int32_t>(f)});
      }
      const std::vector<double> got = exact_feature_effects(study(), nodes, {.baseline = baseline});
      double scale = 0;
      for (const float w : want) scale = std::max(scale, double{std::abs(w)});
      EXPECT_GT(scale, 0);
      for (std::size_t f = 0; f < want.size(); ++f) {
        EXPECT_NEAR(got[f], want[f], kTolerance * scale)
            << feature_node_name(nodes[f], dictionaries_) << " " << how;
      }
    }
  }
}

TEST_P(FeatureCircuitGolden, Circuits) {
  for (const FeatureBaseline baseline : kBaselines) {
    const std::string how(feature_baseline_name(baseline));
    const FeatureCircuit circuits[] = {kept(false, ErrorNodes::ranked),
                                       kept(true, ErrorNodes::ranked),
                                       kept(false, ErrorNodes::keep),
                                       {.nodes = {}, .complement = false}};
    const std::vector<double> got = run_feature_circuits(study(), circuits, {.baseline = baseline});
    const std::vector<float> want = floats("circuit/" + how);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(got[i], want[i], kTolerance * (1 + std::abs(want[i]))) << how << " " << i;
    }
  }
}

TEST_P(FeatureCircuitGolden, Edges) {
  std::vector<FeatureNode> nodes;
  for (std::size_t d = 0; d < dictionaries_.size(); ++d) {
    for (const std::int32_t feature : {kErrorNode, 3, 11})
      nodes.push_back({.dictionary = static_cast<std::int32_t>(d), .feature = feature});
  }
  for (const FeatureMethod method : {FeatureMethod::atp, FeatureMethod::ig, FeatureMethod::relp}) {
    for (const std::int64_t batch : {1, 1000}) {
      const FeatureEdges edges = feature_edges(study(), {.batch_tokens = batch}, method, nodes);
      const std::vector<float> want = floats("edges/" + std::string(feature_method_name(method)));
      ASSERT_EQ(edges.weights.size(), want.size());
      double scale = 0;
      for (const float w : want) scale = std::max(scale, double{std::abs(w)});
      EXPECT_GT(scale, 0.1);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_NEAR(edges.weights[i], want[i], 1e-5 * scale) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, FeatureCircuitGolden, ::testing::Values("gpt2", "gemma2"));

}  // namespace
}  // namespace lamina
