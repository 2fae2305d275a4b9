// lamina patch: which places in the model make it say this.

#include <chrono>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "pair_inputs.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/patch_attribution.h"
#include "verbs/patch_modes.h"
#include "verbs/patch_report.h"
#include "verbs/patch_sweep.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PairInputs pairs;
  NodeChoice nodes;
  OutputOptions output;
  std::string method = "exact";
  AttributionArgs attribution;
  ModeArgs mode;
  bool metric_typed = false;
  std::string direction;
  std::string replace = "other";
  double noise_sigma = 0.0;
  bool mean_per_position = false;
  std::string mean_over;
  std::string align = "end";
  std::string memory = "1G";
  std::int64_t show = 10;
  bool json = false;
};

Replacement parse_replacement(const std::string& word) {
  if (word == "zero") return Replacement::zero;
  if (word == "mean") return Replacement::mean;
  if (word == "resample") return Replacement::resample;
  if (word == "noise") return Replacement::noise;
  return Replacement::other;
}

std::string does_what(Replacement how, Direction direction) {
  const bool denoise = direction == Direction::denoise;
  const std::string base = denoise ? "corrupted" : "clean";
  switch (how) {
    case Replacement::other:
      return denoise ? "denoising: corrupted prompts run, clean values put in"
                     : "noising: clean prompts run, corrupted values put in";
    case Replacement::zero:
      return "zero ablation of the " + base + " prompts";
    case Replacement::mean:
      return "mean ablation of the " + base + " prompts";
    case Replacement::resample:
      return "resampling: " + base + " prompts run, values of another pair's put in";
    case Replacement::noise:
      return "noise added to values of the " + base + " prompts";
  }
  return {};
}

std::string score_sentence(const PatchReport& r) {
  if (r.other_name.empty()) {
    return fmt::format(
        "score = (patched − {0}) / {0}, means over the pairs: the relative change; effect = "
        "patched "
        "− {0}",
        r.base_name);
  }
  return fmt::format(
      "score = (patched − {0}) / ({1} − {0}), means over the pairs: 0 as the {0} run, 1 as the {1} "
      "one; effect = patched − {0}",
      r.base_name, r.other_name);
}

// A trace and a knock-out ask for the answer's probability unless something was typed.
std::string metric_of(const Args& args) {
  const bool probability = args.mode.trace || !args.mode.knockout.empty();
  return probability && !args.metric_typed ? "prob" : args.pairs.metric;
}

void check_mode(const Args& args) {
  if (!args.mode.any()) return;
  if (args.method != "exact") {
    fail_usage("--method {}: --trace, --knockout and --receivers are exact", args.method);
  }
  if (args.replace != "other") {
    fail_usage("--replace {}: not with --trace, --knockout and --receivers", args.replace);
  }
  if (!args.mode.knockout.empty() && (!args.nodes.sites.empty() || !args.nodes.by.empty())) {
    fail_usage("--knockout goes layer by layer; --site and --by are not for it");
  }
}

PatchReport sweep(const Args& args, Forward& forward, std::span<const Pair> pairs,
                  const Globals& globals, AttributionReport& attribution,
                  std::vector<Node>& nodes) {
  const Model& model = forward.model();
  const std::optional<PatchMode> mode = patch_mode(args.mode, args.direction, forward, pairs);
  const MetricKind metric = parse_metric(metric_of(args));
  const Align align = args.align == "start" ? Align::start : Align::end;
  NodeChoice choice = args.nodes;
  if (choice.sites.empty())
    choice.sites = mode ? mode->sites : std::vector<std::string>{"resid_pre"};
  if (choice.by.empty() && mode) choice.by = mode->by;
  if (mode) choice.by_position = mode->by_position;
  ChosenNodes chosen = chosen_nodes(choice, model.config(), pairs, model.tokenizer(), align);

  PatchOptions options;
  options.replacement = parse_replacement(args.replace);
  const bool ablation = options.replacement != Replacement::other;
  options.direction = args.direction.empty() ? (ablation ? Direction::noise : Direction::denoise)
                      : args.direction == "noise" ? Direction::noise
                                                  : Direction::denoise;
  if (mode) options.direction = mode->direction;
  options.mean_per_position = args.mean_per_position;
  options.noise_sigma = args.noise_sigma;
  options.seed = globals.seed;
  options.memory = parse_bytes(args.memory, "--memory");
  if (options.replacement == Replacement::noise && !(args.noise_sigma > 0)) {
    fail_usage("--replace noise needs --noise-sigma, a positive number");
  }
  std::vector<std::vector<std::int32_t>> reference;
  if (!args.mean_over.empty()) {
    for (const Prompt& prompt :
         read_prompts(args.mean_over, model.tokenizer(), model.config().d_vocab)) {
      reference.push_back(prompt.ids);
    }
    if (reference.empty()) fail("{}: it holds no prompts", args.mean_over);
    options.reference = reference;
  }
  const std::optional<PatchMethod> estimate =
      attribution_method(args.method, args.attribution, options.direction, attribution);
  const PatchMethod& method = mode       ? mode->method
                              : estimate ? *estimate
                                         : patch_method(args.method);
  ProgressLine progress("patching", "patches",
                        static_cast<std::int64_t>(chosen.nodes.size() * pairs.size()));
  options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
  const auto start = std::chrono::steady_clock::now();
  const PatchResult result =
      run_method(method, forward, pairs, metric, chosen.nodes, options, align);
  progress.finish();

  PatchReport report;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool denoise = options.direction == Direction::denoise;
  report.title = mode ? mode->title : does_what(options.replacement, options.direction);
  report.base_name = mode ? mode->base_name : denoise ? "corrupted" : "clean";
  report.other_name = mode ? mode->other_name : denoise ? "clean" : "corrupted";
  report.base = denoise ? result.corrupted : result.clean;
  if (!report.other_name.empty()) report.other = denoise ? result.clean : result.corrupted;
  report.score = score_sentence(report);
  report.grids = std::move(chosen.grids);
  report.patched = result.patched;
  report.runs = result.runs;
  report.skipped = result.skipped;
  report.settings.emplace_back("method", fmt::format("{} ({})", method.name, method.does));
  if (mode) {
    report.settings.insert(report.settings.end(), mode->settings.begin(), mode->settings.end());
  }
  check_estimates(args.attribution, forward, pairs, metric, chosen.nodes, options, align, result,
                  globals.seed, attribution);
  report.settings.insert(report.settings.end(), attribution.settings.begin(),
                         attribution.settings.end());
  nodes = std::move(chosen.nodes);
  if (options.replacement == Replacement::noise) {
    report.settings.emplace_back("noise_sigma", fmt::format("{}", args.noise_sigma));
  }
  if (options.replacement == Replacement::mean) {
    report.settings.emplace_back(
        "mean_over",
        fmt::format("{}, {}",
                    args.mean_over.empty() ? "the pairs' " + report.other_name + " prompts"
                                           : args.mean_over,
                    args.mean_per_position ? "per position" : "pooled"));
  }
  report.settings.emplace_back("positions_align", args.align);
  return report;
}

