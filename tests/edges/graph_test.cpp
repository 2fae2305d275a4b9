#include "lamina/patching/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "lamina/core/error.h"
#include "lamina/patching/faithfulness.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const GraphShape kGpt2{.n_layers = 12, .n_heads = 12, .d_model = 768};
const GraphShape kSmall{.n_layers = 2, .n_heads = 2, .d_model = 8};

template <class Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

EdgeGraph with_circuit(const GraphShape& shape, const std::vector<std::string>& names) {
  EdgeGraph graph(shape);
  EdgeMask mask(static_cast<std::size_t>(graph.edges()), 0);
  for (const std::string& name : names) mask[graph.find_edge(name).value()] = 1;
  graph.set_mask(mask);
  return graph;
}

std::vector<std::string> circuit_names(const EdgeGraph& graph) {
  std::vector<std::string> names;
  for (std::int64_t id = 0; id < graph.edges(); ++id) {
    if (graph.edge(id).in_graph) names.push_back(graph.edge_name(id));
  }
  return names;
}

TEST(EdgeGraph, CountsOfPublishedModels) {
  EXPECT_EQ(EdgeGraph(kGpt2).edges(), 32491);
  EXPECT_EQ(EdgeGraph(kGpt2).sources(), 157);
  EXPECT_EQ(EdgeGraph(kGpt2).reads(), 445);
}

TEST(EdgeGraph, CountFormulaIsTheCountOfEdges) {
  for (const bool mlps : {true, false}) {
    for (const bool parallel : {true, false}) {
      for (std::int64_t layers = 1; layers < 5; ++layers) {
        for (std::int64_t heads = 1; heads < 5; ++heads) {
          const GraphShape shape{layers, heads, 8, parallel, mlps};
          EXPECT_EQ(EdgeGraph(shape).edges(), EdgeGraph::count_edges(shape))
              << layers << " " << heads << " " << parallel << " " << mlps;
          // Every ordered pair (source, later input) once, counted without the formula.
          std::int64_t expected = 0;
          const std::int64_t step = heads + (mlps ? 1 : 0);
          for (std::int64_t l = 0; l < layers; ++l) {
            expected += 3 * heads * (1 + l * step);
            if (mlps) expected += 1 + l * step + (parallel ? 0 : heads);
          }
          EXPECT_EQ(EdgeGraph::count_edges(shape), expected + 1 + layers * step);
        }
      }
    }
  }
}

TEST(EdgeGraph, PlantedModelsSizes) {
  EXPECT_EQ(EdgeGraph({1, 4, 8, false, false}).edges(), 17);
  EXPECT_EQ(EdgeGraph({2, 3, 8, false, false}).edges(), 52);
  EXPECT_EQ(EdgeGraph({2, 3, 8, false, true}).edges(), 75);
  EXPECT_EQ(EdgeGraph({3, 3, 8, false, true}).edges(), 172);
}

TEST(EdgeGraph, NamesRoundTripAndAreDistinct) {
  for (const GraphShape& shape :
       {kSmall, GraphShape{3, 2, 8, true, true}, GraphShape{3, 2, 8, false, false}}) {
    const EdgeGraph graph(shape);
    std::set<std::string> names;
    for (std::int64_t id = 0; id < graph.edges(); ++id) {
      const std::string name = graph.edge_name(id);
      EXPECT_EQ(graph.find_edge(name), id) << name;
      names.insert(name);
      EXPECT_EQ(graph.edge_id(graph.source_of_edge(id), graph.read_of_edge(id)), id);
    }
    EXPECT_EQ(static_cast<std::int64_t>(names.size()), graph.edges());
    for (std::int64_t read = 0; read < graph.reads(); ++read)
      EXPECT_EQ(graph.read_index(graph.read_point(read)), read);
  }
}

