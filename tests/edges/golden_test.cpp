// Against EAP-IG's own code on tiny models: goldens/ is made by make_eap_goldens.py.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/forward.h"
#include "lamina/core/safetensors.h"
#include "lamina/patching/edges.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

class EapGolden : public ::testing::TestWithParam<const char*> {
 protected:
  EapGolden()
      : folder_(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/edges/goldens" / GetParam()),
        model_(Model::load(folder_)),
        apart_(model_.ungrouped()),
        file_(open_safetensors(folder_ / "golden.safetensors")),
        graph_(GraphShape::of(model_.config())) {
    const std::vector<float> clean = values("clean"), corrupted = values("corrupted"),
                             labels = values("labels");
    pairs_.resize(labels.size() / 2);
    const std::size_t tokens = clean.size() / pairs_.size();
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      Pair& pair = pairs_[p];
      pair.id = std::to_string(p);
      for (std::size_t t = 0; t < tokens; ++t) {
        pair.clean.push_back(static_cast<std::int32_t>(clean[p * tokens + t]));
        pair.corrupted.push_back(static_cast<std::int32_t>(corrupted[p * tokens + t]));
      }
      pair.correct = {static_cast<std::int32_t>(labels[2 * p])};
      pair.wrong = {static_cast<std::int32_t>(labels[2 * p + 1])};
    }
    metric_.emplace(MetricKind::logit_diff, pairs_, model_.config().d_vocab);
  }

  std::vector<float> values(const std::string& name) const {
    const TensorInfo* tensor = file_.find(name);
    if (tensor == nullptr) throw Error("no golden " + name);
    std::vector<float> out(tensor->elements());
    expand_to_f32(tensor->dtype, tensor->bytes, out);
    return out;
  }

  // Their matrix [source, read], the entries that are edges, in the order of edge ids.
  std::vector<double> per_edge(std::span<const float> matrix) const {
    std::vector<double> out;
    for (std::int64_t id = 0; id < graph_.edges(); ++id) {
      out.push_back(matrix[static_cast<std::size_t>(graph_.source_of_edge(id) * graph_.reads() +
                                                    graph_.read_of_edge(id))]);
    }
    return out;
  }
  EdgeMask mask_of(std::span<const float> matrix) const {
    const std::vector<double> in = per_edge(matrix);
    return EdgeMask(in.begin(), in.end());
  }

  // Within 1e-4 of the largest magnitude.
  void expect_close(const std::vector<double>& got, const std::vector<double>& expected,
                    const std::string& what) const {
    ASSERT_EQ(got.size(), expected.size());
    double largest = 0.0, worst = 0.0;
    std::size_t where = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      largest = std::max(largest, std::abs(expected[i]));
      const double off = std::abs(got[i] - expected[i]);
      if (!(off <= worst)) worst = off, where = i;
    }
    ASSERT_GT(largest, 1e-3) << what << ": the golden is empty";
    EXPECT_LE(worst, 1e-4 * largest)
        << what << " at " << where << ": " << got[where] << ", theirs " << expected[where];
    RecordProperty(what, std::to_string(worst / largest));
  }

  std::filesystem::path folder_;
  Model model_, apart_;
  TensorStore file_;
  EdgeGraph graph_;
  std::vector<Pair> pairs_;
  std::optional<Metric> metric_;
};

TEST_P(EapGolden, TheSameEdges) {
  const std::vector<float> real = values("real");
  EXPECT_EQ(std::count(real.begin(), real.end(), 1.0F), graph_.edges());
  const std::vector<double> ours = per_edge(real);
  EXPECT_EQ(std::count(ours.begin(), ours.end(), 1.0), graph_.edges());
}

