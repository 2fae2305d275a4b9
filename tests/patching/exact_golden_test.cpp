// Exact patching against TransformerLens' patching functions (make_patching_goldens.py), and on
// models whose circuit is known because it was built in.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"
#include "lamina/patching/exact.h"

namespace lamina {
namespace {

const std::filesystem::path kTests = std::filesystem::path(LAMINA_SOURCE_DIR) / "tests";

struct Golden {
  Golden() : store(open_safetensors(kTests / "patching" / "goldens" / "patching.safetensors")) {
    for (const TensorInfo& tensor : store.tensors()) {
      if (tensor.dtype == DType::i32) {
        std::vector<std::int32_t>& out = ids[tensor.name];
        out.resize(tensor.elements());
        std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
      } else {
        std::vector<float>& out = values[tensor.name];
        out.resize(tensor.elements());
        expand_to_f32(tensor.dtype, tensor.bytes, out);
      }
    }
  }
  std::vector<Pair> pairs(const std::string& model) const {
    const std::vector<std::int32_t>& clean = ids.at(model + "/clean_ids");
    const std::vector<std::int32_t>& corrupted = ids.at(model + "/corrupted_ids");
    const std::vector<std::int32_t>& answers = ids.at(model + "/answers");
    const std::size_t count = answers.size() / 2, length = clean.size() / count;
    std::vector<Pair> out;
    for (std::size_t p = 0; p < count; ++p) {
      Pair pair;
      pair.id = std::to_string(p);
      const auto cut = [&](const std::vector<std::int32_t>& all) {
        return std::vector<std::int32_t>(
            all.begin() + static_cast<std::ptrdiff_t>(p * length),
            all.begin() + static_cast<std::ptrdiff_t>((p + 1) * length));
      };
      pair.clean = cut(clean);
      pair.corrupted = cut(corrupted);
      pair.correct = {answers[2 * p]};
      pair.wrong = {answers[2 * p + 1]};
      out.push_back(std::move(pair));
    }
    return out;
  }
  TensorStore store;
  std::map<std::string, std::vector<std::int32_t>> ids;
  std::map<std::string, std::vector<float>> values;
};

struct SweepKind {
  SiteKind kind;
  Split split;
  bool heads_first = false;  // TransformerLens' order of the dimensions after the layer
};
const std::map<std::string, SweepKind>& sweeps() {
  static const std::map<std::string, SweepKind> all = {
      {"resid_pre", {SiteKind::resid_pre, {.position = true}}},
      {"resid_mid", {SiteKind::resid_mid, {.position = true}}},
      {"attn_out", {SiteKind::attn_out, {.position = true}}},
      {"mlp_out", {SiteKind::mlp_out, {.position = true}}},
      {"z", {SiteKind::z, {.position = false, .head = true}}},
      {"q", {SiteKind::q, {.position = false, .head = true}}},
      {"k", {SiteKind::k, {.position = false, .head = true}}},
      {"v", {SiteKind::v, {.position = false, .head = true}}},
      {"pattern", {SiteKind::pattern, {.position = false, .head = true}}},
      {"z_by_pos", {SiteKind::z, {.position = true, .head = true}}},
      {"q_by_pos", {SiteKind::q, {.position = true, .head = true}}},
      {"pattern_by_pos", {SiteKind::pattern, {.position = true, .head = true}, true}},
  };
  return all;
}

class ExactGolden : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, ExactGolden,
                         ::testing::Values("lamina_relu", "lamina_parallel", "lamina_sandwich",
                                           "lamina_attn_only"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(ExactGolden, EqualsTransformerLens) {
  const std::string name = GetParam();
  const Golden golden;
  const Model model = Model::load(kTests / "goldens" / name);
  Forward forward(model);
  const std::vector<Pair> pairs = golden.pairs(name);
  const Metric metric(MetricKind::logit_diff, pairs, model.config().d_vocab);
  const std::vector<float>& unpatched = golden.values.at(name + "/metric");  // clean, corrupted
  const double range = std::abs(double{unpatched[0]} - double{unpatched[1]});
  ASSERT_GT(range, 0.1);
  int compared = 0;
  for (const auto& [label, sweep] : sweeps()) {
    const auto found = golden.values.find(name + "/" + label);
    if (found == golden.values.end()) continue;
    ++compared;
    std::vector<Site> sites;
    for (std::int32_t l = 0; l < model.config().n_layers; ++l) sites.push_back({sweep.kind, l});
    std::vector<Node> nodes = nodes_of(sites, sweep.split, pairs[0].tokens(), model.config());
    if (sweep.heads_first) {
      std::sort(nodes.begin(), nodes.end(), [](const Node& a, const Node& b) {
        return std::tie(a.site.layer, a.head, a.position) <
               std::tie(b.site.layer, b.head, b.position);
      });
    }
    ASSERT_EQ(nodes.size(), found->second.size()) << label;
    const PatchResult result = patch_exactly(forward, pairs, metric, nodes);
    double clean = 0.0;
    for (const double m : result.clean) clean += m / static_cast<double>(pairs.size());
    EXPECT_NEAR(clean, unpatched[0], 1e-4 * range);
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      double mean = 0.0;
      for (std::size_t p = 0; p < pairs.size(); ++p) {
        mean += result.patched[n * pairs.size() + p] / static_cast<double>(pairs.size());
      }
      EXPECT_NEAR(mean, found->second[n], 1e-4 * range) << label << " " << node_name(nodes[n]);
    }
  }
  EXPECT_GE(compared, 9);
}

// "a1.h2", "m0" as a node; nullopt for input and logits.
std::optional<Node> planted_node(const std::string& name) {
  if (name[0] == 'm') return Node{.site = {SiteKind::mlp_out, std::stoi(name.substr(1))}};
  if (name[0] != 'a') return std::nullopt;
  const std::size_t dot = name.find(".h");
  return Node{.site = {SiteKind::z, std::stoi(name.substr(1, dot - 1))},
              .head = std::stoi(name.substr(dot + 2))};
}

class ExactPlanted : public ::testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path folder_ =
      std::filesystem::path(LAMINA_SOURCE_DIR) / "data" / "planted" / GetParam();
  Model model_ = Model::load(folder_);
  Forward forward_{model_};
  std::vector<Pair> pairs_ =
      read_pairs(folder_ / "pairs.jsonl", model_.tokenizer(), model_.config().d_vocab);
  Metric metric_{MetricKind::logit_diff, pairs_, model_.config().d_vocab};
  nlohmann::json circuit_ = nlohmann::json::parse(std::ifstream(folder_ / "circuit.json"));

