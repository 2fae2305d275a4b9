// lamina graph: attribution graphs that exist already: pruned, merged, compared, drawn, searched.

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "inputs.h"
#include "lamina/circuits/graph_analysis.h"
#include "lamina/circuits/graph_io.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/circuit_report.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Args {
  std::vector<std::string> files;
  bool prune = false, merge = false, collapse = false;
  PruneOptions shares;
  std::string supernodes, compare;
  std::vector<std::string> from, to;
  std::int64_t paths = 0;
  bool cut = false, edge_cut = false, centrality = false, communities = false;
  double resolution = 1.0;
  std::string graph, graphml, dot, drawing;
  OutputOptions output;
  std::int64_t show = 15;
  bool json = false;
};

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Nodes whose ids match one of the patterns, a supernode's members by its name; without patterns
// all nodes of a kind.
std::vector<std::int32_t> select(const AttributionGraph& graph,
                                 const std::vector<std::string>& patterns, CircuitNodeKind kind) {
  std::vector<std::int32_t> nodes;
  std::vector<std::uint8_t> used(patterns.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    bool wanted = patterns.empty() && graph.nodes[i].kind == kind;
    for (std::size_t p = 0; p < patterns.size(); ++p) {
      const auto group = std::find_if(graph.supernodes.begin(), graph.supernodes.end(),
                                      [&](const Supernode& s) { return s.name == patterns[p]; });
      const bool match = group == graph.supernodes.end()
                             ? node_id_matches(patterns[p], graph.nodes[i].id)
                             : std::find(group->members.begin(), group->members.end(),
                                         graph.nodes[i].id) != group->members.end();
      if (!match) continue;
      used[p] = 1;
      wanted = true;
    }
    if (wanted) nodes.push_back(static_cast<std::int32_t>(i));
  }
  for (std::size_t p = 0; p < patterns.size(); ++p)
    if (used[p] == 0) fail_usage("no node of the graph is '{}'", patterns[p]);
  if (nodes.empty())
    fail("the graph has no node of kind {}; name nodes with --from and --to",
         circuit_node_kind_name(kind));
  return nodes;
}

// Influence and scores; without where groups that span layers act on one another in a circle.
struct Flow {
  std::vector<double> influence;
  GraphScores scores;
};
std::optional<Flow> flow_of(const AttributionGraph& graph) {
  try {
    return Flow{node_influence(graph), graph_scores(graph)};
  } catch (const Error& error) {
    info("no influence: {}", error.what());
    return std::nullopt;
  }
}

struct Found {
  std::optional<Flow> flow;
  std::vector<CircuitPath> paths;
  std::optional<CircuitCut> nodes, edges;
  std::optional<Centrality> centrality;
  std::optional<Communities> communities;
  std::optional<GraphComparison> comparison;
};

std::vector<std::size_t> largest(const std::vector<double>& values, std::int64_t show) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return values[a] > values[b]; });
  if (std::ssize(order) > show) order.resize(size(std::max<std::int64_t>(0, show)));
  return order;
}

