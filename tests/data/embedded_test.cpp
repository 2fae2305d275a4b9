// The models that ship in data/: what they compute against data/expected.json (made by an
// independent reference, data/make_expected.py), and the planted circuits against circuit.json.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "lamina/core/math.h"
#include "lamina/core/prompts.h"
#include "lamina/core/run.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

std::filesystem::path data_folder() {
  return std::filesystem::path(LAMINA_SOURCE_DIR) / "data";
}

Json read_json(const std::filesystem::path& path) {
  std::ifstream in(path);
  return Json::parse(in);
}

// The last token's logits of one prompt.
std::vector<float> last_logits(Forward& forward, const std::vector<std::int32_t>& ids,
                               const Hooks& hooks = {}) {
  Batch batch;
  batch.add(ids);
  forward.run(batch, hooks);
  std::vector<float> logits(static_cast<std::size_t>(forward.model().config().d_vocab));
  const std::int64_t last = batch.tokens() - 1;
  forward.run_logits(std::span(&last, 1), logits);
  return logits;
}

class Embedded : public ::testing::TestWithParam<std::string> {
 protected:
  Model model_ = Model::load(data_folder() / GetParam());
  Forward forward_{model_};
};

TEST_P(Embedded, TokensAndPredictionsAsExpected) {
  const Json expected = read_json(data_folder() / "expected.json").at(GetParam());
  ASSERT_GE(expected.size(), 4u);
  const ModelConfig& config = model_.config();
  for (const Json& item : expected) {
    SCOPED_TRACE(item.at("id").get<std::string>());
    const std::vector<std::int32_t> ids =
        model_.tokenizer()->encode(item.at("text").get<std::string>());
    ASSERT_EQ(ids, item.at("ids").get<std::vector<std::int32_t>>());

    std::vector<double> norms;  // of the last token: embedding, then after every block
    Hooks hooks;
    const auto norm_of_last = [&](SiteView& view) {
      double sum = 0;
      for (float x : view.values.last(static_cast<std::size_t>(config.d_model)))
        sum += double{x} * x;
      norms.push_back(std::sqrt(sum));
    };
    hooks.read({SiteKind::resid_pre, 0}, norm_of_last);
    for (std::int32_t l = 0; l < config.n_layers; ++l) {
      hooks.read({SiteKind::resid_post, l}, norm_of_last);
    }
    const std::vector<float> logits = last_logits(forward_, ids, hooks);
    const auto resid_norms = item.at("resid_norms").get<std::vector<double>>();
    ASSERT_EQ(norms.size(), resid_norms.size());
    for (std::size_t i = 0; i < norms.size(); ++i) {
      EXPECT_NEAR(norms[i], resid_norms[i], 2e-5 * resid_norms[i]) << "after block " << i;
    }

    const double log_norm = math::log_sum_exp(logits);
    const auto top_ids = item.at("top_ids").get<std::vector<std::int32_t>>();
    const auto top_logprobs = item.at("top_logprobs").get<std::vector<double>>();
    for (std::size_t i = 0; i < top_ids.size(); ++i) {
      // Printed with six decimals; logits of up to ~100 carry ~1e-5 of rounding.
      EXPECT_NEAR(logits[static_cast<std::size_t>(top_ids[i])] - log_norm, top_logprobs[i], 5e-5);
    }
    EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), top_ids[0]);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Embedded,
                         ::testing::Values("organism", "planted/previous_token",
                                           "planted/induction", "planted/majority",
                                           "planted/indirect_object"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(Organism, AnswersItsDemoPrompts) {
  const Model model = Model::load(data_folder() / "organism");
  Forward forward(model);
  const std::vector<Prompt> prompts = read_prompts(data_folder() / "organism/prompts.jsonl",
                                                   model.tokenizer(), model.config().d_vocab);
  ASSERT_GE(prompts.size(), 40u);
  for (const Prompt& prompt : prompts) {
    const std::vector<float> logits = last_logits(forward, prompt.ids);
    EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), prompt.target)
        << prompt.text;
  }
}

// Sets a node's output to zero: "a1.h2" is a head, "m0" an MLP.
void ablate(Hooks& hooks, const std::string& node) {
  const auto layer = static_cast<std::int32_t>(std::stoi(node.substr(1)));
  if (node[0] == 'm') {
    hooks.write({SiteKind::mlp_out, layer},
                [](SiteView& view) { std::fill(view.values.begin(), view.values.end(), 0.0f); });
    return;
  }
  const std::int64_t head = std::stoi(node.substr(node.find(".h") + 2));
  hooks.write({SiteKind::z, layer}, [head](SiteView& view) {
    for (std::int64_t t = 0; t < view.batch.tokens(); ++t) {
      const auto row = view.values.subspan(
          static_cast<std::size_t>(t * view.shape.row() + head * view.shape.width),
          static_cast<std::size_t>(view.shape.width));
      std::fill(row.begin(), row.end(), 0.0f);
    }
  });
}

class Planted : public Embedded {};

TEST_P(Planted, ExactlyTheCircuitMatters) {
  const Json circuit = read_json(data_folder() / GetParam() / "circuit.json");
  std::set<std::string> in_circuit;
  for (const Json& node : circuit.at("nodes"))
    in_circuit.insert(node.at("name").get<std::string>());
  const std::vector<Prompt> prompts = read_prompts(data_folder() / GetParam() / "prompts.jsonl",
                                                   model_.tokenizer(), model_.config().d_vocab);
  ASSERT_GE(prompts.size(), 10u);

  std::vector<std::string> nodes;
  for (std::int64_t l = 0; l < model_.config().n_layers; ++l) {
    for (std::int64_t h = 0; h < model_.config().n_heads; ++h) {
      nodes.push_back(fmt::format("a{}.h{}", l, h));
    }
    if (model_.config().d_mlp > 0) nodes.push_back(fmt::format("m{}", l));
  }
  // Every component the file names is one of the model's.
  for (const std::string& name : in_circuit) {
    if (name == "input" || name == "logits") continue;
    EXPECT_NE(std::find(nodes.begin(), nodes.end(), name), nodes.end()) << name;
  }

  for (const std::string& node : nodes) {
    Hooks hooks;
    ablate(hooks, node);
    int broken = 0;
    double moved = 0;
    for (const Prompt& prompt : prompts) {
      const std::vector<float> clean = last_logits(forward_, prompt.ids);
      const std::vector<float> ablated = last_logits(forward_, prompt.ids, hooks);
      EXPECT_EQ(std::max_element(clean.begin(), clean.end()) - clean.begin(), prompt.target);
      broken += std::max_element(ablated.begin(), ablated.end()) - ablated.begin() != prompt.target;
      // A distractor may move the logits of words that never answer, not the answer's.
      const auto target = static_cast<std::size_t>(*prompt.target);
      moved = std::max(moved, std::abs(double{clean[target]} - ablated[target]));
    }
    if (in_circuit.contains(node)) {
      EXPECT_GT(broken, 0) << node << " is in the circuit, but nothing broke without it";
    } else {
      EXPECT_LT(moved, 1e-4) << node
                             << " is not in the circuit, but the answer's logit moved without it";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Circuits, Planted,
                         ::testing::Values("planted/previous_token", "planted/induction",
                                           "planted/majority", "planted/indirect_object"),
                         [](const auto& test) { return test.param.substr(8); });

}  // namespace
}  // namespace lamina