int run_patch(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  check_attribution_options(args.method, args.attribution);
  if (!is_attribution(args.method)) patch_method(args.method);
  check_mode(args);
  parse_metric(args.pairs.metric);
  const Model model = load_model(args.model);
  Forward forward(model);
  const LoadedPairs loaded = load_pairs(args.pairs, forward);

  AttributionReport attribution;
  std::vector<Node> nodes;
  PatchReport report = sweep(args, forward, loaded.pairs, globals, attribution, nodes);
  std::string pairs = fmt::format("{} of {}", loaded.pairs.size(), args.pairs.file);
  if (args.pairs.solved_only) {
    pairs += fmt::format(", {} of {} solved", loaded.in_file - loaded.unsolved, loaded.in_file);
  }
  report.settings.insert(report.settings.begin(),
                         {{"model", model.id()}, {"pairs", pairs}, {"metric", metric_of(args)}});
  for (const Pair& pair : loaded.pairs) report.pair_ids.push_back(pair.id);
  report.summarise();

  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_patch(report, file);
    write_attribution(attribution, loaded.pairs, nodes, file);
    file.close();
  }
  Output out;
  if (args.json) {
    nlohmann::ordered_json json = patch_json(report, args.show);
    attribution_json(attribution, json);
    print_json(json, out);
  } else {
    out.write(patch_text(report, args.show) + attribution_text(attribution));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

void add_node_options(CLI::App& verb, Args& args) {
  verb.add_option("--site", args.nodes.sites,
                  "places to patch (default resid_pre): resid_mid, z, pattern:3, mlp_out ...")
      ->delimiter(',')
      ->option_text("GLOB...");
  verb.add_option("--by", args.nodes.by,
                  "split sites by layer, position, head, neuron (default: layer,head where there "
                  "are heads, else layer,position)")
      ->delimiter(',')
      ->option_text("DIMS");
  verb.add_option("--layers", args.nodes.layers, "only these layers: 3, 0-5,7 or -1")
      ->option_text("LAYERS");
  verb.add_option("--align", args.align,
                  "pairs of different lengths: count positions from the end (default) or start")
      ->check(CLI::IsMember({"end", "start"}))
      ->option_text("WHERE");
}

}  // namespace

void register_patch(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("patch", "which places in the model make it say this");
  verb->group("Intervene");
  verb->add_option("model", args->model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  add_pair_options(*verb, args->pairs);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  add_node_options(*verb, *args);
  verb->add_option("--method", args->method,
                   "exact (default): every patch is a run; estimates of it: atp (gradient), ig "
                   "(integrated gradients), relp (relevance)")
      ->option_text("METHOD");
  add_attribution_options(*verb, args->attribution);
  verb->add_option(
          "--direction", args->direction,
          "denoise: clean values into the corrupted run (default); noise: corrupted values "
          "into the clean run (default of ablations)")
      ->check(CLI::IsMember({"denoise", "noise"}))
      ->option_text("WAY");
  verb->add_option("--replace", args->replace,
                   "what is put in: other (default: the pair's other prompt's), zero, mean, "
                   "resample (another pair's), noise (added)")
      ->check(CLI::IsMember({"other", "zero", "mean", "resample", "noise"}))
      ->option_text("WHAT");
  verb->add_option("--noise-sigma", args->noise_sigma, "--replace noise: standard deviation")
      ->option_text("S");
  verb->add_flag("--mean-per-position", args->mean_per_position,
                 "--replace mean: one mean per position (equal lengths needed)");
  verb->add_option("--mean-over", args->mean_over,
                   "--replace mean: over these prompts (default: the prompts that are not run)")
      ->option_text("FILE");
  add_mode_options(*verb, args->mode);
  verb->add_option("--memory", args->memory, "bytes beside the weights, such as 500M (default 1G)")
      ->option_text("BYTES");
  verb->add_option("--show", args->show, "largest effects to print (default 10)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, verb, &globals] {
    args->metric_typed = verb->get_option("--metric")->count() > 0;
    globals.action = [args, &globals] { return run_patch(*args, globals); };
  });
}

}  // namespace lamina::cli