std::string text(const AttributionGraph& g, const Found& f, const Args& args) {
  Facts facts;
  facts.add("prompt", clip(escape_controls(g.prompt), 200));
  facts.add("nodes", fmt::format("{} features, {} errors, {} tokens, {} logits",
                                 grouped(g.count(CircuitNodeKind::feature)),
                                 grouped(g.count(CircuitNodeKind::error)),
                                 grouped(g.count(CircuitNodeKind::token)),
                                 grouped(g.count(CircuitNodeKind::logit))));
  facts.add("edges", grouped(g.edges()));
  if (f.flow) {
    facts.add("replacement", fmt::format("{:.4f}", f.flow->scores.replacement));
    facts.add("completeness", fmt::format("{:.4f}", f.flow->scores.completeness));
  }
  std::string out = facts.text();
  const auto heading = [&](const std::string& what, const std::string& more) {
    out += "\n" + styled(Style::bold, what) + "  " + more + "\n";
  };
  if (args.show > 0 && f.flow) {
    heading("most influential", "");
    out += nodes_table(g, f.flow->influence, args.show);
  }
  const auto name = [&](std::int32_t node) { return node_text(g, g.nodes[size(node)]); };
  if (args.paths > 0) {
    heading("strongest paths", "product of the shares; signed by the weights");
    for (const CircuitPath& path : f.paths) {
      std::string line;
      for (std::int32_t node : path.nodes) line += (line.empty() ? "" : " > ") + name(node);
      out += fmt::format("  {:.3e} {}  {}\n", path.strength, path.effect < 0 ? "-" : "+", line);
    }
    if (f.paths.empty()) out += "  none\n";
  }
  const auto cut = [&](const CircuitCut& c, const char* what) {
    heading(what, fmt::format("{:.6g}", c.value));
    for (std::int32_t node : c.nodes)
      out += fmt::format("  {}  {}\n", g.nodes[size(node)].id, name(node));
    for (const auto& [s, t] : c.edges) out += fmt::format("  {} > {}\n", name(s), name(t));
  };
  if (f.nodes) cut(*f.nodes, "fewest nodes to cut");
  if (f.edges) cut(*f.edges, "edges of the least weight to cut");
  if (f.centrality) {
    heading("centrality", "by betweenness");
    Table table({"node", "id", ">betweenness", ">in", ">out"});
    for (std::size_t i : largest(f.centrality->betweenness, args.show)) {
      table.row({clip(name(static_cast<std::int32_t>(i)), 40), g.nodes[i].id,
                 short_number(f.centrality->betweenness[i]),
                 short_number(f.centrality->in_strength[i]),
                 short_number(f.centrality->out_strength[i])});
    }
    out += table.text(2);
  }
  if (f.communities) {
    heading("communities",
            fmt::format("{}, modularity {:.4f}", f.communities->count, f.communities->modularity));
    for (std::int32_t c = 0; c < f.communities->count; ++c) {
      std::int64_t members = 0;
      std::string line;
      for (std::size_t i = 0; i < g.nodes.size(); ++i) {
        if (f.communities->of[i] != c) continue;
        if (++members <= 8) line += (line.empty() ? "" : ", ") + name(static_cast<std::int32_t>(i));
      }
      if (members < 2) continue;
      out += fmt::format("  {}: {} nodes: {}{}\n", c, members, line, members > 8 ? ", …" : "");
    }
  }
  if (f.comparison) {
    const GraphComparison& c = *f.comparison;
    heading("compared with " + args.compare, "");
    Table table({"", ">both", ">only here", ">only there", ">Jaccard"});
    table.row({"nodes", grouped(c.nodes_both), grouped(c.nodes_first), grouped(c.nodes_second),
               fmt::format("{:.4f}", c.node_jaccard)});
    table.row({"edges", grouped(c.edges_both), grouped(c.edges_first), grouped(c.edges_second),
               fmt::format("{:.4f}", c.edge_jaccard)});
    out += table.text(2);
    out +=
        fmt::format("  correlation of the weights of common edges {:.4f}\n", c.weight_correlation);
    Table changes({"edge", ">here", ">there"});
    for (const auto& e : c.largest_changes)
      changes.row({e.source + " > " + e.target, fmt::format("{:+.4g}", e.first),
                   fmt::format("{:+.4g}", e.second)});
    if (!changes.empty()) out += changes.text(2);
  }
  return out;
}

