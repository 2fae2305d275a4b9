// CLUE and the information plane against numpy; features by position and label.

#include "lamina/probes/clue.h"

#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numbers>

#include "lamina/core/threads.h"
#include "lamina/probes/infoplane.h"
#include "support.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

const Json& goldens() {
  static const Json json = [] {
    std::ifstream file(std::string(LAMINA_SOURCE_DIR) + "/tests/probes/clue.json");
    return Json::parse(file);
  }();
  return json;
}

std::string message(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "no error";
}

struct Traces {
  const Json& json = goldens()["clue"];
  std::vector<FeatureRow> rows;
  std::vector<std::uint8_t> correct;
  std::vector<std::string> answers;

  Traces() {
    for (std::size_t i = 0; i < json["question"].size(); ++i) {
      FeatureRow row;
      row.prompt = static_cast<std::int64_t>(i);
      row.prompt_id = std::to_string(i);
      row.group = std::to_string(json["question"][i].get<int>());
      rows.push_back(row);
      correct.push_back(json["correct"][i].get<std::uint8_t>());
      answers.push_back(json["answer"][i]);
    }
  }
  ClueResults run(const ClueOptions& options, const ClueCentroids* given = nullptr) const {
    Clue clue(rows, correct, options, given);
    for (std::size_t l = 0; l < json["layers"].size(); ++l) {
      clue.add_layer("layer " + std::to_string(l), json["layers"][l].get<std::vector<float>>(),
                     json["widths"][l]);
    }
    return clue.finish(answers);
  }
  ClueCentroids given() const {
    ClueCentroids out;
    for (std::size_t l = 0; l < json["layers"].size(); ++l) {
      out.sites.push_back("layer " + std::to_string(l));
      out.success.push_back(json["given_success"][l].get<std::vector<float>>());
      out.failure.push_back(json["given_failure"][l].get<std::vector<float>>());
    }
    return out;
  }
};

TEST(Clue, GivenCentroidsAgainstNumpy) {
  const Traces traces;
  const ClueCentroids given = traces.given();
  const ClueResults r = traces.run({.folds = 0}, &given);
  const Json& g = traces.json;
  for (std::size_t i = 0; i < traces.rows.size(); ++i) {
    EXPECT_NEAR(r.to_success[i], g["to_success"][i].get<double>(), 1e-13);
    EXPECT_NEAR(r.to_failure[i], g["to_failure"][i].get<double>(), 1e-13);
  }
  EXPECT_NEAR(r.accuracy.value, g["accuracy"].get<double>(), 1e-15);
  EXPECT_NEAR(r.auroc.value, g["auroc"].get<double>(), 1e-14);
  EXPECT_EQ(r.reranking.questions, 12);
  EXPECT_EQ(r.reranking.candidates, 96);
  EXPECT_NEAR(r.reranking.nearest.value, g["nearest"].get<double>(), 1e-15);
  EXPECT_NEAR(r.reranking.first.value, g["first"].get<double>(), 1e-15);
  EXPECT_NEAR(r.reranking.majority.value, g["majority"].get<double>(), 1e-15);
  EXPECT_NEAR(r.reranking.oracle, g["oracle"].get<double>(), 1e-15);
}

TEST(Clue, CentroidsOfItsOwn) {
  const Traces traces;
  const ClueResults r = traces.run({.folds = 4, .seed = 3});
  for (std::size_t l = 0; l < 3; ++l) {
    for (std::size_t k = 0; k < r.centroids.success[l].size(); ++k) {
      EXPECT_NEAR(r.centroids.success[l][k], traces.json["success"][l][k].get<double>(), 1e-6);
      EXPECT_NEAR(r.centroids.failure[l][k], traces.json["failure"][l][k].get<double>(), 1e-6);
    }
  }
  EXPECT_EQ(r.judged, 96);
  EXPECT_GT(r.auroc.value, 0.6);  // the goldens' traces differ by 0.8σ in each of 17 values
  EXPECT_EQ(r.layer_accuracy.size(), 3u);

  // Leaving a fold out, by hand: the first question's candidates against all other folds' means.
  // Two folds of 12 groups: the fold of a trace is known from which traces move together.
  const ClueResults split = traces.run({.train_share = 0.5, .seed = 3});
  std::vector<double> near(96, 0.0);
  for (std::size_t l = 0; l < 3; ++l) {
    const auto values = traces.json["layers"][l].get<std::vector<float>>();
    const auto d = traces.json["widths"][l].get<std::size_t>();
    std::vector<double> mean(d, 0.0);
    double count = 0;
    for (std::size_t i = 0; i < 96; ++i) {
      if (split.predicted[i] != 2 || traces.correct[i] == 0) continue;  // 2: gave the centroids
      ++count;
      for (std::size_t k = 0; k < d; ++k) mean[k] += values[i * d + k];
    }
    for (std::size_t i = 0; i < 96; ++i) {
      double squares = 0;
      for (std::size_t k = 0; k < d; ++k) {
        squares += std::pow(values[i * d + k] - mean[k] / count, 2);
      }
      near[i] += std::sqrt(squares) / 3;
    }
  }
  EXPECT_EQ(split.judged, 48);
  for (std::size_t i = 0; i < 96; ++i) {
    if (split.predicted[i] != 2) EXPECT_NEAR(split.to_success[i], near[i], 1e-12);
    if (i % 8 > 0) EXPECT_EQ(split.predicted[i] == 2, split.predicted[i - 1] == 2);
  }
}

