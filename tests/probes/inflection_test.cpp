// Entropy, gradients, score and Δ-CKA against transformers, autograd and numpy in double precision
// (make_inflection_goldens.py), and the parts of the score on made-up numbers.

#include "lamina/probes/inflection.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "lamina/core/error.h"
#include "lamina/core/model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Doubles = std::vector<double>;

const fs::path kTests = fs::path(LAMINA_SOURCE_DIR) / "tests";

const Json& goldens() {
  static const Json json = Json::parse(std::ifstream(kTests / "probes" / "inflection.json"));
  return json;
}

std::vector<Prompt> golden_prompts() {
  std::vector<Prompt> prompts;
  for (const auto& ids : goldens()["prompts"]) {
    Prompt prompt;
    prompt.id = std::to_string(prompts.size());
    prompt.ids = ids.get<std::vector<std::int32_t>>();
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    // By number and by name.
    const char* names[] = {"0", "neutral", "2"};
    prompt.labels["label"] = names[prompts.size() % 3];
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

void append(const Json& json, Doubles& out) {
  if (!json.is_array()) return out.push_back(json.get<double>());
  for (const Json& part : json) append(part, out);
}

// fp32 forwards and backwards against double: relative to the largest of the row.
void expect_near(const Doubles& got, const Json& json, double tolerance, const std::string& what) {
  Doubles want;
  append(json, want);
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0;
  for (const double v : want) largest = std::max(largest, std::abs(v));
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], tolerance * largest) << what << " " << i;
  }
}

class Pair : public testing::TestWithParam<int> {
 protected:
  const Json& golden() const { return goldens()["cases"][static_cast<std::size_t>(GetParam())]; }
  Model load(std::size_t m) const {
    return Model::load(kTests / "goldens" / golden()["models"][m].get<std::string>());
  }
  InflectionResults measure(const InflectionOptions& options) const {
    const Model a = load(0), b = load(1);
    Forward one(a), two(b);
    Forward* const models[] = {&one, &two};
    return measure_inflection(models, golden_prompts(), options);
  }
};

TEST_P(Pair, EntropiesAndGradientsAreThoseOfTheReference) {
  constexpr double kTolerance = 2e-5;
  for (const auto& [name, most] :
       {std::pair{"one", std::int64_t{512}}, std::pair{"small", std::int64_t{25}}}) {
    InflectionOptions options;
    options.batch_tokens = most;
    const InflectionResults r = measure(options);
    ASSERT_EQ(r.runs.size(), 2u);
    EXPECT_EQ(r.loss, GetParam() == 0 ? InflectionLoss::next_token : InflectionLoss::label);
    for (std::size_t m = 0; m < 2; ++m) {
      const InflectionRun& run = r.runs[m];
      const Json& all = golden()["runs"][m];
      const Json& want = all[name];
      const std::string what = run.model_id + " " + name + " ";
      expect_near(run.head_entropy, all["head_entropy"], kTolerance, what + "entropy");
      expect_near(run.head_entropy_normalized, all["head_entropy_normalized"], kTolerance,
                  what + "normalized entropy");
      expect_near({run.loss}, Json::array({want["loss"]}), kTolerance, what + "loss");
      EXPECT_DOUBLE_EQ(run.accuracy, want["accuracy"].get<double>());
      EXPECT_EQ(run.predicted, want["predicted"].get<std::int64_t>());
      EXPECT_EQ(run.batches, want["batches"].get<std::int64_t>());
      expect_near(run.token_gradient, want["token_gradient"], kTolerance, what + "token gradient");
      expect_near(run.batch_gradient, want["batch_gradient"], kTolerance, what + "batch gradient");
      expect_near(run.layer_gradient, want["layer_gradient"], kTolerance, what + "layer gradient");
      for (const auto& [tensor, value] : want["parameters"].items()) {
        const auto at = std::find(run.parameters.begin(), run.parameters.end(), tensor);
        ASSERT_NE(at, run.parameters.end()) << tensor;
        const auto i = static_cast<std::size_t>(at - run.parameters.begin());
        expect_near({run.parameter_gradient[i]}, Json::array({value}), kTolerance, what + tensor);
      }
    }
  }
}

