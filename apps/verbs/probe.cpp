// lamina probe: what can be read off activations linearly, and in which layer.

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/probes/linear_probe.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/feature_source.h"
#include "verbs/info.h"
#include "verbs/probe_tables.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  FeatureInputs inputs;
  OutputOptions output;
  std::string label = "label", position = "last", kind = "logistic";
  std::int64_t skip = 0;
  LinearProbeOptions options;
  std::string directions, apply;
  bool json = false;
};

int fit(Args& args, FeatureSource& source, const Globals& globals) {
  ProbeRun run;
  run.features.sites = source.sites();
  run.features.choice = parse_row_choice(args.position, run.features.index);
  run.features.skip = args.skip;
  run.features.label = args.label;
  run.features.group = args.inputs.group;
  run.features.skip_unlabelled = args.inputs.skip_unlabelled;
  run.options = args.options;
  run.options.kind = parse_probe_kind(args.kind);
  run.options.seed = globals.seed;
  run.rows = source.rows(run.features);
  run.targets = probe_targets(run.rows, run.options.kind);
  run.fold = deal_folds(run.targets, run.options);

  std::unique_ptr<ProgressLine> progress;
  source.read(run.features, [&](const Features& features, std::size_t s) {
    // Made here: when a model runs, its own progress comes first.
    if (!progress) {
      progress = std::make_unique<ProgressLine>(
          "fitting", "sites", static_cast<std::int64_t>(run.features.sites.size()));
    }
    const Site site = features.options().sites[s];
    SiteProbe probe = probe_site(site_name(site), features.values(s), features.width(s),
                                 run.targets, run.fold, run.options);
    probe.layer = site.layer;
    if (probe.residual > 1e-6) {
      warn("{}: a fit stopped where a derivative is still {:.1e}", probe.site, probe.residual);
    }
    run.sites.push_back(std::move(probe));
    progress->update(static_cast<std::int64_t>(run.sites.size()));
  });
  progress->finish();

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group("probe");
    write_linear_probes(file, run);
    file.close();
  }
  if (!args.directions.empty()) write_probe_file(args.directions, run, source.model_sha256());
  Output out;
  if (args.json) {
    print_json(probe_json(run), out);
  } else {
    out.write(probe_text(run));
  }
  out.close();
  return 0;
}

int apply(const Args& args, FeatureSource& source, const Globals& globals) {
  const StoredProbes stored = read_probe_file(args.apply);
  if (stored.model_sha256 != source.model_sha256()) {
    fail("{}: its probes were fitted to a model with SHA-256 {}, this one has {}", args.apply,
         stored.model_sha256, source.model_sha256());
  }
  FeatureOptions features;
  features.choice = stored.choice;
  features.index = stored.index;
  features.skip = stored.skip;
  std::vector<const StoredProbe*> probes;
  const std::vector<Site> wanted = args.inputs.sites.empty() ? std::vector<Site>() : source.sites();
  for (const StoredProbe& probe : stored.sites) {
    const Site site = parse_site(probe.site, source.config());
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), site) == wanted.end()) continue;
    const SiteShape shape = site_shape(site, source.config());
    if (shape.attention || shape.row() != probe.width) {
      fail("{}: {} has {} weights, the model's rows have {} values", args.apply, probe.site,
           probe.width, shape.attention ? 0 : shape.row());
    }
    features.sites.push_back(site);
    probes.push_back(&probe);
  }
  if (probes.empty()) fail("{}: it has no probe of these --sites", args.apply);
  // Labels are compared with where there are any.
  AppliedRun run;
  run.stored = &stored;
  run.labelled = source.label_names().contains(args.label);
  features.label = run.labelled ? args.label : "";
  features.skip_unlabelled = true;
  run.rows = source.rows(features);
  source.read(features, [&](const Features& read, std::size_t s) {
    run.sites.push_back(apply_probe(*probes[run.sites.size()], read.values(s), stored.kind));
  });
  score_applied(run);
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group("probe_apply");
    write_applied(file, run, args.apply);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(applied_json(run), out);
  } else {
    out.write(applied_text(run));
  }
  out.close();
  return 0;
}

int run_probe(Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  if (!args.directions.empty()) check_writable(args.directions, args.output.force);
  if (!args.apply.empty() && !args.directions.empty()) {
    fail_usage("--apply fits nothing: there is nothing for --directions to keep");
  }
  FeatureSource source(args.inputs, globals);
  const int code = args.apply.empty() ? fit(args, source, globals) : apply(args, source, globals);
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  if (!args.directions.empty()) info("wrote {}", args.directions);
  return code;
}

}  // namespace

void register_probe(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("probe", "linear probes and class-mean directions per site and layer");
  verb->group("Read");
  add_feature_options(
      *verb, args->inputs,
      "label whose value prompts share that folds must not part (pairs, questions)");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  LinearProbeOptions& o = args->options;
  verb->add_option("--label", args->label, "the prompts' label to predict (default label)")
      ->option_text("NAME");
  verb->add_option("--position", args->position,
                   "token to read: last (default), first, mean, all (a row per token), or a number")
      ->option_text("WHICH");
  verb->add_option("--skip", args->skip,
                   "first tokens of every prompt that mean and all leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--kind", args->kind, "logistic (classes, default) or ridge (numbers)")
      ->check(CLI::IsMember({"logistic", "ridge"}))
      ->option_text("KIND");
  verb->add_option("--strength", o.strengths,
                   "regularisation strengths to choose from (default 0.001,0.01,0.1,1,10,100)")
      ->delimiter(',')
      ->option_text("L...");
  verb->add_option("--folds", o.folds, "folds of the cross-validation (default 5)")
      ->check(CLI::Range(2, 1000))
      ->option_text("K");
  verb->add_option("--controls", o.controls, "repetitions with shuffled labels (default 5)")
      ->check(CLI::Range(0, 10000))
      ->option_text("N");
  verb->add_option("--resamples", o.resamples, "resamples of the intervals (default 1000)")
      ->check(CLI::Range(0, 1'000'000))
      ->option_text("N");
  verb->add_option("--shrinkage", o.shrinkage,
                   "of the covariance that whitens the difference of means (default 0.1)")
      ->option_text("R");
  verb->add_option("--directions", args->directions,
                   "also keep weights and directions in this safetensors file")
      ->option_text("FILE");
  verb->add_option("--apply", args->apply,
                   "fit nothing: score the rows by the probes of such a file")
      ->option_text("FILE");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_probe(*args, globals); };
  });
}

}  // namespace lamina::cli
