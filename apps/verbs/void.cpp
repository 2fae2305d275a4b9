// lamina void: which layers leave a token's stream as large as it was.

#include "lamina/probes/void.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/probes/skip.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"
#include "verbs/void_tables.h"

namespace lamina::cli {
namespace {

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  Sampling sampling;
  std::vector<double> alphas = {0.0, 0.2, 0.4, 0.6, 0.8, 1.0};
  std::string rule = "l2";
  std::string skip = "none";
  bool no_tokens = false;
  bool json = false;
};

// What is found, and where it came from.
struct Found {
  std::unique_ptr<VoidProbe> probe;
  std::int64_t prompts = 0;
  std::map<std::string, std::string> provenance;
  std::vector<SkipEffect> effects;
};

// The rule needs norms only, so a recording is read without its model.
Found read_recordings(const Args& args, const VoidOptions& options, const Globals& globals) {
  std::vector<Recording> recordings;
  std::int64_t total = 0;
  std::string paths;
  for (const std::string& path : args.source.recordings) {
    recordings.push_back(Recording::open(path));
    const RecordingHeader& first = recordings.front().header();
    const RecordingHeader& header = recordings.back().header();
    if (header.model_sha256 != first.model_sha256) {
      fail("{}: it was recorded from a model with SHA-256 {}, {} from one with {}", path,
           header.model_sha256, recordings.front().path().string(), first.model_sha256);
    }
    total += recordings.back().tokens();
    paths += (paths.empty() ? "" : "\n") + path;
  }
  Found found;
  const RecordingHeader& header = recordings.front().header();
  found.probe = std::make_unique<VoidProbe>(header.config, options);
  ProgressLine progress("reading", "tokens", total);
  std::int64_t before = 0;
  for (const Recording& recording : recordings) {
    const std::unique_ptr<Probe> part = found.probe->fresh();
    Probe* const probes[] = {part.get()};
    run_probes(probes, recording, std::uint64_t{256} << 20,
               [&](std::int64_t, std::int64_t tokens) { progress.update(before + tokens); });
    found.probe->merge(*part);
    before += recording.tokens();
    found.prompts += static_cast<std::int64_t>(recording.prompts().size());
  }
  progress.finish();
  found.provenance = provenance(globals);
  found.provenance["model_id"] = header.model_id;
  found.provenance["model_sha256"] = header.model_sha256;
  found.provenance["recordings"] = paths;
  return found;
}

NextTokens read_next(Forward& forward, std::span<const Prompt> prompts, SkipRun& run,
                     const std::string& what) {
  ProgressLine progress(what, "tokens", total_tokens(prompts));
  NextTokens next =
      next_tokens(forward, prompts, run, 1024,
                  [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); });
  progress.finish();
  return next;
}

// The model under skipping, for every α. Each α continues the prompts itself, and the plain model
// then reads the same tokens.
std::vector<SkipEffect> run_skipping(Forward& forward, const std::vector<Prompt>& given,
                                     const Args& args, SkipMode mode, VoidRule rule,
                                     const Globals& globals) {
  const ModelConfig& config = forward.model().config();
  std::vector<SkipEffect> effects;
  NextTokens plain;
  for (double alpha : args.alphas) {
    SkipRun run(config, {mode, alpha, rule, {}});
    std::vector<Prompt> prompts = given;
    if (args.sampling.max_new > 0) {
      generate_with_progress(forward, prompts, args.sampling, 0, globals, &run.hooks());
    }
    if (plain.best.empty() || args.sampling.max_new > 0) {
      SkipRun off(config, {SkipMode::none, alpha, rule, {}});
      plain = read_next(forward, prompts, off, "without skipping");
    }
    const NextTokens next =
        read_next(forward, prompts, run, fmt::format("skipping at alpha {}", alpha));
    SkipEffect effect;
    effect.alpha = alpha;
    effect.counts = next.counts;
    std::int64_t same = 0;
    for (std::size_t t = 0; t < next.best.size(); ++t) {
      same += next.best[t] == plain.best[t];
      if (std::isnan(next.logprob[t])) continue;
      ++effect.tokens;
      effect.loss -= next.logprob[t];
      effect.plain_loss -= plain.logprob[t];
    }
    const auto known = static_cast<double>(effect.tokens);  // 0: the losses are NaN
    effect.loss /= known;
    effect.plain_loss /= known;
    effect.agreement = static_cast<double>(same) / static_cast<double>(next.best.size());
    effects.push_back(std::move(effect));
  }
  return effects;
}

