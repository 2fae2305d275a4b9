// The gradients under relevance patching's rules, and the scores made of them, against the
// authors' released code (make_relp_goldens.py).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"
#include "lamina/patching/attribution.h"

namespace lamina {
namespace {

// Of the site's largest magnitude: fp32 here, double precision there.
constexpr double kTolerance = 2e-5;

struct Golden {
  explicit Golden(const std::string& name)
      : store(open_safetensors(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests" / "patching" /
                               "goldens" / ("relp_" + name + ".safetensors"))) {
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
  std::vector<Pair> pairs() const {
    const std::vector<std::int32_t>& answers = ids.at("answers");
    Pair pair;
    pair.id = "golden";
    pair.clean = ids.at("clean");
    pair.corrupted = ids.at("corrupted");
    pair.correct = {answers[0]};
    pair.wrong = {answers[1]};
    return {pair};
  }
  // The sites that the reference has under a set of rules.
  std::vector<std::string> sites(const std::string& rules) const {
    std::vector<std::string> out;
    for (const auto& [name, value] : values) {
      if (name.starts_with(rules + "/")) out.push_back(name.substr(rules.size() + 1));
    }
    return out;
  }
  TensorStore store;
  std::map<std::string, std::vector<std::int32_t>> ids;
  std::map<std::string, std::vector<float>> values;
};

const std::map<std::string, BackwardRules>& rule_sets() {
  static const std::map<std::string, BackwardRules> sets = {
      {"none", {}},
      {"ln", {.frozen_norm = true}},
      {"identity", {.activation_ratio = true}},
      {"half", {.half_gate = true}},
      {"ah", {.frozen_pattern = true}},
      {"relp", BackwardRules::relp()},
      {"all",
       {.frozen_norm = true, .frozen_pattern = true, .activation_ratio = true, .half_gate = true}},
      {"stabiliser", BackwardRules::relp()},
  };
  return sets;
}

double largest(const std::vector<float>& values) {
  double out = 0;
  for (float v : values) out = std::max(out, static_cast<double>(std::abs(v)));
  return out;
}

// The largest difference as a share of the largest expected magnitude. A reference of zeros (half
// of an ungated model's pre_linear, say) is compared as it is.
template <class Values>
double difference(const std::vector<float>& want, const Values& got, double unit = 0.0) {
  if (want.size() != got.size()) return INFINITY;
  if (unit == 0.0) unit = largest(want) > 0 ? largest(want) : 1.0;
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double d = std::abs(static_cast<double>(want[i]) - static_cast<double>(got[i])) / unit;
    if (!(d <= worst)) worst = d;  // a NaN stays
  }
  return worst;
}

class RelpGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(RelpGolden, GradientUnderEveryRule) {
  const Golden golden(GetParam());
  const Model model =
      Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests" / "goldens" / GetParam());
  const std::vector<Pair> pairs = golden.pairs();
  const Metric metric(MetricKind::logit_diff, pairs, model.config().d_vocab);
  const std::vector<float>& zeros = golden.values.at("zeros");
  Forward forward(model);
  Backward backward(model);
  const Batch batch = corrupted_batch(pairs);
  const std::int64_t last = batch.tokens() - 1;
  for (const auto& [name, rules] : rule_sets()) {
    Hooks hooks;
    if (name == "stabiliser") {
      for (std::int32_t l = 0; l < model.config().n_layers; ++l) {
        hooks.write({.kind = SiteKind::mlp_pre, .layer = l}, [&](SiteView& view) {
          const auto row = static_cast<std::size_t>(view.shape.row());
          for (std::size_t t = 0; t < view.values.size() / row; ++t) {
            std::copy(zeros.begin(), zeros.end(), view.values.begin() + static_cast<long>(t * row));
          }
        });
      }
    }
    Tape tape;
    forward.run(batch, hooks, RunOptions{.tape = &tape});
    std::vector<float> logits(static_cast<std::size_t>(model.config().d_vocab)), seed(logits);
    forward.run_logits({&last, 1}, logits);
    if (name != "stabiliser") {
      EXPECT_LT(difference(golden.values.at("logits"), logits), kTolerance);
    }
    metric.gradient(0, logits, seed);
    backward.seed(tape, {&last, 1}, seed);
    Hooks gradients;
    std::size_t seen = 0;
    double worst = 0;
    const std::vector<std::string> sites = golden.sites(name);
    for (const std::string& site : sites) {
      gradients.read(parse_site(site, model.config()), [&, rule = name, site](SiteView& view) {
        const double d = difference(golden.values.at(rule + "/" + site), view.values);
        EXPECT_LE(d, kTolerance) << rule << " " << site;
        worst = std::max(worst, d);
        ++seen;
      });
    }
    backward.run(tape, rules, gradients);
    // Without patterns the reference has no gradient at q and k at all.
    EXPECT_GE(sites.size(), rules.frozen_pattern ? 25u : 31u) << name;
    EXPECT_EQ(seen, sites.size()) << name;
    std::cout << fmt::format("{} {:>10}: {} sites, largest difference {:.1e}\n", GetParam(), name,
                             seen, worst);
  }
}

TEST_P(RelpGolden, ScoresOfEveryPosition) {
  const Golden golden(GetParam());
  const Model model =
      Model::load(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests" / "goldens" / GetParam());
  const std::vector<Pair> pairs = golden.pairs();
  const Metric metric(MetricKind::logit_diff, pairs, model.config().d_vocab);
  Forward forward(model);
  for (const std::string rules : {"none", "relp"}) {
    for (const std::string& name : golden.sites("score/" + rules)) {
      const Site site = parse_site(name, model.config());
      const std::vector<Node> nodes =
          nodes_of({&site, 1}, {.position = true}, pairs[0].tokens(), model.config());
      const std::vector<double> got =
          attribute(forward, pairs, metric, nodes, {.rules = rule_sets().at(rules)});
      const double terms = largest(golden.values.at("terms/" + rules + "/" + name));
      EXPECT_LE(difference(golden.values.at("score/" + rules + "/" + name), got, terms), kTolerance)
          << rules << " " << name;
    }
    const Attributed runs =
        attribute_with_runs(forward, pairs, metric, {}, {.rules = rule_sets().at(rules)});
    EXPECT_NEAR(runs.other[0], golden.values.at("metric")[0], 1e-4);
    EXPECT_NEAR(runs.base[0], golden.values.at("metric")[1], 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RelpGolden, ::testing::Values("gpt2", "qwen2", "gemma2"));

}  // namespace
}  // namespace lamina
