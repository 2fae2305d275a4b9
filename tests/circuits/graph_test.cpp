// Graph operations against brute force, graph files, and their limits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/graph/dijkstra_shortest_paths.hpp>
#include <chrono>
#include <cmath>
#include <fstream>
#include <random>
#include <set>

#include "lamina/circuits/graph_analysis.h"
#include "lamina/circuits/graph_io.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using ::testing::HasSubstr;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// A random graph of the usual order: features by layer and position, errors, tokens, logits.
AttributionGraph random_graph(std::int64_t layers, std::int64_t tokens, std::int64_t features,
                              std::int64_t logits, double density, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::uniform_real_distribution<double> uniform;
  std::normal_distribution<float> normal;
  AttributionGraph g;
  g.slug = "random";
  g.prompt = "a \"prompt\" with <odd> & text";
  g.n_layers = layers;
  for (std::int64_t p = 0; p < tokens; ++p) g.tokens.push_back(fmt::format("t{}", p));
  std::vector<std::pair<std::int32_t, std::int32_t>> places;
  for (std::int64_t i = 0; i < features; ++i)
    places.emplace_back(static_cast<std::int32_t>(generator() % size(layers)),
                        static_cast<std::int32_t>(generator() % size(tokens)));
  std::sort(places.begin(), places.end());
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto [l, p] = places[i];
    g.nodes.push_back({.kind = CircuitNodeKind::feature,
                       .layer = l,
                       .position = p,
                       .index = static_cast<std::int64_t>(i),
                       .activation = 1.0 + uniform(generator),
                       .pre_activation = 1.5,
                       .bias = 0.25,
                       .id = fmt::format("{}_{}_{}", l, i, p)});
  }
  for (std::int32_t l = 0; l < layers; ++l)
    for (std::int32_t p = 0; p < tokens; ++p)
      g.nodes.push_back({.kind = CircuitNodeKind::error,
                         .layer = l,
                         .position = p,
                         .index = -1,
                         .id = fmt::format("{}_err_{}", l, p)});
  for (std::int32_t p = 0; p < tokens; ++p)
    g.nodes.push_back({.kind = CircuitNodeKind::token,
                       .layer = -1,
                       .position = p,
                       .index = 100 + p,
                       .id = fmt::format("E_{}_{}", 100 + p, p)});
  for (std::int64_t i = 0; i < logits; ++i)
    g.nodes.push_back({.kind = CircuitNodeKind::logit,
                       .layer = static_cast<std::int32_t>(layers),
                       .position = static_cast<std::int32_t>(tokens - 1),
                       .index = i,
                       .pre_activation = 2.0,
                       .bias = -0.5,
                       .probability = 0.9 / static_cast<double>(logits),
                       .id = fmt::format("{}_{}_{}", layers + 1, i, tokens - 1),
                       .label = fmt::format("w{}", i)});
  g.incoming.resize(g.nodes.size());
  for (std::size_t t = 0; t < g.nodes.size(); ++t) {
    const CircuitNode& target = g.nodes[t];
    if (target.kind == CircuitNodeKind::error || target.kind == CircuitNodeKind::token) continue;
    for (std::size_t s = 0; s < g.nodes.size(); ++s) {
      const CircuitNode& source = g.nodes[s];
      if (source.kind == CircuitNodeKind::logit || source.layer >= target.layer ||
          source.position > target.position || uniform(generator) > density)
        continue;
      g.incoming[t].source.push_back(static_cast<std::int32_t>(s));
      g.incoming[t].weight.push_back(normal(generator));
    }
  }
  return g;
}

std::vector<std::vector<double>> shares(const AttributionGraph& g) {
  std::vector<std::vector<double>> a(g.nodes.size(), std::vector<double>(g.nodes.size()));
  for (std::size_t t = 0; t < g.nodes.size(); ++t) {
    double sum = 0;
    for (float w : g.incoming[t].weight) sum += std::abs(w);
    for (std::size_t e = 0; e < g.incoming[t].source.size(); ++e)
      a[t][size(g.incoming[t].source[e])] = std::abs(g.incoming[t].weight[e]) / sum;
  }
  return a;
}

TEST(Influence, IsTheSumOfPowers) {
  const AttributionGraph g = random_graph(4, 5, 60, 3, 0.4, 1);
  const auto a = shares(g);
  const std::size_t n = g.nodes.size();
  std::vector<double> w(n), sum(n);
  for (std::size_t i = 0; i < n; ++i) w[i] = g.nodes[i].probability;
  for (int power = 0; power < 10; ++power) {
    std::vector<double> next(n);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t s = 0; s < n; ++s) next[s] += w[t] * a[t][s];
    for (std::size_t i = 0; i < n; ++i) sum[i] += next[i];
    w = next;
  }
  const std::vector<double> influence = node_influence(g);
  for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(influence[i], sum[i], 1e-12);
}

