// lamina feature-circuit: which features of spliced-in autoencoders make the model answer as it
// does, estimated in three ways, checked by patched runs and by running the circuits.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <memory>

#include "inputs.h"
#include "lamina/circuits/feature_circuit.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/error.h"
#include "pair_inputs.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/backward_rules.h"
#include "verbs/feature_circuit_report.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  std::vector<std::string> saes, sites;
  bool other_model = false;
  PairInputs pairs;
  std::string test;
  std::vector<std::string> methods, rules;
  std::int64_t ig_steps = 10;
  std::string patch = "pair", ablation = "mean", errors = "ranked", align = "end";
  bool by_position = false, no_sweep = false;
  std::vector<double> thresholds;
  std::vector<std::int64_t> counts;
  std::string exact;
  std::int64_t edges = 0;
  std::int64_t batch_tokens = 256;
  OutputOptions output;
  std::int64_t show = 15;
  bool json = false;
};

// The two samples of nodes that are patched exactly; 0: none. nullopt: all.
std::optional<std::int64_t> exact_nodes(const std::string& typed) {
  if (typed == "all") return std::nullopt;
  std::int64_t count = 0;
  const auto [end, error] = std::from_chars(typed.data(), typed.data() + typed.size(), count);
  if (!typed.empty() && (error != std::errc() || end != typed.data() + typed.size() || count < 2)) {
    fail_usage("--exact: '{}', expected a number of nodes from 2 on, or all", typed);
  }
  return count;
}