TEST_P(EapGolden, GradientScores) {
  Forward forward(model_);
  const std::pair<const char*, EdgeScoreOptions> ways[] = {
      {"eap", {}},
      {"eap_ig", {.gradient = EdgeGradient::eap_ig}},
      {"eap_ig_activations", {.gradient = EdgeGradient::eap_ig_activations}},
      {"eap_mean", {.ablation = Ablation::mean}}};
  for (const auto& [name, options] : ways) {
    std::vector<double> ours = score_edges(forward, pairs_, *metric_, options);
    std::vector<double> theirs = per_edge(values(name));
    const bool cut_input = options.gradient == EdgeGradient::eap_ig_activations &&
                           model_.config().positions != Positions::learned;
    for (std::int64_t id = 0; cut_input && id < graph_.edges(); ++id) {
      // In their runs with the input replaced, autograd sees no parameter in front of the first
      // reads if positions are not learned: those gradients are missing from their means.
      const ReadPoint point = graph_.read_point(graph_.read_of_edge(id));
      const bool first_read = graph_.sources_of(graph_.read_of_edge(id)) == 1;
      if (!first_read) continue;
      EXPECT_EQ(point.layer, 0);
      EXPECT_NE(ours[static_cast<std::size_t>(id)], 0.0);
      ours[static_cast<std::size_t>(id)] = theirs[static_cast<std::size_t>(id)] = 0.0;
    }
    expect_close(ours, theirs, name);
  }
}

TEST_P(EapGolden, ExactScores) {
  Forward forward(apart_);
  CircuitRunner runner(forward, pairs_, *metric_);
  expect_close(exact_edge_scores(runner), per_edge(values("exact")), "exact");
}

TEST_P(EapGolden, CircuitRuns) {
  Forward forward(apart_);
  const std::vector<float> circuits = values("circuits");
  const auto one = static_cast<std::size_t>(graph_.sources() * graph_.reads());
  std::vector<EdgeMask> masks;
  for (std::size_t at = 0; at < circuits.size(); at += one)
    masks.push_back(mask_of(std::span(circuits).subspan(at, one)));
  ASSERT_GE(masks.size(), 4U);
  for (const Ablation ablation : {Ablation::patching, Ablation::zero, Ablation::mean}) {
    // Their zero leaves learned positions in the stream: they are no part of their input node.
    if (ablation == Ablation::zero && model_.config().positions == Positions::learned) continue;
    CircuitRunner runner(forward, pairs_, *metric_, {.ablation = ablation});
    const std::string name = "run_" + std::string(ablation_name(ablation));
    const std::vector<float> expected = values(name);
    expect_close(runner.run(masks), {expected.begin(), expected.end()}, name);
    const std::vector<float> clean = values("clean_metric");
    expect_close(runner.clean(), {clean.begin(), clean.end()}, "clean");
  }
}

TEST_P(EapGolden, SelectionAndPruning) {
  EdgeGraph graph = graph_;
  graph.set_scores(per_edge(values("eap_ig")));
  for (const std::int64_t n : {5, 20, 60}) {
    graph.keep_top(n, true);
    EXPECT_EQ(graph.mask(), mask_of(values("top_" + std::to_string(n)))) << n;
    graph.keep_greedy(n, true);
    EXPECT_EQ(graph.mask(), mask_of(values("greedy_" + std::to_string(n)))) << n;
  }
}

TEST_P(EapGolden, TheirGraphFile) {
  const EdgeGraph graph = read_graph(folder_ / "graph.json");
  EXPECT_EQ(graph.shape(), graph_.shape());
  const std::vector<double> expected = per_edge(values("eap_ig"));
  EXPECT_EQ(graph.scores(), expected);
  EXPECT_EQ(graph.mask(), mask_of(values("greedy_60")));
  testing::TempDir folder;
  std::ofstream(folder.path() / "graph.json") << graph_json(graph);
  const EdgeGraph back = read_graph(folder.path() / "graph.json");
  EXPECT_EQ(back.scores(), expected);
  EXPECT_EQ(back.mask(), graph.mask());
}

INSTANTIATE_TEST_SUITE_P(Models, EapGolden,
                         ::testing::Values("layer_norm", "gated_grouped", "parallel"));

}  // namespace
}  // namespace lamina