  std::vector<Node> nodes() const {
    std::vector<Node> all;
    for (std::int32_t l = 0; l < model_.config().n_layers; ++l) {
      for (std::int64_t h = 0; h < model_.config().n_heads; ++h) {
        all.push_back({.site = {SiteKind::z, l}, .head = h});
      }
      if (model_.config().d_mlp > 0) all.push_back({.site = {SiteKind::mlp_out, l}});
    }
    return all;
  }
  /// Largest |patched − base| over the pairs, [node].
  std::vector<double> effects(const PatchResult& result, const std::vector<double>& base) const {
    std::vector<double> out;
    for (std::size_t n = 0; n < result.patched.size() / pairs_.size(); ++n) {
      double most = 0.0;
      for (std::size_t p = 0; p < pairs_.size(); ++p) {
        most = std::max(most, std::abs(result.patched[n * pairs_.size() + p] - base[p]));
      }
      out.push_back(most);
    }
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(Models, ExactPlanted,
                         ::testing::Values("previous_token", "induction", "majority",
                                           "indirect_object"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(ExactPlanted, ZeroAblationFindsTheCircuitAndNothingElse) {
  std::set<Node> circuit;
  for (const auto& node : circuit_["nodes"]) {
    if (const auto planted = planted_node(node["name"])) circuit.insert(*planted);
  }
  ASSERT_FALSE(circuit.empty());
  const std::vector<Node> nodes = this->nodes();
  const PatchResult result =
      patch_exactly(forward_, pairs_, metric_, nodes,
                    {.direction = Direction::noise, .replacement = Replacement::zero});
  const std::vector<double> effect = effects(result, result.clean);
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    if (circuit.contains(nodes[n])) {
      EXPECT_GT(effect[n], 1.0) << node_name(nodes[n]);
    } else {
      EXPECT_LT(effect[n], 1e-3) << node_name(nodes[n]);
    }
  }
}

TEST_P(ExactPlanted, PatchingFindsWhatCarriesTheDifference) {
  std::set<Node> carrying;
  for (const auto& edge : circuit_["edges"]) {
    if (!edge["counterfactual"].get<bool>()) continue;
    const std::string text = edge["edge"];
    if (const auto planted = planted_node(text.substr(0, text.find("->"))))
      carrying.insert(*planted);
  }
  ASSERT_FALSE(carrying.empty());
  const std::vector<Node> nodes = this->nodes();
  for (const Direction direction : {Direction::denoise, Direction::noise}) {
    const PatchResult result =
        patch_exactly(forward_, pairs_, metric_, nodes, {.direction = direction});
    const std::vector<double> effect =
        effects(result, direction == Direction::denoise ? result.corrupted : result.clean);
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      if (carrying.contains(nodes[n])) {
        EXPECT_GT(effect[n], 1.0) << node_name(nodes[n]);
      } else {
        EXPECT_LT(effect[n], 1e-3) << node_name(nodes[n]);
      }
    }
  }
}

}  // namespace
}  // namespace lamina