TEST(EdgeGraph, NamesOfOtherGraphsAreNotFound) {
  const EdgeGraph graph(kSmall);
  for (const char* name : {"",
                           "->",
                           "input",
                           "input->",
                           "->logits",
                           "input->input",
                           "logits->m0",
                           "m1->m1",
                           "m1->m0",
                           "input->a0.h0",
                           "input->a0.h0<x>",
                           "input->m0<q>",
                           "input->a0.h2<q>",
                           "input->a2.h0<q>",
                           "a0.h0->a0.h1<q>",
                           "m0->a0.h0<q>",
                           "a0.h-1->logits",
                           "a00.h0->logits",
                           "m01->logits",
                           "a99999999999999999999.h0->logits",
                           "input->a0.h0<q> ",
                           "input->a0.h0<q>x",
                           "m->logits"}) {
    EXPECT_EQ(graph.find_edge(name), std::nullopt) << name;
  }
}

TEST(EdgeGraph, ParallelBlocksHaveNoEdgeFromTheHeadsBesideAnMlp) {
  EXPECT_TRUE(EdgeGraph(kSmall).find_edge("a0.h1->m0"));
  EXPECT_FALSE(EdgeGraph({2, 2, 8, true, true}).find_edge("a0.h1->m0"));
  EXPECT_TRUE(EdgeGraph({2, 2, 8, true, true}).find_edge("a0.h1->m1"));
}

TEST(EdgeGraph, SizesBeyondTheCapsAreRefused) {
  EXPECT_THAT(error_of([] { EdgeGraph graph({0, 2, 8}); }), HasSubstr("0 layers"));
  EXPECT_THAT(error_of([] { EdgeGraph graph({4096, 4096, 8}); }), HasSubstr("the most allowed is"));
  EXPECT_THAT(error_of([] {
                EdgeGraph graph({2, std::int64_t{1} << 40, 8});
              }),
              HasSubstr("1 to 4096"));
}

TEST(EdgeGraph, PruneDropsDeadEndsRepeatedly) {
  // m0 → a1.h0 → m1 leads nowhere; a1.h1 is read but reads nothing; both fall, then what fed them.
  EdgeGraph graph = with_circuit(kSmall, {"input->a0.h0<q>", "a0.h0->logits", "input->m0",
                                          "m0->a1.h0<k>", "a1.h0->m1", "a1.h1->logits"});
  EXPECT_EQ(graph.prune(), 4);
  EXPECT_THAT(circuit_names(graph), ElementsAre("input->a0.h0<q>", "a0.h0->logits"));
  EXPECT_EQ(graph.nodes_in_graph(), 2);
  EXPECT_EQ(graph.prune(), 0);
}

TEST(EdgeGraph, PruneLeavesTheFullGraphAlone) {
  EdgeGraph graph(kGpt2);
  graph.set_mask(EdgeMask(static_cast<std::size_t>(graph.edges()), 1));
  EXPECT_EQ(graph.prune(), 0);
  EXPECT_EQ(graph.nodes_in_graph(), graph.sources());
}

EdgeGraph scored() {
  EdgeGraph graph(kSmall);
  std::vector<double> scores(static_cast<std::size_t>(graph.edges()), 0.0);
  scores[*graph.find_edge("m1->logits")] = 1;
  scores[*graph.find_edge("m0->m1")] = -3;
  scores[*graph.find_edge("input->m0")] = 2;
  scores[*graph.find_edge("input->a0.h0<q>")] = 9;
  graph.set_scores(scores);
  return graph;
}

TEST(EdgeGraph, TopTakesTheBestAndPrunes) {
  EdgeGraph graph = scored();
  graph.keep_top(4, true);  // a0.h0 leads nowhere
  EXPECT_THAT(circuit_names(graph), ElementsAre("input->m0", "m0->m1", "m1->logits"));
  graph.keep_top(3, false);  // without the negative one, m0 leads nowhere and m1 reads nothing
  EXPECT_THAT(circuit_names(graph), ElementsAre());
  graph.keep_top(2, true);
  EXPECT_EQ(graph.edges_in_graph(), 0);
  EXPECT_THAT(error_of([&] { graph.keep_top(graph.edges() + 1, true); }),
              HasSubstr("was asked for"));
}