TEST(Influence, ACycleIsAnError) {
  AttributionGraph g = random_graph(3, 3, 20, 2, 1.0, 2);
  g.incoming[0].source.push_back(static_cast<std::int32_t>(g.nodes.size() - 1));
  g.incoming[0].weight.push_back(1.0F);
  EXPECT_THROW(node_influence(g), Error);
}

std::int32_t index_of(const AttributionGraph& g, CircuitNodeKind kind, int number) {
  for (std::size_t i = 0; i < g.nodes.size(); ++i)
    if (g.nodes[i].kind == kind && number-- == 0) return static_cast<std::int32_t>(i);
  return -1;
}

void all_paths(const AttributionGraph& g, const std::vector<std::vector<double>>& a,
               std::int32_t from, std::int32_t at, double strength, std::vector<double>& found) {
  if (at == from) {
    found.push_back(strength);
    return;
  }
  for (std::int32_t s : g.incoming[size(at)].source)
    all_paths(g, a, from, s, strength * a[size(at)][size(s)], found);
}

TEST(Paths, AreTheStrongestOfAll) {
  const AttributionGraph g = random_graph(5, 2, 14, 2, 0.7, 3);
  const auto a = shares(g);
  const std::int32_t from = index_of(g, CircuitNodeKind::token, 0);
  const std::int32_t to = index_of(g, CircuitNodeKind::logit, 1);
  std::vector<double> every;
  all_paths(g, a, from, to, 1.0, every);
  std::sort(every.rbegin(), every.rend());
  ASSERT_GT(every.size(), 20U);
  const auto paths = strongest_paths(g, std::vector{from}, std::vector{to}, 20);
  ASSERT_EQ(paths.size(), 20U);
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_NEAR(paths[i].strength, every[i], 1e-12);
    EXPECT_EQ(paths[i].nodes.front(), from);
    EXPECT_EQ(paths[i].nodes.back(), to);
    double product = 1;
    for (std::size_t k = 1; k < paths[i].nodes.size(); ++k)
      product *= a[size(paths[i].nodes[k])][size(paths[i].nodes[k - 1])];
    EXPECT_NEAR(product, paths[i].strength, 1e-12);
    EXPECT_NEAR(std::abs(paths[i].effect), paths[i].strength, 1e-12);
  }
  // The strongest is Boost's shortest.
  const CircuitBoostGraph b = boost_graph(g);
  std::vector<double> distance(g.nodes.size());
  boost::dijkstra_shortest_paths(
      b, size(from),
      boost::weight_map(boost::get(&CircuitArc::distance, b)).distance_map(distance.data()));
  EXPECT_NEAR(std::exp(-distance[size(to)]), paths[0].strength, 1e-10);
}

// Whether a way is left when these nodes and edges are gone.
bool connected(const AttributionGraph& g, std::int32_t from, std::int32_t to,
               const std::set<std::int32_t>& nodes,
               const std::set<std::pair<std::int32_t, std::int32_t>>& edges) {
  std::vector<std::int32_t> stack{to};
  std::set<std::int32_t> seen{to};
  while (!stack.empty()) {
    const std::int32_t t = stack.back();
    stack.pop_back();
    for (std::int32_t s : g.incoming[size(t)].source) {
      if (edges.contains({s, t}) || nodes.contains(s)) continue;
      if (s == from) return true;
      if (seen.insert(s).second) stack.push_back(s);
    }
  }
  return false;
}