TEST(Clue, RefusesWhatCannotBeJudged) {
  Traces traces;
  Traces one = traces;
  std::fill(one.correct.begin(), one.correct.end(), 1);
  EXPECT_NE(message([&] { one.run({}); }).find("96 of 96 traces are right"), std::string::npos);
  EXPECT_NE(message([&] { traces.run({.folds = 13}); }).find("12 prompts (or groups)"),
            std::string::npos);
  Clue clue(traces.rows, traces.correct, {});
  std::vector<float> bad(96 * 2, 1.0F);
  bad[9] = INFINITY;
  EXPECT_NE(message([&] { clue.add_layer("x", bad, 2); }).find("x: trace 4 of 96 holds inf"),
            std::string::npos);
  FeatureRow row;
  row.prompt_id = "p";
  row.label = "perhaps";
  EXPECT_NE(message([&] { parse_correct(row, ""); }).find("neither right nor wrong"),
            std::string::npos);
  EXPECT_TRUE(parse_correct(row, "perhaps"));
  row.label = "True";
  EXPECT_TRUE(parse_correct(row, ""));
}

class Plane : public ::testing::TestWithParam<int> {};

TEST_P(Plane, AgainstNumpy) {
  const Json& g = goldens()["plane"][static_cast<std::size_t>(GetParam())];
  InfoPlaneOptions options;
  options.projection = g["projection"] == "pca" ? InfoProjection::pca : InfoProjection::random;
  options.binning = g["binning"] == "width" ? InfoBins::width : InfoBins::count;
  options.components = g["components"];
  options.bins = g["bins"];
  options.gaussian = g["gaussian"];
  options.slices = g["slices"];
  options.seed = g["seed"];
  ProbeTargets targets;
  targets.label = g["labels"].get<std::vector<std::int32_t>>();
  for (int c = 0; c < g["classes"].get<int>(); ++c) targets.classes.push_back(std::to_string(c));
  const auto inputs = g["inputs"].get<std::vector<std::int64_t>>();
  const auto values = g["values"].get<std::vector<float>>();
  const auto run = [&] {
    return site_information("golden", values, g["width"], targets, inputs, options);
  };
  const int before = threads();
  set_threads(1);
  const SiteInformation r = run();
  set_threads(2);
  const SiteInformation two = run();
  set_threads(before);
  EXPECT_EQ(r.kl_bound, two.kl_bound);
  EXPECT_EQ(r.shuffled, two.shuffled);
  EXPECT_EQ(r.sliced_wasserstein, two.sliced_wasserstein);

  EXPECT_EQ(r.states, g["states"].get<std::int64_t>());
  const auto near = [&](double got, const char* name, double tolerance) {
    EXPECT_NEAR(got, g[name].get<double>(), tolerance * std::abs(g[name].get<double>())) << name;
  };
  near(r.entropy, "entropy", 1e-13);
  near(r.input, "input", 1e-12);
  near(r.target, "target", 1e-12);
  near(r.variance, "variance", 1e-12);
  near(r.kl_bound, "kl_bound", 1e-10);
  near(r.gaussian_wasserstein, "gaussian_wasserstein", 1e-10);
  near(r.sliced_wasserstein, "sliced_wasserstein", 1e-12);
  EXPECT_GT(r.shuffled, 0);
}
INSTANTIATE_TEST_SUITE_P(Cases, Plane, ::testing::Values(0, 1, 2, 3));

TEST(Information, KnownValues) {
  const std::vector<std::int64_t> x = {0, 0, 1, 1}, y = {5, 6, 5, 6}, z = {3, 3, 9, 9};
  EXPECT_NEAR(plugin_entropy(x), std::numbers::ln2, 1e-15);
  EXPECT_NEAR(plugin_information(x, y), 0, 1e-15);
  EXPECT_NEAR(plugin_information(x, z), std::numbers::ln2, 1e-15);
}

// Prompts of three tokens, the last of them generated; resid_post:0 holds 10·token + component.
struct TinyBlock {
  std::vector<Prompt> prompts{2};
  ModelConfig config;
  ActivationBlock block;
  Site site{SiteKind::resid_post, 0};