TEST(EdgeGraph, GreedyStartsAtTheLogits) {
  EdgeGraph graph = scored();
  graph.keep_greedy(3, true);
  EXPECT_THAT(circuit_names(graph), ElementsAre("input->m0", "m0->m1", "m1->logits"));
}

TEST(EdgeGraph, ThresholdIsInclusive) {
  EdgeGraph graph = scored();
  graph.keep_threshold(1.0, true);
  EXPECT_EQ(graph.edges_in_graph(), 3);
  graph.keep_threshold(1.5, true);
  EXPECT_EQ(graph.edges_in_graph(), 0);
}

TEST(EdgeGraph, ACopyIsItsOwn) {
  EdgeGraph graph = scored();
  graph.keep_top(4, true);
  EdgeGraph copy = graph, assigned(kGpt2);
  assigned = graph;
  copy.set_mask(EdgeMask(static_cast<std::size_t>(copy.edges()), 1));
  assigned.set_scores(std::vector<double>(static_cast<std::size_t>(assigned.edges()), 5.0));
  EXPECT_EQ(graph.edges_in_graph(), 3);
  EXPECT_EQ(graph.scores(), scored().scores());
  EXPECT_EQ(copy.edges_in_graph(), copy.edges());
  EXPECT_EQ(copy.nodes_in_graph(), copy.sources());
  EXPECT_EQ(assigned.edges_in_graph(), 3);
  EXPECT_EQ(assigned.edge(3).score, 5.0);
}

class GraphFile : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& text) {
    const std::filesystem::path path = folder_.path() / "graph.json";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string refusal(const std::string& text) {
    return error_of([&] { read_graph(write(text)); });
  }
  testing::TempDir folder_;
};

TEST_F(GraphFile, RoundTrip) {
  for (const GraphShape& shape :
       {kSmall, GraphShape{2, 3, 8, true, true}, GraphShape{2, 3, 8, false, false}}) {
    EdgeGraph graph(shape);
    std::vector<double> scores;
    for (std::int64_t id = 0; id < graph.edges(); ++id)
      scores.push_back((id % 2 == 0 ? 1e-7 : -0.1) * static_cast<double>(id) / 3);
    graph.set_scores(scores);
    graph.keep_top(graph.edges() / 2, true);
    const EdgeGraph back = read_graph(write(graph_json(graph)));
    EXPECT_EQ(back.shape(), graph.shape());
    EXPECT_EQ(back.scores(), graph.scores());
    EXPECT_EQ(back.mask(), graph.mask());
  }
}

const std::string kCfg =
    R"("cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 8})";
const std::string kNodes = R"("nodes": {"input": {"in_graph": true}, "m0": {"in_graph": true}})";

TEST_F(GraphFile, HostileFilesAreRefusedWithOneLine) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "no JSON"},
      {"{", "no JSON"},
      {"[]", "a graph is a JSON object"},
      {"{}", "\"cfg\" is missing"},
      {"{" + kCfg + ", " + kNodes + "}", "\"edges\" is missing"},
      {"{" + kCfg + ", " + kNodes + R"(, "edges": []})", "must be objects"},
      {"{" + kCfg + ", " + kNodes +
           R"(, "edges": {"a0.h0->a0.h1<q>": {"score": 1, "in_graph": true}}})",
       "not in a graph of this size"},
      {"{" + kCfg + ", " + kNodes +
           R"(, "edges": {"input->m0": {"score": NaN, "in_graph": true}}})",
       "no JSON"},
      {"{" + kCfg + ", " + kNodes +
           R"(, "edges": {"input->m0": {"score": 1e999, "in_graph": true}}})",
       "no JSON"},
      {"{" + kCfg + ", " + kNodes +
           R"(, "edges": {"input->m0": {"score": "1", "in_graph": true}}})",
       "must be a finite number"},
      {"{" + kCfg + ", " + kNodes + R"(, "edges": {"input->m0": {"score": 1}}})",
       "\"in_graph\" is missing"},
      {"{" + kCfg + ", " + kNodes + R"(, "edges": {"input->m0": 1}})", "must be an object"},
      {"{" + kCfg + R"(, "nodes": {"m7": {"in_graph": true}}, "edges": {}})", "node \"m7\""},
      {"{" + kCfg + R"(, "nodes": {"m0": {"in_graph": true, "neurons": [true]}}, "edges": {}})",
       "neurons"},
      {R"({"cfg": {"n_layers": -1, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 8}, "nodes": {}, "edges": {}})",
       "\"n_layers\" must be a positive whole number"},
      {R"({"cfg": {"n_layers": 1e3, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 8}, "nodes": {}, "edges": {}})",
       "\"n_layers\" must be a positive whole number"},
      {R"({"cfg": {"n_layers": 4000, "n_heads": 4000, "parallel_attn_mlp": false, "d_model": 8}, "nodes": {}, "edges": {}})",
       "the most allowed is"},
      {R"({"cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": 0, "d_model": 8}, "nodes": {}, "edges": {}})",
       "must be true or false"},
      {std::string(100000, '['), "nested deeper"},
  };
  for (const auto& [text, expected] : bad) {
    const std::string message = refusal(text);
    EXPECT_THAT(message, AllOf(HasSubstr(expected), HasSubstr("graph.json")))
        << text.substr(0, 200);
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_THAT(error_of([] { read_graph("no/such/file.json"); }), HasSubstr("no/such/file.json"));
}