TEST(Cuts, SeparateWithAsLittleAsPossible) {
  for (std::uint64_t seed = 10; seed < 30; ++seed) {
    const AttributionGraph g = random_graph(4, 2, 9, 1, 0.5, seed);
    const std::int32_t from = index_of(g, CircuitNodeKind::token, 0);
    const std::int32_t to = index_of(g, CircuitNodeKind::logit, 0);
    const CircuitCut cut = node_cut(g, std::vector{from}, std::vector{to});
    const std::set<std::pair<std::int32_t, std::int32_t>> cut_edges(cut.edges.begin(),
                                                                    cut.edges.end());
    EXPECT_FALSE(connected(g, from, to, {cut.nodes.begin(), cut.nodes.end()}, cut_edges));
    // No smaller set of features does it, a direct edge left out.
    std::set<std::pair<std::int32_t, std::int32_t>> direct{{from, to}};
    const auto n_features = static_cast<int>(g.count(CircuitNodeKind::feature));
    std::size_t least = 99;
    for (int mask = 0; mask < 1 << n_features; ++mask) {
      std::set<std::int32_t> nodes;
      for (int i = 0; i < n_features; ++i)
        if ((mask >> i & 1) != 0) nodes.insert(i);
      if (nodes.size() < least && !connected(g, from, to, nodes, direct)) least = nodes.size();
    }
    EXPECT_EQ(cut.nodes.size(), least);
    const CircuitCut edges = edge_cut(g, std::vector{from}, std::vector{to});
    EXPECT_FALSE(connected(g, from, to, {}, {edges.edges.begin(), edges.edges.end()}));
    double sum = 0;
    for (const auto& [s, t] : edges.edges) {
      const IncomingEdges& in = g.incoming[size(t)];
      const auto at = std::find(in.source.begin(), in.source.end(), s) - in.source.begin();
      sum += std::abs(in.weight[size(at)]);
    }
    EXPECT_NEAR(sum, edges.value, 1e-9);
    // A cut is least if no single edge of it can be left out.
    for (const auto& edge : edges.edges) {
      std::set<std::pair<std::int32_t, std::int32_t>> fewer(edges.edges.begin(), edges.edges.end());
      fewer.erase(edge);
      EXPECT_TRUE(connected(g, from, to, {}, fewer));
    }
  }
}

TEST(Structure, TwoClustersAreFound) {
  AttributionGraph g = random_graph(6, 2, 40, 1, 0.0, 5);
  std::mt19937_64 generator(6);
  const auto half = [&](std::size_t i) { return i % 2; };
  for (std::size_t t = 0; t < 40; ++t) {
    for (std::size_t s = 0; s < t; ++s) {
      if (generator() % 100 >= (half(s) == half(t) ? 60U : 3U)) continue;
      g.incoming[t].source.push_back(static_cast<std::int32_t>(s));
      g.incoming[t].weight.push_back(1.0F);
    }
  }
  const Communities c = communities(g);
  for (std::size_t i = 2; i < 40; ++i) EXPECT_EQ(c.of[i], c.of[i - 2]) << i;
  EXPECT_NE(c.of[0], c.of[1]);
  EXPECT_GT(c.modularity, 0.3);
  EXPECT_LT(c.modularity, 0.5);
}

TEST(Structure, BetweennessCountsStrongestPaths) {
  // 0 → 1 → 2 and 0 → 2 weaker: 1 stands between 0 and 2.
  AttributionGraph g = random_graph(4, 1, 3, 1, 0.0, 7);
  g.incoming[1] = {{0}, {1.0F}};
  g.incoming[2] = {{0, 1}, {0.1F, 2.0F}};
  const Centrality c = centrality(g);
  EXPECT_DOUBLE_EQ(c.betweenness[1], 1.0);
  EXPECT_DOUBLE_EQ(c.betweenness[0], 0.0);
  EXPECT_NEAR(c.out_strength[0], 1.1, 1e-6);
  EXPECT_NEAR(c.in_strength[2], 2.1, 1e-6);
}

TEST(Merge, AveragesAndComparesByName) {
  const AttributionGraph a = random_graph(3, 3, 20, 2, 0.5, 8);
  AttributionGraph b = a;
  for (auto& in : b.incoming)
    for (float& w : in.weight) w *= 3;
  std::vector<std::uint8_t> keep(b.nodes.size(), 1);
  keep[0] = 0;
  b = subgraph(b, keep);
  const AttributionGraph both = merge_graphs(std::vector{a, b});
  ASSERT_EQ(both.nodes.size(), a.nodes.size());
  for (std::size_t t = 0; t < a.nodes.size(); ++t) {
    for (std::size_t e = 0; e < a.incoming[t].source.size(); ++e) {
      const bool gone = a.incoming[t].source[e] == 0 || t == 0;
      EXPECT_FLOAT_EQ(both.incoming[t].weight[e], a.incoming[t].weight[e] * (gone ? 0.5F : 2.0F));
    }
  }
  const GraphComparison c = compare_graphs(a, b);
  EXPECT_EQ(c.nodes_first, 1);
  EXPECT_EQ(c.nodes_second, 0);
  EXPECT_EQ(c.edges_both, b.edges());
  EXPECT_EQ(c.edges_first, a.edges() - b.edges());
  EXPECT_NEAR(c.weight_correlation, 1.0, 1e-9);
  EXPECT_EQ(compare_graphs(a, a).edge_jaccard, 1.0);
}