void check(const Args& args) {
  exact_nodes(args.exact);
  for (const double t : args.thresholds) {
    if (!(t >= 0) || !std::isfinite(t)) fail_usage("--thresholds: {}, expected numbers from 0", t);
  }
  for (const std::int64_t n : args.counts) {
    if (n < 0) fail_usage("--counts: {}, expected numbers from 0", n);
  }
  if (args.no_sweep && (!args.thresholds.empty() || !args.counts.empty() || !args.test.empty())) {
    fail_usage("--no-sweep runs no circuits: it takes no --thresholds, --counts or --test");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
}

std::vector<Transcoder> load_dictionaries(const Args& args, const Model& model) {
  std::vector<Transcoder> all;
  std::vector<Site> sites;
  if (!args.sites.empty()) sites = match_sites(args.sites, model.config());
  for (const std::string& path : args.saes) {
    TranscoderSet set = TranscoderSet::open(resolve_dictionaries(path));
    if (set.cross_layer() != nullptr) {
      fail_usage("{}: it is a cross-layer transcoder; feature-circuit takes a dictionary a site",
                 path);
    }
    set.bind(model, args.other_model);
    for (std::size_t i = 0; i < set.size(); ++i) {
      const Site site = set.config(i).output.site;
      if (!sites.empty() && std::find(sites.begin(), sites.end(), site) == sites.end()) continue;
      all.push_back(set.load(i));
    }
  }
  if (all.empty()) {
    fail_usage("--sites: no dictionary of {} rebuilds any of these sites", args.saes.front());
  }
  const std::vector<Site> order = all_sites(model.config());
  std::stable_sort(all.begin(), all.end(), [&](const Transcoder& a, const Transcoder& b) {
    const auto place = [&](const Transcoder& t) {
      return std::find(order.begin(), order.end(), t.config.output.site);
    };
    return place(a) < place(b);
  });
  return all;
}

// One method after the other, so that each has its own time.
FeatureEffects estimate(const FeatureStudy& study, const FeatureEffectOptions& options,
                        std::vector<double>& seconds) {
  FeatureEffects all;
  for (const FeatureMethod method : options.methods) {
    FeatureEffectOptions one = options;
    one.methods = {method};
    ProgressLine progress(fmt::format("estimating by {}", feature_method_name(method)), "pairs",
                          std::ssize(study.pairs));
    one.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
    const auto start = std::chrono::steady_clock::now();
    FeatureEffects effects = feature_effects(study, one);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    progress.finish();
    if (all.nodes.empty()) {
      all = std::move(effects);
    } else {
      all.effects.insert(all.effects.end(), effects.effects.begin(), effects.effects.end());
    }
  }
  all.options = options;
  return all;
}

void measure(const FeatureStudy& study, const Args& args, std::uint64_t seed,
             FeatureCircuitReport& report) {
  const std::optional<std::int64_t> wanted = exact_nodes(args.exact);
  const std::size_t nodes = report.effects.nodes.size();
  if (wanted == 0) return;
  const auto count = wanted ? static_cast<std::size_t>(*wanted) : nodes;
  report.checks.push_back({.name = count >= nodes ? "all" : "drawn",
                           .nodes = sample_nodes(nodes, count, seed),
                           .exact = {},
                           .agreements = {}});
  if (count < nodes) {
    report.checks.push_back({.name = "largest",
                             .nodes = largest_by_any(report.effects, count),
                             .exact = {},
                             .agreements = {}});
  }
  for (FeatureCheck& part : report.checks) {
    std::vector<FeatureNode> chosen;
    for (const std::size_t i : part.nodes) chosen.push_back(report.effects.nodes[i]);
    ProgressLine progress(
        fmt::format("patching {} nodes ({})", grouped(std::ssize(chosen)), part.name), "pairs",
        std::ssize(study.pairs));
    FeatureRunOptions options{
        .baseline = report.effects.options.baseline,
        .count_from = report.effects.options.count_from,
        .batch_tokens = 2 * args.batch_tokens,
        .progress = [&](std::int64_t done, std::int64_t) { progress.update(done); }};
    part.exact = exact_feature_effects(study, chosen, options);
    progress.finish();
    for (std::size_t m = 0; m < report.effects.options.methods.size(); ++m) {
      std::vector<double> values;
      for (const std::size_t i : part.nodes) values.push_back(report.effects.of(m)[i]);
      part.agreements.push_back(agreement(values, part.exact, 10, 1000, seed));
    }
  }
}

void find_edges(const FeatureStudy& study, const Args& args, FeatureCircuitReport& report) {
  if (args.edges == 0) return;
  std::vector<std::size_t> chosen =
      largest_by_any(report.effects, static_cast<std::size_t>(args.edges));
  std::sort(chosen.begin(), chosen.end());
  std::vector<FeatureNode> nodes;
  for (const std::size_t i : chosen) nodes.push_back(report.effects.nodes[i]);
  for (const FeatureMethod method : report.effects.options.methods) {
    ProgressLine progress(fmt::format("edges by {}", feature_method_name(method)), "pairs",
                          std::ssize(study.pairs));
    FeatureEffectOptions options = report.effects.options;
    options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
    report.edges.push_back(feature_edges(study, options, method, nodes));
    progress.finish();
  }
}

int run_feature_circuit(const Args& args, const Globals& globals) {
  check(args);
  FeatureEffectOptions options;
  if (!args.methods.empty()) {
    options.methods.clear();
    for (const std::string& name : args.methods) {
      const FeatureMethod method = parse_feature_method(name);
      if (std::find(options.methods.begin(), options.methods.end(), method) !=
          options.methods.end()) {
        fail_usage("--methods: {} is named twice", name);
      }
      options.methods.push_back(method);
    }
  }
  options.relp_rules = parse_rules(args.rules, BackwardRules::relp());
  options.ig_steps = args.ig_steps;
  options.baseline = parse_feature_baseline(args.patch);
  options.by_position = args.by_position;
  options.count_from = args.align == "start" ? CountFrom::start : CountFrom::end;
  options.batch_tokens = args.batch_tokens;
  const ErrorNodes errors = parse_error_nodes(args.errors);
  const MetricKind kind = parse_metric(args.pairs.metric);

  const Model model = load_model(args.model);
  FeatureCircuitReport report;
  report.dictionaries = load_dictionaries(args, model);
  Forward forward(model);
  const LoadedPairs loaded = load_pairs(args.pairs, forward);
  const Metric metric = make_metric(kind, loaded.pairs, forward);
  const FeatureStudy study{forward, report.dictionaries, loaded.pairs, metric};
  report.effects = estimate(study, options, report.seconds);
  measure(study, args, globals.seed, report);
  find_edges(study, args, report);

  std::string measured_on;
  if (!args.no_sweep) {
    PairInputs other = args.pairs;
    if (!args.test.empty()) other.file = args.test;
    const LoadedPairs test = args.test.empty() ? loaded : load_pairs(other, forward);
    const Metric test_metric = make_metric(kind, test.pairs, forward);
    measured_on = fmt::format("{} pairs of {}", test.pairs.size(), other.file);
    std::vector<double> thresholds = args.thresholds;
    std::vector<std::int64_t> counts = args.counts;
    if (thresholds.empty() && counts.empty()) {
      thresholds.push_back(0);  // all that has an effect: what no choice of nodes can exceed
      for (int i = -8; i <= 0; ++i) thresholds.push_back(std::pow(10.0, i / 2.0));
      for (std::int64_t n = 1; n < std::ssize(report.effects.nodes); n *= 10) {
        counts.push_back(n);
        counts.push_back(3 * n);
      }
    }
    std::optional<ProgressLine> progress;  // how many runs there are is known when they begin
    FeatureRunOptions run{.baseline = parse_feature_baseline(args.ablation),
                          .count_from = options.count_from,
                          .batch_tokens = 2 * args.batch_tokens,
                          .progress = [&](std::int64_t done, std::int64_t total) {
                            if (!progress) progress.emplace("running circuits", "runs", total);
                            progress->update(done);
                          }};
    report.sweep = sweep_feature_circuits({forward, report.dictionaries, test.pairs, test_metric},
                                          report.effects, thresholds, counts, errors, run);
    if (progress) progress->finish();
  }

  std::string pairs = fmt::format("{} of {}", loaded.pairs.size(), args.pairs.file);
  if (args.pairs.solved_only)
    pairs += fmt::format(", {} of {} solved", loaded.in_file - loaded.unsolved, loaded.in_file);
  report.settings = {
      {"model", model.id()},
      {"pairs", pairs},
      {"metric_kind", args.pairs.metric},
      {"patch", args.patch},
      {"positions",
       args.by_position ? "a node each, counted from the " + args.align : "one node for all"},
      {"ig_steps", std::to_string(args.ig_steps)},
      {"relp_rules", rules_text(options.relp_rules)},
  };
  if (report.sweep) {
    report.settings.emplace_back("ablation", args.ablation);
    report.settings.emplace_back("errors", args.errors);
    report.settings.emplace_back("circuits_run_on", measured_on);
  }
  if (!report.checks.empty()) {
    report.settings.emplace_back("exact",
                                 args.exact + " nodes, seed " + std::to_string(globals.seed));
  }
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_feature_circuit(report, file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(feature_circuit_json(report, args.show), out);
  } else {
    out.write(feature_circuit_text(report, args.show));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

void add_circuit_options(CLI::App& verb, Args& args) {
  verb.add_option("--ablation", args.ablation,
                  "what nodes outside a circuit become: mean (default: over the corrupted prompts, "
                  "by position), zero, pair")
      ->check(CLI::IsMember({"mean", "zero", "pair"}))
      ->option_text("HOW");
  verb.add_option("--errors", args.errors,
                  "errors in circuits: ranked (default: as every node), keep (all stay), remove")
      ->check(CLI::IsMember({"ranked", "keep", "remove"}))
      ->option_text("HOW");
  verb.add_option("--thresholds", args.thresholds,
                  "run the circuits of |effect| > T (default 0 and 1e-4 to 1, two a decade [ours])")
      ->delimiter(',')
      ->option_text("T,...");
  verb.add_option("--counts", args.counts,
                  "run the circuits of the N largest nodes (default 1, 3, 10, 30 ... [ours])")
      ->delimiter(',')
      ->option_text("N,...");
  verb.add_option("--test", args.test, "run the circuits on these pairs instead")
      ->option_text("FILE");
  verb.add_flag("--no-sweep", args.no_sweep, "estimate effects only, run no circuits");
}

}  // namespace

void register_feature_circuit(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("feature-circuit", "features behind an answer, with SAEs");
  verb->group("Explain");
  verb->add_option("model", args->model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  verb->add_option(
          "--saes", args->saes,
          "dictionaries, at most one a site: folders or files as SAELens or circuit-tracer "
          "write them")
      ->required()
      ->option_text("PATH...");
  verb->add_option("--sites", args->sites, "use only dictionaries of these sites (resid_post:2-5)")
      ->option_text("SITE...");
  verb->add_flag("--other-model", args->other_model,
                 "use dictionaries that name another model than this");
  add_pair_options(*verb, args->pairs);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--methods", args->methods, "of atp, ig, relp (default: all three)")
      ->delimiter(',')
      ->option_text("NAME,...");
  verb->add_option("--ig-steps", args->ig_steps, "ig: steps (default 10)")
      ->check(CLI::Range(1, 10000))
      ->option_text("K");
  verb->add_option("--rules", args->rules,
                   "relp: rules of the backward pass, of norm, activation, gate, pattern, mlp "
                   "(default norm,activation,gate)")
      ->delimiter(',')
      ->option_text("RULE,...");
  verb->add_option("--patch", args->patch,
                   "what a node's value is compared with: pair (default: the corrupted prompt's), "
                   "zero, mean")
      ->check(CLI::IsMember({"pair", "zero", "mean"}))
      ->option_text("HOW");
  verb->add_flag("--by-position", args->by_position, "a node for every position (default: one)");
  verb->add_option("--align", args->align,
                   "prompts of different lengths meet at their end (default) or start")
      ->check(CLI::IsMember({"end", "start"}))
      ->option_text("WHERE");
  verb->add_option(
          "--exact", args->exact,
          "check the estimates: patch N nodes drawn by the seed, and the N largest; or all")
      ->option_text("N");
  verb->add_option("--edges", args->edges,
                   "how much of the N largest nodes' effects passes directly from one to another")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{10000}))
      ->option_text("N");
  add_circuit_options(*verb, *args);
  verb->add_option("--batch-tokens", args->batch_tokens,
                   "tokens of the prompts in one pass (default 256)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->option_text("N");
  verb->add_option("--show", args->show, "largest nodes to print (default 15)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_feature_circuit(*args, globals); };
  });
}

}  // namespace lamina::cli
