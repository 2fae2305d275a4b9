// lamina depth: what a model does with its layers.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/depth_against.h"
#include "verbs/depth_tables.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

const std::vector<std::string> kAnalyses = {"contributions", "growth",    "angular",
                                            "exit",          "sparsity",  "magnitudes",
                                            "coding-rate",   "linear-map"};

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  std::vector<std::string> analyses;  // empty: all that fit
  std::int64_t skip = 0;
  std::int64_t exit_every = 8;
  double active = 0, active_rms = 0;
  bool has_active = false, has_active_rms = false;
  double epsilon = 0.5;
  std::string rows = "unit";
  std::string against;
  double ridge = 1e-4;
  std::int64_t holdout = 5;
  std::string map_memory = "1G";
  bool json = false;

  bool named(const std::string& analysis) const {
    return std::find(analyses.begin(), analyses.end(), analysis) != analyses.end();
  }
  bool wanted(const std::string& analysis) const { return analyses.empty() || named(analysis); }
};

SparsityOptions sparsity_options(const Args& args, const ModelConfig& config) {
  SparsityOptions options = default_sparsity(config);
  if (args.has_active || args.has_active_rms) {
    options.threshold = args.has_active ? args.active : args.active_rms;
    options.relative = args.has_active_rms;
  }
  options.tokens.skip = args.skip;
  return options;
}

// An analysis that nobody named is left out, and said so, where the recordings lack a site of it.
template <class T>
void drop_unrecorded(std::unique_ptr<T>& probe, const char* analysis, const Args& args,
                     const OpenedSource& source) {
  if (probe == nullptr || args.named(analysis)) return;
  for (const Recording& recording : source.recordings()) {
    for (Site site : probe->sites(source.model().config())) {
      if (recording.has(site)) continue;
      info("without {}: {} has no {}", analysis, recording.path().string(), site_name(site));
      probe.reset();
      return;
    }
  }
}

DepthProbes make_probes(const Args& args, const OpenedSource& source, const Readout& readout) {
  const ModelConfig& config = source.model().config();
  const TokenChoice tokens{args.skip, 1};
  DepthProbes probes;
  if (args.wanted("contributions")) {
    probes.contributions = std::make_unique<ContributionProbe>(config, tokens);
  }
  if (args.wanted("growth")) probes.growth = std::make_unique<GrowthProbe>(config, tokens);
  if (args.wanted("angular")) probes.angular = std::make_unique<AngularProbe>(config, tokens);
  if (args.wanted("exit") && args.exit_every > 0) {
    // Asked for by name, a model without such logits is an error; else it has none to read.
    const bool possible = config.head == Head::language && config.norm_place != NormPlace::post;
    ExitOptions options;
    options.tokens = {args.skip, args.exit_every};
    if (possible || args.named("exit")) {
      probes.exit = std::make_unique<ExitProbe>(config, readout, options);
    } else {
      info("without exit: this {} model has no logits to read in the middle", config.family);
    }
  }
  if (args.wanted("sparsity") && (config.d_mlp > 0 || args.named("sparsity"))) {
    probes.sparsity = std::make_unique<SparsityProbe>(config, sparsity_options(args, config));
  }
  if (args.wanted("magnitudes")) {
    probes.magnitudes = std::make_unique<MagnitudeProbe>(config, tokens);
  }
  if (args.wanted("coding-rate")) {
    CodingRateOptions options;
    options.epsilon = args.epsilon;
    options.unit_rows = args.rows == "unit";
    options.tokens = tokens;
    probes.coding_rate = std::make_unique<CodingRateProbe>(config, options);
  }
  drop_unrecorded(probes.contributions, "contributions", args, source);
  drop_unrecorded(probes.growth, "growth", args, source);
  drop_unrecorded(probes.angular, "angular", args, source);
  drop_unrecorded(probes.exit, "exit", args, source);
  drop_unrecorded(probes.sparsity, "sparsity", args, source);
  drop_unrecorded(probes.magnitudes, "magnitudes", args, source);
  drop_unrecorded(probes.coding_rate, "coding-rate", args, source);
  return probes;
}