TEST(Supernodes, AddUpWhatTheirMembersDo) {
  testing::TempDir folder;
  AttributionGraph g = random_graph(4, 3, 30, 2, 0.6, 9);
  const std::string file = folder.path() / "groups.json";
  std::ofstream(file) << R"({"early": ["0_*_*"], "errors": ["1_err_*", "2_err_*"]})";
  g.supernodes = read_supernodes(file, g);
  ASSERT_EQ(g.supernodes.size(), 2U);
  const AttributionGraph small = collapse_supernodes(g);
  EXPECT_GE(small.find("supernode-early"), 0);
  double before = 0, after = 0;
  const std::size_t logit = g.nodes.size() - 1;
  for (float w : g.incoming[logit].weight) before += w;
  for (float w : small.incoming.back().weight) after += w;
  EXPECT_NEAR(before, after, 1e-5);
  std::ofstream(file) << R"({"early": ["9_9_9"]})";
  EXPECT_THROW(read_supernodes(file, g), Error);
  std::ofstream(file) << R"({"a": ["0_*_*"], "b": ["0_*_*"]})";
  EXPECT_THROW(read_supernodes(file, g), Error);
  std::ofstream(file) << "[1, 2]";
  EXPECT_THROW(read_supernodes(file, g), Error);
}

TEST(GraphFile, ComesBackAsItWas) {
  testing::TempDir folder;
  AttributionGraph g = prune(random_graph(4, 4, 60, 3, 0.5, 11));
  g.supernodes = {{"group", {g.nodes[0].id, g.nodes[1].id}}};
  g.nodes[0].label = "a \"label\"";
  const std::string file = folder.path() / "graph.json";
  std::ofstream(file) << circuit_json(g);
  const AttributionGraph back = read_circuit_json(file);
  ASSERT_EQ(back.nodes.size(), g.nodes.size());
  EXPECT_EQ(back.prompt, g.prompt);
  EXPECT_EQ(back.tokens, g.tokens);
  EXPECT_EQ(back.n_layers, g.n_layers);
  EXPECT_EQ(back.node_share, g.node_share);
  ASSERT_EQ(back.supernodes.size(), 1U);
  EXPECT_EQ(back.supernodes[0].members, g.supernodes[0].members);
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    const CircuitNode &a = g.nodes[i], &b = back.nodes[i];
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.kind, b.kind);
    EXPECT_EQ(a.layer, b.layer) << a.id;
    EXPECT_EQ(a.position, b.position);
    EXPECT_EQ(a.index, b.index) << a.id;
    EXPECT_EQ(a.activation, b.activation);
    EXPECT_EQ(a.probability, b.probability);
    EXPECT_EQ(a.label, b.label);
    EXPECT_TRUE(a.influence == b.influence || std::isnan(a.influence));
    EXPECT_EQ(g.incoming[i].source, back.incoming[i].source);
    EXPECT_EQ(g.incoming[i].weight, back.incoming[i].weight);
  }
}