Json json_of(const AttributionGraph& g, const Found& f, const Args& args) {
  Json json = {{"prompt", g.prompt},
               {"nodes", g.nodes.size()},
               {"features", g.count(CircuitNodeKind::feature)},
               {"edges", g.edges()}};
  if (f.flow) {
    json["replacement"] = f.flow->scores.replacement;
    json["completeness"] = f.flow->scores.completeness;
  }
  const auto id = [&](std::int32_t node) { return g.nodes[size(node)].id; };
  if (args.paths > 0) {
    json["paths"] = Json::array();
    for (const CircuitPath& path : f.paths) {
      Json one = {{"strength", path.strength}, {"effect", path.effect}};
      for (std::int32_t node : path.nodes) one["nodes"].push_back(id(node));
      json["paths"].push_back(std::move(one));
    }
  }
  const auto cut = [&](const CircuitCut& c) {
    Json one = {{"value", c.value}, {"nodes", Json::array()}, {"edges", Json::array()}};
    for (std::int32_t node : c.nodes) one["nodes"].push_back(id(node));
    for (const auto& [s, t] : c.edges) one["edges"].push_back({id(s), id(t)});
    return one;
  };
  if (f.nodes) json["node_cut"] = cut(*f.nodes);
  if (f.edges) json["edge_cut"] = cut(*f.edges);
  if (f.centrality) {
    for (std::size_t i = 0; i < g.nodes.size(); ++i)
      json["centrality"][g.nodes[i].id] = {{"betweenness", f.centrality->betweenness[i]},
                                           {"in", f.centrality->in_strength[i]},
                                           {"out", f.centrality->out_strength[i]}};
  }
  if (f.communities) {
    json["communities"] = {{"count", f.communities->count},
                           {"modularity", f.communities->modularity}};
    for (std::size_t i = 0; i < g.nodes.size(); ++i)
      json["communities"]["of"][g.nodes[i].id] = f.communities->of[i];
  }
  if (f.comparison) {
    const GraphComparison& c = *f.comparison;
    json["comparison"] = {{"nodes_both", c.nodes_both},         {"nodes_here", c.nodes_first},
                          {"nodes_there", c.nodes_second},      {"edges_both", c.edges_both},
                          {"edges_here", c.edges_first},        {"edges_there", c.edges_second},
                          {"node_jaccard", c.node_jaccard},     {"edge_jaccard", c.edge_jaccard},
                          {"correlation", c.weight_correlation}};
    for (const auto& e : c.largest_changes)
      json["comparison"]["largest"].push_back(
          {{"source", e.source}, {"target", e.target}, {"here", e.first}, {"there", e.second}});
  }
  return json;
}

void write_results(const AttributionGraph& g, const Found& f, const Args& args, ResultFile& file) {
  file.group("graph");
  std::string files;
  for (const std::string& name : args.files) files += (files.empty() ? "" : " ") + name;
  file.setting("files", files);
  if (f.flow) {
    file.setting("replacement_score", f.flow->scores.replacement);
    file.setting("completeness_score", f.flow->scores.completeness);
  }
  file.setting("edges", g.edges());
  std::vector<std::string> ids;
  for (const CircuitNode& n : g.nodes) ids.push_back(n.id);
  const std::vector<std::string> node = {"node"};
  file.axis("node", std::span<const std::string>(ids));
  const auto real = [&](const char* name, const std::vector<double>& values, const char* what) {
    file.dataset(name, node, std::span<const double>(values), what, "");
  };
  if (f.flow)
    real("influence", f.flow->influence, "w (A + A^2 + ...), rows |A| / sum, w the probabilities");
  if (f.centrality) {
    real("betweenness", f.centrality->betweenness, "share of strongest paths through the node");
    real("in_strength", f.centrality->in_strength, "sum of |weight| into the node");
    real("out_strength", f.centrality->out_strength, "sum of |weight| out of the node");
  }
  if (f.communities) {
    file.dataset("community", node, std::span<const std::int32_t>(f.communities->of),
                 "community by Louvain's method on |weight|", "");
    file.setting("modularity", f.communities->modularity);
    file.setting("resolution", args.resolution);
  }
}