Found run_model(const Args& args, const VoidOptions& options, SkipMode mode,
                const Globals& globals) {
  OpenedSource source(args.source);
  std::vector<Prompt> prompts = load_prompts(args.prompts, source.model());
  Found found;
  found.provenance = source.provenance(globals);
  found.prompts = static_cast<std::int64_t>(prompts.size());
  if (mode != SkipMode::none) {
    found.effects = run_skipping(source.forward(), prompts, args, mode, options.rule, globals);
  }
  if (args.sampling.max_new > 0) {
    generate_with_progress(source.forward(), prompts, args.sampling, 0, globals);
  }
  found.probe = std::make_unique<VoidProbe>(source.model().config(), options);
  source.run(*found.probe, prompts, "reading");
  return found;
}

void write_effects(ResultFile& file, const Found& found, const Args& args, SkipMode mode) {
  using Names = std::vector<std::string>;
  file.group("void_skip");
  file.setting("rule", args.rule);
  file.setting("mode", std::string(skip_mode_name(mode)));
  file.setting("generated_per_prompt", args.sampling.max_new);
  VoidCounts all(static_cast<std::int64_t>(found.effects.size()),
                 found.probe->results().counts.layers);
  std::vector<double> usage, model_usage, loss, plain, agreement;
  const auto add = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  for (const SkipEffect& e : found.effects) {
    add(usage, e.counts.usages());
    add(model_usage, e.counts.model_usages());
    loss.push_back(e.loss);
    plain.push_back(e.plain_loss);
    agreement.push_back(e.agreement);
  }
  write_void_usage(file, args.alphas, all.layers, usage, model_usage);
  const Names per_alpha{"alpha"};
  file.dataset("loss", per_alpha, loss, "mean -log p of the following id with voids skipped",
               "nats");
  file.dataset("plain_loss", per_alpha, plain, "the same of the model as it is, same tokens",
               "nats");
  file.dataset("agreement", per_alpha, agreement,
               "share of tokens whose most probable next id is that of the model as it is", "");
}

int run_void(const Args& args, const Globals& globals) {
  const bool recorded = !args.source.recordings.empty();
  const SkipMode mode = parse_skip_mode(args.skip);
  if (recorded && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (recorded && mode != SkipMode::none) {
    fail_usage("--skip runs the model; give --model and prompts instead of recordings");
  }
  if (recorded && args.sampling.max_new > 0) {
    fail_usage("--generate runs the model; give --model and prompts instead of recordings");
  }
  VoidOptions options;
  options.alphas = args.alphas;
  options.rule = parse_void_rule(args.rule);
  options.keep_tokens = !args.no_tokens && !args.output.path.empty();
  check_alphas(options.alphas);
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const Found found =
      recorded ? read_recordings(args, options, globals) : run_model(args, options, mode, globals);
  const VoidCounts& counts = found.probe->results().counts;

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, found.provenance);
    file.group(found.probe->name());
    found.probe->write(file);
    if (mode != SkipMode::none) write_effects(file, found, args, mode);
    file.close();
  }
  Output out;
  if (args.json) {
    nlohmann::ordered_json json = void_json(args.alphas, options.rule, counts, found.prompts);
    if (mode != SkipMode::none) json["skip"] = skip_json(mode, found.effects);
    print_json(json, out);
  } else {
    out.write(void_text(args.alphas, options.rule, counts, found.prompts));
    if (mode != SkipMode::none) out.write(skip_text(mode, found.effects));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_void(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("void", "voids: layers that hardly change a token's norm");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--generate", args->sampling.max_new,
                   "tokens to add to every prompt first: the RG phase (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_sampling_options(*verb, args->sampling);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--alpha", args->alphas, "thresholds (default 0,0.2,0.4,0.6,0.8,1)")
      ->delimiter(',')
      ->option_text("A...");
  verb->add_option("--rule", args->rule, "l2 (default), or lac: a token halts at its first void")
      ->check(CLI::IsMember({"l2", "lac"}))
      ->option_text("RULE");
  verb->add_option("--skip", args->skip,
                   "also run with voids skipped: last-active (the last active layer is decoded) or "
                   "blocks (what void blocks add is dropped); default none")
      ->check(CLI::IsMember({"none", "last-active", "blocks"}))
      ->option_text("MODE");
  verb->add_flag("--no-tokens", args->no_tokens,
                 "no norms and decisions of single tokens in the file");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_void(*args, globals); }; });
}

}  // namespace lamina::cli