TEST(GraphFile, MalformedOnesAreOneClearLine) {
  testing::TempDir folder;
  const std::string file = folder.path() / "graph.json";
  const AttributionGraph g = prune(random_graph(3, 3, 12, 2, 0.7, 12));
  const std::string good = circuit_json(g);
  const auto message = [&](const std::string& text) {
    std::ofstream(file, std::ios::trunc) << text;
    try {
      read_circuit_json(file);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return message(text.replace(at, from.size(), to));
  };
  EXPECT_EQ(message(good), "accepted");
  EXPECT_THAT(message(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(message(good.substr(0, good.size() / 2)), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("a graph is a JSON object"));
  EXPECT_THAT(message("{}"), HasSubstr("links"));
  EXPECT_THAT(message(R"({"links": [1]})"), HasSubstr("every link is an object"));
  EXPECT_THAT(message(R"({"links": []})"), HasSubstr("metadata"));
  EXPECT_THAT(message(R"({"links": [{"source": "a"}]})"), HasSubstr("weight"));
  EXPECT_THAT(changed("\"nodes\":[", "\"nodez\":["), HasSubstr("nodes"));
  EXPECT_THAT(changed("\"ctx_idx\":", "\"ctx_idx\":99"), HasSubstr("position 99"));
  EXPECT_THAT(changed("\"ctx_idx\":", "\"ctx_idx\":-1"), HasSubstr("position"));
  EXPECT_THAT(changed("\"feature_type\":\"", "\"feature_tipe\":\""), HasSubstr("feature_type"));
  EXPECT_THAT(changed("\"layer\":\"", "\"layer\":\"x"), HasSubstr("is no layer"));
  EXPECT_THAT(changed("\"source\":\"", "\"source\":\"no"), HasSubstr("is no node"));
  EXPECT_THAT(changed("\"weight\":", "\"weight\":1e999, \"w\":"), HasSubstr("JSON"));
  EXPECT_THAT(changed("\"weight\":", "\"weight\":\"a\", \"w\":"), HasSubstr("no number"));
  EXPECT_THAT(message(good + good), HasSubstr("not valid JSON"));
  EXPECT_THAT(
      changed("\"node_id\":\"" + g.nodes[1].id + "\"", "\"node_id\":\"" + g.nodes[0].id + "\""),
      HasSubstr("comes twice"));
  std::string deep(200, '[');
  EXPECT_THAT(message("{\"a\":" + deep), HasSubstr("graph.json"));
  EXPECT_EQ(message(good).find('\n'), std::string::npos);
  // Cut anywhere, it is refused, never read in part.
  for (std::size_t n = 0; n + 3 < good.size(); n += 211)
    EXPECT_NE(message(good.substr(0, n)), "accepted") << n;
}

TEST(GraphFile, OtherLanguages) {
  AttributionGraph g = prune(random_graph(3, 3, 12, 2, 0.7, 13));
  g.nodes[0].label = "a<b>&\"c\"\x80";
  const std::string xml = circuit_graphml(g), dot = circuit_dot(g);
  EXPECT_THAT(xml, HasSubstr("a&lt;b&gt;&amp;&quot;c&quot;\xEF\xBF\xBD"));
  EXPECT_THAT(dot, HasSubstr("a<b>&\\\"c\\\"\xEF\xBF\xBD"));
  const auto count = [](const std::string& text, const std::string& what) {
    std::int64_t n = 0;
    for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++n;
    return n;
  };
  EXPECT_EQ(count(xml, "<edge "), g.edges());
  EXPECT_EQ(count(xml, "<node "), static_cast<std::int64_t>(g.nodes.size()));
  EXPECT_EQ(count(dot, "penwidth="), g.edges());
  testing::TempDir folder;
  const auto drawing = folder.path() / "graph.svg";
  if (std::system("command -v dot >/dev/null 2>&1") != 0) {
    try {
      draw_dot(dot, drawing);
      ADD_FAILURE() << "drawn without Graphviz";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("apt install graphviz"));
    }
  } else {
    draw_dot(dot, drawing);
    EXPECT_GT(std::filesystem::file_size(drawing), 1000U);
    EXPECT_THROW(draw_dot("digraph {", folder.path() / "bad.svg"), Error);
    EXPECT_FALSE(std::filesystem::exists(folder.path() / "bad.svg"));
  }
  EXPECT_THROW(draw_dot(dot, folder.path() / "graph.gif"), UsageError);
}

// 20,000 nodes, 26 layers, 12 tokens, every third possible edge.
TEST(Large, TwentyThousandNodesInSeconds) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const AttributionGraph g = random_graph(26, 12, 20000, 10, 0.1, 20);
  const double built = seconds();
  const AttributionGraph pruned = prune(g);
  const double cut = seconds();
  const std::string text = circuit_json(pruned);
  const double written = seconds();
  std::printf(
      "  %zu nodes, %.1f M edges: made in %.1f s, pruned to %zu nodes and %ld edges in "
      "%.1f s, %.1f MB of JSON in %.1f s\n",
      g.nodes.size(), static_cast<double>(g.edges()) / 1e6, built, pruned.nodes.size(),
      static_cast<long>(pruned.edges()), cut - built, static_cast<double>(text.size()) / 1e6,
      written - cut);
  EXPECT_GT(pruned.nodes.size(), 100U);
  EXPECT_LT(pruned.edges(), g.edges());
}

TEST(NodePatterns, MatchWithinUnderscores) {
  const auto expect = [](bool match, const char* pattern, const std::string& id) {
    EXPECT_EQ(node_id_matches(pattern, id), match) << pattern << " " << id;
  };
  expect(true, "3_17_*", "3_17_5");
  expect(true, "3_17_*", "3_17_");
  expect(false, "3_17_*", "3_17_5_1");
  expect(false, "3_*", "3_17_5");
  expect(true, "*_err_*", "10_err_3");
  expect(false, "*_err_*", "10_17_3");
  expect(true, "1*7_a*b*c", "127_aXbXbXc");
  expect(false, "1*7_a*b*c", "127_aXbXbXcd");
  expect(true, "**", "abc");
  expect(true, "*", "");
  expect(true, "", "");
  expect(false, "", "a");
  expect(false, "a", "");
  // Without an end if every star tried every length.
  expect(false, "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(200, 'a'));
}

}  // namespace
}  // namespace lamina