void check(const Args& args) {
  if (!args.source.recordings.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (args.has_active && args.has_active_rms) {
    fail_usage("--active and --active-rms were both given; there is one threshold");
  }
  if (args.named("linear-map") && args.against.empty()) {
    fail_usage("linear-map needs a second model; give --against");
  }
  if (!args.against.empty() && !args.wanted("linear-map")) {
    fail_usage("--against is for linear-map, which --analyses leaves out");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
}

// Tokens and prompts read, and whether any was.
void count(DepthReport& report, const OpenedSource& source, std::span<const Prompt> prompts,
           std::int64_t skip) {
  const auto add = [&](std::span<const Prompt> some) {
    report.prompts += static_cast<std::int64_t>(some.size());
    for (const Prompt& prompt : some) {
      report.tokens +=
          std::max<std::int64_t>(0, static_cast<std::int64_t>(prompt.ids.size()) - skip);
    }
  };
  add(prompts);
  for (const Recording& recording : source.recordings()) add(recording.prompts());
  if (report.tokens == 0) fail("no prompt has more than the {} tokens to skip", skip);
}

int run_depth(const Args& args, const Globals& globals) {
  check(args);
  const std::uint64_t map_memory = parse_bytes(args.map_memory, "--map-memory");
  OpenedSource source(args.source);
  const std::vector<Prompt> prompts =
      source.live() ? load_prompts(args.prompts, source.model()) : std::vector<Prompt>();
  DepthReport report;
  report.model = source.model().id();
  report.layers = source.model().config().n_layers;
  count(report, source, prompts, args.skip);

  const std::unique_ptr<Readout> readout = model_readout(source.forward());
  report.probes = make_probes(args, source, *readout);
  const std::vector<Probe*> probes = report.probes.all();
  if (probes.empty() && args.against.empty()) fail("nothing is left to analyse");
  if (!probes.empty()) source.run(probes, prompts, "reading");

  std::map<std::string, std::string> provenance = source.provenance(globals);
  LinearMapOptions map_options;
  map_options.ridge = args.ridge;
  map_options.holdout = args.holdout;
  map_options.skip = args.skip;
  map_options.memory = map_memory;
  ModelConfig target;
  if (!args.against.empty()) {
    AgainstResult against = map_against(source, prompts, args.against, map_options);
    report.against = against.id;
    report.maps = std::move(against.maps);
    target = against.config;
    provenance["against_model_id"] = against.id;
    provenance["against_model_sha256"] = against.sha256;
  }

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, provenance);
    for (const Probe* probe : probes) {
      file.group(probe->name());
      probe->write(file);
    }
    if (report.maps) {
      file.group("depth_linear_map");
      write_linear_maps(file, *report.maps, map_options, source.model().config(), target);
    }
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(depth_json(report), out);
  } else {
    out.write(depth_text(report));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_depth(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("depth", "what a model does with its layers");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--analyses", args->analyses,
                   "contributions, growth, angular, exit, sparsity, magnitudes, coding-rate, "
                   "linear-map (default: all that there is data for)")
      ->delimiter(',')
      ->check(CLI::IsMember(kAnalyses))
      ->option_text("LIST");
  verb->add_option("--skip", args->skip, "first tokens of every prompt to leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--exit-every", args->exit_every,
                   "early exit: decode one token in N at every layer (default 8; 0: none)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--active", args->active, "sparsity: active is |x| > T (default for ReLU: 0)")
      ->check(CLI::NonNegativeNumber)
      ->each([args = args.get()](const std::string&) { args->has_active = true; })
      ->option_text("T");
  verb->add_option("--active-rms", args->active_rms,
                   "sparsity: active is |x| > T times the token's RMS (default for others: 0.1)")
      ->check(CLI::NonNegativeNumber)
      ->each([args = args.get()](const std::string&) { args->has_active_rms = true; })
      ->option_text("T");
  verb->add_option("--epsilon", args->epsilon, "coding rate: allowed distortion (default 0.5)")
      ->option_text("E");
  verb->add_option("--rows", args->rows,
                   "coding rate: unit (default), tokens scaled to norm 1, or raw")
      ->check(CLI::IsMember({"unit", "raw"}))
      ->option_text("ROWS");
  verb->add_option("--against", args->against,
                   "fit linear maps to this model's layers: a model, or a recording of the same "
                   "prompts")
      ->option_text("WHAT");
  verb->add_option("--ridge", args->ridge, "linear maps: ridge on the correlations (default 1e-4)")
      ->option_text("R");
  verb->add_option("--holdout", args->holdout,
                   "linear maps: one prompt in N is measured, not fitted (default 5)")
      ->option_text("N");
  verb->add_option("--map-memory", args->map_memory,
                   "linear maps: bound of the sums, which decides how many passes (default 1G)")
      ->option_text("SIZE");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_depth(*args, globals); };
  });
}

}  // namespace lamina::cli