TEST_P(Pair, ScoresAreThoseOfTheReference) {
  InflectionOptions options;
  const InflectionResults token = measure(options);
  options.weight = 0.3;
  options.batch_gradient = true;
  const InflectionResults batch = measure(options);
  for (std::size_t m = 0; m < 2; ++m) {
    const Json& want = golden()["runs"][m];
    // Scaling by a range of a few percent makes rounding that much larger.
    expect_near(token.runs[m].score, want["score_token"], 1e-3, "score");
    expect_near(batch.runs[m].score, want["score_batch"], 1e-3, "score");
    EXPECT_EQ(token.runs[m].candidates, local_maxima(token.runs[m].score));
  }
}

TEST_P(Pair, DeltaCkaIsThatOfTheStackedRows) {
  for (const auto& [name, components, variance, skip] :
       {std::tuple{"default", 64, 0.95, 0}, std::tuple{"five", 5, 1.0, 0},
        std::tuple{"skip", 64, 0.95, 1}}) {
    InflectionOptions options;
    options.skip = skip;
    options.components = components;
    options.variance = variance;
    options.batch_tokens = 20;  // several blocks
    const InflectionResults r = measure(options);
    const Json& want = golden()[name];
    expect_near(r.delta_cka, want[0], 1e-5, "delta");
    expect_near(r.full_delta_cka, want[1], 1e-5, "full delta");
    expect_near(Doubles(r.components.begin(), r.components.end()), want[2], 0, "components");
    expect_near(r.kept_variance, want[3], 1e-5, "variance");
  }
}

TEST_P(Pair, ThreadsChangeNothing) {
  InflectionOptions options;
  options.batch_tokens = 25;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const InflectionResults one = measure(options);
  omp_set_num_threads(3);
  const InflectionResults three = measure(options);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.delta_cka, three.delta_cka);
  for (std::size_t m = 0; m < 2; ++m) {
    EXPECT_EQ(one.runs[m].head_entropy, three.runs[m].head_entropy);
    EXPECT_EQ(one.runs[m].token_gradient, three.runs[m].token_gradient);
    EXPECT_EQ(one.runs[m].score, three.runs[m].score);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Pair, testing::Values(0, 1), [](const auto& one) {
  return std::string(one.param == 0 ? "decoders" : "classifiers");
});

TEST(Inflection, AModelAgainstItselfDiffersNowhere) {
  const Model model = Model::load(kTests / "goldens" / "llama2");
  Forward one(model), two(model);
  Forward* const models[] = {&one, &two};
  const InflectionResults r = measure_inflection(models, golden_prompts());
  for (const double v : r.delta_cka) EXPECT_NEAR(v, 0.0, 1e-12);
  EXPECT_EQ(r.runs[0].score, r.runs[1].score);
}

TEST(Inflection, WithoutALossThereAreEntropiesOnly) {
  const Model model = Model::load(kTests / "goldens" / "bert_headless");
  Forward forward(model);
  Forward* const models[] = {&forward};
  const InflectionResults r = measure_inflection(models, golden_prompts());
  EXPECT_EQ(r.loss, InflectionLoss::none);
  EXPECT_EQ(r.runs[0].entropy.size(), 2u);
  EXPECT_TRUE(r.runs[0].score.empty());
}