TEST(Auroc, HandMadeCases) {
  const std::vector<std::uint8_t> known = {1, 1, 0, 0};
  EXPECT_DOUBLE_EQ(auroc(std::vector<double>{4, -3, 2, 1}, known), 1.0);
  EXPECT_DOUBLE_EQ(auroc(std::vector<double>{1, 2, 3, 4}, known), 0.0);
  EXPECT_DOUBLE_EQ(auroc(std::vector<double>{1, 1, 1, 1}, known), 0.5);
  EXPECT_DOUBLE_EQ(auroc(std::vector<double>{4, 2, 3, 1}, known), 0.75);
  EXPECT_DOUBLE_EQ(auroc(std::vector<double>{4, 2, 2, 1}, known), 0.875);  // a tie counts half
  EXPECT_TRUE(std::isnan(auroc(std::vector<double>{1, 2}, std::vector<std::uint8_t>{1, 1})));
}

TEST(Areas, HandMadeCurves) {
  const std::vector<double> x = {0.1, 0.2, 1.0}, y = {0.0, 0.5, 1.0};
  EXPECT_DOUBLE_EQ(curve_area(x, y, false), 0.1 * 0.25 + 0.8 * 0.75);
  EXPECT_DOUBLE_EQ(curve_area(x, y, true), std::log(2.0) * 0.25 + std::log(5.0) * 0.75);
  EXPECT_DOUBLE_EQ(cmd(x, y, false), 0.1 * 0.75 + 0.8 * 0.25);
  const std::vector<double> above = {1.5, 1.5, 1.5};
  EXPECT_DOUBLE_EQ(cpr(x, above, false), 0.9 * 1.5);
  EXPECT_DOUBLE_EQ(cmd(x, above, false), 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(faithfulness(2, 1, 5), 0.25);
  EXPECT_TRUE(std::isnan(faithfulness(2, 1, 1)));
}

TEST(KnownCircuit, PlantedFiles) {
  const std::filesystem::path file =
      std::filesystem::path(LAMINA_SOURCE_DIR) / "data/planted/induction/circuit.json";
  const EdgeGraph graph({2, 3, 88, false, false});
  const KnownCircuit known = read_known_circuit(file, graph);
  EXPECT_EQ(std::count(known.edges.begin(), known.edges.end(), 1), 7);
  EXPECT_EQ(std::count(known.counterfactual.begin(), known.counterfactual.end(), 1), 2);
  EXPECT_EQ(std::count(known.nodes.begin(), known.nodes.end(), 1), 3);
  EXPECT_THAT(error_of([&] {
                read_known_circuit(file, EdgeGraph({1, 3, 88, false, false}));
              }),
              AllOf(HasSubstr("circuit.json"), HasSubstr("is not in the model's graph")));
}

}  // namespace
}  // namespace lamina