  TinyBlock() {
    config.family = "test";
    config.n_layers = 1;
    config.d_model = 2;
    config.n_heads = config.n_kv_heads = 1;
    config.d_head = 2;
    config.d_vocab = 50;
    config.layers.resize(1);
    for (int p = 0; p < 2; ++p) {
      prompts[p].id = p == 0 ? "a" : "b";
      prompts[p].ids = {7, 8, 9 + p};
      prompts[p].given = 2;
      prompts[p].labels["kind"] = p == 0 ? "x" : "y";
      prompts[p].labels["tags"] = p == 0 ? R"(["N", null])" : R"([1, "V", true])";
    }
    block.prompts = prompts;
    for (const Prompt& p : prompts) block.batch.add(p.ids);
    std::vector<float> values;
    for (int t = 0; t < 6; ++t) values.insert(values.end(), {10.0F * t, 10.0F * t * t});
    block.sites[ActivationBlock::site_key(site)] = {{false, 0, 2}, values, {}};
  }
  std::vector<float> read(FeatureOptions options) {
    options.sites = {site};
    Features features(config, options);
    features.observe(block);
    labels.clear();
    for (const FeatureRow& row : features.rows()) labels += row.label + ",";
    return {features.values(0).begin(), features.values(0).end()};
  }
  std::string labels;
};

TEST(Features, ByPosition) {
  TinyBlock run;
  using V = std::vector<float>;
  EXPECT_EQ(run.read({.label = "kind"}), (V{20, 40, 50, 250}));
  EXPECT_EQ(run.labels, "x,y,");
  EXPECT_EQ(run.read({.choice = RowChoice::first}), (V{0, 0, 30, 90}));
  EXPECT_EQ(run.read({.choice = RowChoice::index, .index = -2}), (V{10, 10, 40, 160}));
  EXPECT_EQ(run.read({.choice = RowChoice::mean, .skip = 1}), (V{15, 25, 45, 205}));
  EXPECT_EQ(run.read({.choice = RowChoice::all, .skip = 1}), (V{10, 10, 20, 40, 40, 160, 50, 250}));
  // One label per token; a null and a generated token beyond the labels are left out.
  EXPECT_EQ(run.read({.choice = RowChoice::all, .label = "tags"}),
            (V{0, 0, 30, 90, 40, 160, 50, 250}));
  EXPECT_EQ(run.labels, "N,1,V,true,");
  FeatureOptions trace{.choice = RowChoice::difference};
  trace.start = parse_token_marker("id:7,8");
  trace.end = parse_token_marker("last-generated");
  EXPECT_EQ(run.read(trace), (V{10, 30, 10, 90}));
}

TEST(Features, MergeIsOneRun) {
  TinyBlock run;
  FeatureOptions options{.sites = {run.site}, .choice = RowChoice::all, .label = "kind"};
  Features all(run.config, options), first(run.config, options);
  all.observe(run.block);
  all.observe(run.block);
  const auto second = first.fresh();
  first.observe(run.block);
  second->observe(run.block);
  first.merge(*second);
  ASSERT_EQ(first.rows().size(), all.rows().size());
  for (std::size_t r = 0; r < all.rows().size(); ++r) {
    EXPECT_EQ(first.rows()[r].prompt, all.rows()[r].prompt);
  }
  EXPECT_TRUE(std::equal(all.values(0).begin(), all.values(0).end(), first.values(0).begin()));
}

TEST(Features, RefusesWhatIsNotThere) {
  TinyBlock run;
  const auto says = [&](FeatureOptions options, const char* text) {
    const std::string found = message([&] { run.read(options); });
    EXPECT_NE(found.find(text), std::string::npos) << found;
  };
  says({.label = "mood"}, "prompt 'a' has no label 'mood'");
  says({.group = "pair"}, "prompt 'a' has no label 'pair'");
  says({.choice = RowChoice::index, .index = 3}, "prompt 'a' has 3 tokens: there is none at");
  says({.choice = RowChoice::mean, .skip = 3}, "skipping 3 leaves none");
  says({.choice = RowChoice::mean, .label = "tags"}, "has one value per token");
  run.prompts[1].labels["tags"] = "[1]";
  says({.choice = RowChoice::all, .label = "tags"}, "has 1 entries, 2 expected");
  FeatureOptions trace{.choice = RowChoice::difference};
  trace.start = parse_token_marker("2");
  trace.end = parse_token_marker("-1");
  says(trace, "the end marker stands at token 2, not after the start at 2");
  trace.end = parse_token_marker("id:3");
  says(trace, "has no tokens 3 from position 3 on");
  run.prompts[0].given = 3;
  trace.start = parse_token_marker("first-generated");
  says(trace, "prompt 'a' has no generated tokens");
  for (const char* text : {"id:", "id:1,", "id:-1", "middle", ""}) {
    EXPECT_THROW(parse_token_marker(text), UsageError) << text;
  }
  EXPECT_TRUE(run.read({.label = "mood", .skip_unlabelled = true}).empty());
}

}  // namespace
}  // namespace lamina