std::string refusal(const char* model_name, const InflectionOptions& options,
                    const std::vector<Prompt>& prompts, const char* against = nullptr) {
  const Model model = Model::load(kTests / "goldens" / model_name);
  const Model other = Model::load(kTests / "goldens" / (against ? against : model_name));
  Forward one(model), two(other);
  std::vector<Forward*> models = {&one};
  if (against != nullptr) models.push_back(&two);
  try {
    measure_inflection(models, prompts, options);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(Inflection, RefusesWhatDoesNotFit) {
  auto prompts = golden_prompts();
  InflectionOptions options;
  options.loss = InflectionLoss::label;
  EXPECT_EQ(refusal("llama2", options, prompts),
            "this llama model is no classifier: it has no loss of labels");
  options.loss = InflectionLoss::next_token;
  EXPECT_EQ(refusal("bert", options, prompts),
            "this bert model is no causal language model: it has no next-token loss");
  EXPECT_EQ(refusal("llama2", {}, prompts, "gemma3"),
            "'llama2' has n_layers 3, 'gemma3' has 4: they cannot be compared layer by layer");
  EXPECT_EQ(refusal("llama2", {}, std::vector<Prompt>(prompts.begin() + 1, prompts.begin() + 2)),
            "the prompts leave nothing to predict; a next-token loss needs two tokens or a target");
  prompts[4].labels["label"] = "good";
  EXPECT_EQ(refusal("bert_classifier", {}, prompts),
            "prompt '4': label 'label' is 'good'; the model has 3 labels: negative, neutral, "
            "positive (or 0 to 2)");
  prompts[4].labels.clear();
  EXPECT_EQ(refusal("bert_classifier", {}, prompts), "prompt '4' has no label 'label'");
}

TEST(Score, MinMaxMaximaAndBand) {
  EXPECT_EQ(min_max(Doubles{2, 4, 3}), (Doubles{0, 1, 0.5}));
  EXPECT_EQ(min_max(Doubles{2, 2}), (Doubles{0, 0}));
  using Layers = std::vector<std::int32_t>;
  EXPECT_EQ(local_maxima(Doubles{0, 1, 0, 3, 2}), (Layers{3, 1}));
  EXPECT_EQ(local_maxima(Doubles{3, 1, 2}), (Layers{0, 2}));  // ends count
  EXPECT_EQ(local_maxima(Doubles{0, 2, 2, 1}), (Layers{1}));  // a plateau's first
  EXPECT_EQ(local_maxima(Doubles{0, 2, 2, 3}), (Layers{3}));  // a step is none
  EXPECT_EQ(local_maxima(Doubles{1, 1, 1}), (Layers{}));
  EXPECT_EQ(local_maxima(Doubles{1}), (Layers{0}));
  EXPECT_EQ(peak_band(Doubles{0.9, 0.1, 0.8, 1.0, 0.85, 0.2}, 0.8), (std::pair{2, 4}));
  EXPECT_EQ(peak_band(Doubles{1, 0.5}, 0.5), (std::pair{0, 1}));
}

TEST(SharedCka, InvariantToRotationScaleAndShift) {
  constexpr std::size_t kRows = 40, kD = 6;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(kRows * kD), y(x.size());
  for (float& v : x) v = normal(random);
  // y = 3·x with two axes turned into each other, far from the origin. CKA of all dimensions is 1.
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t i = 0; i < kD; ++i) y[r * kD + i] = 3 * x[r * kD + i] + 100;
    const float a = x[r * kD], b = x[r * kD + 1];
    y[r * kD] = 3 * (0.6f * a - 0.8f * b) + 100;
    y[r * kD + 1] = 3 * (0.8f * a + 0.6f * b) - 100;
  }
  SharedCka cka(kD);
  cka.add(std::span(x).first(17 * kD), std::span(y).first(17 * kD));
  cka.add(std::span(x).subspan(17 * kD), std::span(y).subspan(17 * kD));
  const SharedCka::Result all = cka.result(64, 1.0);
  EXPECT_NEAR(all.full_cka, 1.0, 1e-6);
  EXPECT_EQ(all.components, 6);
  EXPECT_NEAR(all.cka, 1.0, 1e-6);
  EXPECT_LT(cka.result(2, 1.0).kept_variance, 0.9);

  SharedCka still(kD);
  const std::vector<float> constant(kRows * kD, 2.0f);
  still.add(x, constant);
  EXPECT_TRUE(std::isnan(still.result(64, 0.95).cka));
}

}  // namespace
}  // namespace lamina
