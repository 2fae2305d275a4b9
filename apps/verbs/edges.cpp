// lamina edges: which component passes what on to which, and the circuits that follow.

#include <chrono>
#include <fstream>
#include <memory>
#include <numeric>

#include "inputs.h"
#include "lamina/core/error.h"
#include "pair_inputs.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/edges_report.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PairInputs pairs;
  OutputOptions output;
  std::string method = "eap-ig";
  std::int64_t steps = 5;
  std::string at = "clean";
  std::string ablation = "patching";
  std::string from, graph, known;
  std::int64_t top = -1;
  double share = -1, threshold = -1;
  bool by_score = false, greedy = false, faithfulness = false, json = false;
  std::int64_t show = 15;
};

const std::vector<std::string> kMethods = {"eap",  "eap-ig", "eap-ig-activations",
                                           "relp", "exact",  "acdc"};

void check(const Args& args) {
  const int ways = (args.top >= 0) + (args.share >= 0) + (args.threshold >= 0);
  if (args.method == "acdc") {
    if (args.top >= 0 || args.share >= 0)
      fail_usage("--method acdc takes --threshold: it finds the circuit's size itself");
    if (!args.from.empty()) fail_usage("--method acdc searches anew: it takes no --from");
  } else if (ways > 1) {
    fail_usage("--top, --share and --threshold are three ways to choose one circuit: give one");
  }
  if (args.share > 1) fail_usage("--share is a part of all edges, 0 to 1, got {}", args.share);
  if (!args.graph.empty()) check_writable(args.graph, args.output.force);
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The runner of circuits and the model with a key and value head per query head that it needs;
// made when first asked for.
class Circuits {
 public:
  Circuits(const Model& model, std::span<const Pair> pairs, const Metric& metric,
           const CircuitOptions& options)
      : model_(model), pairs_(pairs), metric_(metric), options_(options) {}
  CircuitRunner& runner() {
    if (!runner_) {
      apart_ = std::make_unique<Model>(model_.ungrouped());
      forward_ = std::make_unique<Forward>(*apart_);
      runner_ = std::make_unique<CircuitRunner>(*forward_, pairs_, metric_, options_);
    }
    return *runner_;
  }

 private:
  const Model& model_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  CircuitOptions options_;
  std::unique_ptr<Model> apart_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<CircuitRunner> runner_;
};

// Scores every edge; acdc also sets the circuit.
void score(const Args& args, Forward& forward, std::span<const Pair> pairs, const Metric& metric,
           Circuits& circuits, EdgeGraph& graph) {
  const std::int64_t edges = graph.edges();
  if (args.method == "exact") {
    ProgressLine progress("removing edges", "edges", edges);
    graph.set_scores(exact_edge_scores(
        circuits.runner(), [&](std::int64_t done, std::int64_t) { progress.update(done); }));
    progress.finish();
    return;
  }
  if (args.method == "acdc") {
    ProgressLine progress("removing edges", "edges", edges);
    AcdcOptions options{
        .progress = [&](std::int64_t done, std::int64_t) { progress.update(done); }};
    if (args.threshold >= 0) options.threshold = args.threshold;
    const AcdcResult result = acdc(circuits.runner(), options);
    progress.finish();
    graph.set_scores(result.change);
    graph.set_mask(result.circuit);
    return;
  }
  EdgeScoreOptions options;
  options.steps = args.steps;
  options.ablation = parse_ablation(args.ablation);
  options.at_corrupted = args.at == "corrupted";
  if (args.method == "eap-ig") options.gradient = EdgeGradient::eap_ig;
  if (args.method == "eap-ig-activations") options.gradient = EdgeGradient::eap_ig_activations;
  if (args.method == "relp") options.rules = BackwardRules::relp();
  ProgressLine progress("attributing", "pairs", static_cast<std::int64_t>(pairs.size()));
  options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
  graph.set_scores(score_edges(forward, pairs, metric, options));
  progress.finish();
}

// Chooses the circuit in `graph`; nothing if none was asked for.
std::optional<std::string> choose(const Args& args, EdgeGraph& graph) {
  const std::string rank = args.by_score ? "score" : "|score|";
  if (args.method == "acdc") {
    return fmt::format("ACDC, threshold {}",
                       args.threshold >= 0 ? args.threshold : AcdcOptions{}.threshold);
  }
  if (args.threshold >= 0) {
    graph.keep_threshold(args.threshold, !args.by_score);
    return fmt::format("edges of {} ≥ {}, pruned", rank, args.threshold);
  }
  std::int64_t edges = args.top;
  if (args.share >= 0)
    edges = static_cast<std::int64_t>(args.share * static_cast<double>(graph.edges()));
  if (edges < 0) {
    if (!args.from.empty() && graph.edges_in_graph() > 0) return "the circuit of " + args.from;
    return std::nullopt;
  }
  if (args.greedy) {
    graph.keep_greedy(edges, !args.by_score);
    return fmt::format("{} edges by {}, greedily from the logits upwards, pruned", grouped(edges),
                       rank);
  }
  graph.keep_top(edges, !args.by_score);
  return fmt::format("the {} edges of the largest {}, pruned", grouped(edges), rank);
}

ChosenCircuit measure(CircuitRunner& runner, const EdgeGraph& graph, std::string how) {
  ChosenCircuit c{.how = std::move(how)};
  EdgeMask mask = graph.mask(), rest = mask;
  for (std::uint8_t& in : rest) in = in != 0 ? 0 : 1;
  const std::vector<EdgeMask> circuits = {mask, EdgeMask(mask.size(), 0), rest};
  const std::vector<double> metric = runner.run_means(circuits);
  c.edges = graph.edges_in_graph();
  c.nodes = graph.nodes_in_graph();
  c.metric = metric[0];
  c.empty = metric[1];
  c.full = mean(runner.clean());
  c.faithfulness = faithfulness(metric[0], c.empty, c.full);
  c.completeness = faithfulness(metric[2], c.empty, c.full);
  return c;
}

std::string describe_method(const Args& args) {
  if (!args.from.empty()) return "scores of " + args.from;
  const std::string steps = fmt::format("{} steps", args.steps);
  if (args.method == "eap") return "EAP: gradient at the " + args.at + " prompts";
  if (args.method == "eap-ig") return "EAP-IG: gradients between the inputs, " + steps;
  if (args.method == "eap-ig-activations")
    return "EAP-IG: gradients between the activations, " + steps;
  if (args.method == "relp") return "RelP: relevance at the " + args.at + " prompts";
  if (args.method == "exact") return "exact: the metric with and without each edge";
  return "ACDC: edges removed one after the other";
}

int run_edges(const Args& args, const Globals& globals) {
  check(args);
  const Ablation ablation = parse_ablation(args.ablation);
  const MetricKind kind = parse_metric(args.pairs.metric);
  const Model model = load_model(args.model);
  check_edge_model(model.config());
  EdgeReport report{.graph = EdgeGraph(GraphShape::of(model.config()))};
  if (!args.from.empty()) {
    EdgeGraph given = read_graph(args.from);
    if (!(given.shape() == report.graph.shape())) {
      fail("{}: a graph of {} nodes and {} edges, the graph of {} has {} and {}", args.from,
           given.sources(), given.edges(), model.id(), report.graph.sources(),
           report.graph.edges());
    }
    report.graph = given;
  }
  std::optional<KnownCircuit> known;
  if (!args.known.empty()) known = read_known_circuit(args.known, report.graph);
  Forward forward(model);
  const LoadedPairs loaded = load_pairs(args.pairs, forward);
  const Metric metric = make_metric(kind, loaded.pairs, forward);
  Circuits circuits(model, loaded.pairs, metric, {.ablation = ablation});

  if (args.from.empty()) {
    const auto start = std::chrono::steady_clock::now();
    score(args, forward, loaded.pairs, metric, circuits, report.graph);
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const std::optional<std::string> how = choose(args, report.graph);
  if (how) report.circuit = measure(circuits.runner(), report.graph, *how);
  if (args.faithfulness) {
    ProgressLine progress("running circuits", "circuits", 2 * std::ssize(kCircuitShares));
    report.faithfulness =
        measure_faithfulness(circuits.runner(), report.graph, args.greedy, true,
                             [&](std::int64_t done, std::int64_t) { progress.update(done); });
    progress.finish();
  }
  if (how || args.faithfulness || args.method == "exact") {
    report.has_runs = true;
    report.clean = mean(circuits.runner().clean());
    report.corrupted = mean(circuits.runner().corrupted());
  }
  if (known) report.known = known_scores(report.graph, *known);

  std::string pairs = fmt::format("{} of {}", loaded.pairs.size(), args.pairs.file);
  if (args.pairs.solved_only)
    pairs += fmt::format(", {} of {} solved", loaded.in_file - loaded.unsolved, loaded.in_file);
  report.settings = {{"model", model.id()},
                     {"pairs", pairs},
                     {"metric_kind", args.pairs.metric},
                     {"method", describe_method(args)},
                     {"ablation", args.ablation}};
  if (model.config().norm_place == NormPlace::sandwich) {
    report.settings.emplace_back(
        "head_share", "result over the denominator of the norm behind attention, times its weight");
  }

  if (!args.graph.empty()) {
    Output file(args.graph, args.output.force);
    file.write(graph_json(report.graph));
    file.close();
  }
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_edges(report, file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(edges_json(report, args.show), out);
  } else {
    out.write(edges_text(report, args.show));
  }
  out.close();
  for (const std::string& path : {args.graph, args.output.path}) {
    if (!path.empty()) info("wrote {}", path);
  }
  return 0;
}

}  // namespace

void register_edges(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("edges", "what components pass on to each other: circuits");
  verb->group("Intervene");
  verb->add_option("model", args->model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  add_pair_options(*verb, args->pairs);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--method", args->method,
                   "eap (gradient), eap-ig (default: gradients between the inputs), "
                   "eap-ig-activations, relp (relevance), exact (every edge removed), acdc "
                   "(search)")
      ->check(CLI::IsMember(kMethods))
      ->option_text("METHOD");
  verb->add_option("--steps", args->steps, "eap-ig: steps (default 5)")
      ->check(CLI::Range(1, 10000))
      ->option_text("M");
  verb->add_option("--at", args->at,
                   "eap, relp: gradient at the clean (default) or corrupted prompt")
      ->check(CLI::IsMember({"clean", "corrupted"}))
      ->option_text("RUN");
  verb->add_option("--ablation", args->ablation,
                   "what an edge outside a circuit carries: patching (default: the corrupted "
                   "prompt's), zero, mean")
      ->check(CLI::IsMember({"patching", "zero", "mean"}))
      ->option_text("HOW");
  verb->add_option("--top", args->top, "circuit of so many edges")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--share", args->share, "circuit of this part of all edges, such as 0.01")
      ->check(CLI::NonNegativeNumber)
      ->option_text("F");
  verb->add_option("--threshold", args->threshold,
                   "circuit of the scores from here on; acdc: the change that an edge must make "
                   "to stay (default 0.01)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("T");
  verb->add_flag("--by-score", args->by_score,
                 "--top, --share, --threshold: by score (default: by its magnitude)");
  verb->add_flag("--greedy", args->greedy,
                 "choose circuits from the logits upwards, not by rank alone");
  verb->add_flag("--faithfulness", args->faithfulness,
                 "run circuits of ten sizes: faithfulness, completeness, CPR, CMD");
  verb->add_option("--known", args->known,
                   "AUROC against the circuit in this file (circuit.json or a graph)")
      ->option_text("FILE");
  verb->add_option("--from", args->from, "take the scores of this graph file instead")
      ->option_text("FILE");
  verb->add_option("--graph", args->graph,
                   "write the graph with scores and circuit to this file "
                   "(EAP-IG's JSON)")
      ->option_text("FILE");
  verb->add_option("--show", args->show, "largest edges to print (default 15)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_edges(*args, globals); };
  });
}

}  // namespace lamina::cli