int run_graph(const Args& args, const Globals& globals) {
  if (args.files.size() > 1 && !args.merge)
    fail_usage("{} graphs were given: --merge averages them, --compare takes one beside the first",
               args.files.size());
  for (const std::string& path :
       {args.graph, args.graphml, args.dot, args.drawing, args.output.path})
    if (!path.empty()) check_writable(path, args.output.force);
  std::vector<AttributionGraph> graphs;
  for (const std::string& file : args.files) graphs.push_back(read_circuit_json(file));
  AttributionGraph g = args.merge ? merge_graphs(graphs) : std::move(graphs.front());
  graphs.clear();
  if (!args.supernodes.empty()) g.supernodes = read_supernodes(args.supernodes, g);
  if (args.prune) g = prune(g, args.shares);
  if (args.collapse) g = collapse_supernodes(g);

  Found found{.flow = flow_of(g)};
  const bool between = args.paths > 0 || args.cut || args.edge_cut;
  std::vector<std::int32_t> from, to;
  if (between) {
    from = select(g, args.from, CircuitNodeKind::token);
    to = select(g, args.to, CircuitNodeKind::logit);
  } else if (!args.from.empty() || !args.to.empty()) {
    fail_usage("--from and --to belong to --paths, --cut and --edge-cut");
  }
  if (args.paths > 0) found.paths = strongest_paths(g, from, to, args.paths);
  if (args.cut) found.nodes = node_cut(g, from, to);
  if (args.edge_cut) found.edges = edge_cut(g, from, to);
  if (args.centrality) found.centrality = centrality(g);
  if (args.communities) found.communities = communities(g, args.resolution);
  if (!args.compare.empty())
    found.comparison = compare_graphs(g, read_circuit_json(args.compare), args.show);

  const auto write = [&](const std::string& path, const std::string& what) {
    Output file(path, args.output.force);
    file.write(what);
    file.close();
    info("wrote {}", path);
  };
  if (!args.graph.empty()) write(args.graph, circuit_json(g));
  if (!args.graphml.empty()) write(args.graphml, circuit_graphml(g));
  if (!args.dot.empty()) write(args.dot, circuit_dot(g));
  if (!args.drawing.empty()) {
    draw_dot(circuit_dot(g), args.drawing);
    info("wrote {}", args.drawing);
  }
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, provenance(globals));
    write_results(g, found, args, file);
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(json_of(g, found, args), out);
  } else {
    out.write(text(g, found, args));
  }
  out.close();
  return 0;
}

}  // namespace

void register_graph(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("graph", "prune, merge, compare, search, draw such graphs");
  verb->group("Explain");
  verb->add_option("files", args->files, "graphs: JSON of lamina circuit or circuit-tracer")
      ->required()
      ->option_text("GRAPH.json...");
  verb->add_flag("--merge", args->merge, "several graphs: average their weights, nodes by id");
  verb->add_option("--supernodes", args->supernodes, "groups of nodes: JSON {\"name\": [ids]}")
      ->option_text("FILE");
  verb->add_flag("--prune", args->prune, "prune by influence");
  verb->add_option("--nodes", args->shares.node_share,
                   "--prune: nodes with this share of the influence (default 0.8)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("F");
  verb->add_option("--edges", args->shares.edge_share,
                   "--prune: edges with this share (default 0.98)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("F");
  verb->add_flag("--collapse", args->collapse, "make every group one node");
  verb->add_option("--compare", args->compare, "compare with this graph, nodes by id")
      ->option_text("FILE");
  verb->add_option("--paths", args->paths, "the N strongest paths from --from to --to")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{100000}))
      ->option_text("N");
  verb->add_flag("--cut", args->cut, "the fewest nodes that separate --from and --to");
  verb->add_flag("--edge-cut", args->edge_cut, "the edges of least weight that separate them");
  verb->add_option("--from", args->from, "nodes or groups, * for a number (default: all tokens)")
      ->option_text("NODE...");
  verb->add_option("--to", args->to, "nodes or groups (default: all logits)")
      ->option_text("NODE...");
  verb->add_flag("--centrality", args->centrality, "betweenness and strength of nodes");
  verb->add_flag("--communities", args->communities, "communities by Louvain's method");
  verb->add_option("--resolution", args->resolution,
                   "--communities: above 1 more and smaller ones (default 1)")
      ->check(CLI::PositiveNumber)
      ->option_text("R");
  verb->add_option("--graph", args->graph, "write the graph: JSON of the viewers")
      ->option_text("FILE");
  verb->add_option("--graphml", args->graphml, "write GraphML")->option_text("FILE");
  verb->add_option("--dot", args->dot, "write Graphviz' language")->option_text("FILE");
  verb->add_option("--draw", args->drawing, "draw it with Graphviz: .svg, .png or .pdf")
      ->option_text("FILE");
  add_output_options(*verb, args->output, "write numbers of the nodes to this HDF5 file");
  verb->add_option("--show", args->show, "nodes and edges to print (default 15)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_graph(*args, globals); };
  });
}

}  // namespace lamina::cli
