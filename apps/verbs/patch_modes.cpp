#include "verbs/patch_modes.h"

#include "lamina/core/error.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

PatchMode trace_mode(const ModeArgs& args, Forward& forward, std::span<const Pair> pairs) {
  TraceOptions options;
  options.noise_sigmas = args.noise_sigmas;
  options.samples = args.samples;
  if (args.window > 0) options.window = args.window;
  // One σ for all pairs, also where they are traced length by length.
  options.sigma = subject_deviation(forward, pairs);
  PatchMode mode;
  mode.title = "causal tracing: noise on the subject, clean values put back";
  mode.base_name = "noised";
  mode.other_name = "clean";
  mode.direction = Direction::denoise;
  mode.sites = {"resid_post", "attn_out", "mlp_out"};
  if (forward.model().config().d_mlp == 0) mode.sites.pop_back();
  mode.by = {"layer", "position"};
  mode.settings = {{"noise", fmt::format("{} × {} (the deviation of the subjects' embeddings)",
                                         args.noise_sigmas, short_number(options.sigma))},
                   {"samples", std::to_string(options.samples)},
                   {"window", fmt::format("{} layers at attn_out and mlp_out", options.window)}};
  mode.method = {.name = "trace",
                 .does = "restored runs",
                 .exact = true,
                 .run = [options](const PatchJob& job) {
                   TraceOptions here = options;
                   here.seed = job.options.seed;
                   here.memory = job.options.memory;
                   here.progress = job.options.progress;
                   TraceResult traced =
                       trace_causes(job.forward, job.pairs, job.metric, job.nodes, here);
                   PatchResult result;
                   result.clean = std::move(traced.clean);
                   result.corrupted = std::move(traced.noised);
                   result.patched = std::move(traced.restored);
                   result.runs = traced.runs;
                   result.skipped = traced.skipped;
                   return result;
                 }};
  return mode;
}

PatchMode knockout_mode(const ModeArgs& args) {
  const std::size_t colon = args.knockout.find(':');
  if (colon == std::string::npos) {
    fail_usage("--knockout: '{}', expected FROM:TO such as subject:last", args.knockout);
  }
  KnockoutOptions options;
  options.from = PositionSet::parse(args.knockout.substr(0, colon), "--knockout");
  options.to = PositionSet::parse(args.knockout.substr(colon + 1), "--knockout");
  if (args.window > 0) options.window = args.window;
  PatchMode mode;
  mode.title = fmt::format("attention knock-out: clean prompts run, {} cannot see {}",
                           args.knockout.substr(colon + 1), args.knockout.substr(0, colon));
  mode.base_name = "clean";
  mode.direction = Direction::noise;
  mode.sites = {"attn_scores"};
  mode.by = {"layer"};
  mode.settings = {{"window", fmt::format("{} layers around each", options.window)}};
  mode.method = {.name = "knockout",
                 .does = "runs with scores set to −∞",
                 .exact = true,
                 .run = [options](const PatchJob& job) {
                   KnockoutOptions here = options;
                   here.memory = job.options.memory;
                   here.progress = job.options.progress;
                   std::vector<std::int32_t> layers;
                   for (const Node& node : job.nodes) layers.push_back(node.site.layer);
                   KnockoutResult knocked =
                       knock_out(job.forward, job.pairs, job.metric, layers, here);
                   PatchResult result;
                   result.clean = std::move(knocked.clean);
                   result.corrupted.assign(result.clean.size(), 0.0);
                   result.patched = std::move(knocked.knocked);
                   result.runs = knocked.runs;
                   result.skipped = knocked.skipped;
                   return result;
                 }};
  return mode;
}

PatchMode path_mode(const ModeArgs& args, const std::string& direction, const ModelConfig& config) {
  PathOptions options;
  options.direction = direction == "denoise" ? Direction::denoise : Direction::noise;
  options.through = args.through == "all"    ? Through::all
                    : args.through == "mlps" ? Through::mlps
                                             : Through::none;
  std::vector<Receiver> receivers;
  std::string names;
  for (const std::string& text : args.receivers) {
    receivers.push_back(parse_receiver(text, config));
    names += (names.empty() ? "" : ", ") + text;
  }
  const bool denoise = options.direction == Direction::denoise;
  PatchMode mode;
  mode.direction = options.direction;
  mode.base_name = denoise ? "corrupted" : "clean";
  mode.other_name = denoise ? "clean" : "corrupted";
  mode.title = fmt::format("path patching: {} prompts run, a sender's {} value reaches {}",
                           mode.base_name, mode.other_name, names);
  mode.sites = {"z", "mlp_out"};
  mode.by_position = false;
  if (config.d_mlp == 0) mode.sites.pop_back();
  mode.settings = {{"receivers", names},
                   {"through", args.through == "none"   ? "none: the residual stream alone"
                               : args.through == "mlps" ? "mlps: MLPs follow, attention is frozen"
                                                        : "all: everything follows"}};
  mode.method = {.name = "paths",
                 .does = "two runs for each sender",
                 .exact = true,
                 .run = [options, receivers](const PatchJob& job) {
                   PathOptions here = options;
                   here.memory = job.options.memory;
                   here.progress = job.options.progress;
                   return patch_paths(job.forward, job.pairs, job.metric, job.nodes, receivers,
                                      here);
                 }};
  return mode;
}

}  // namespace

void add_mode_options(CLI::App& verb, ModeArgs& args) {
  CLI::Option* trace = verb.add_flag(
      "--trace", args.trace,
      "causal tracing: noise on the subject's embeddings, clean states put back; default sites "
      "resid_post, attn_out, mlp_out");
  verb.add_option("--noise-sigmas", args.noise_sigmas,
                  "--trace: noise in standard deviations of the subjects' embeddings (default 3)")
      ->needs(trace)
      ->check(CLI::PositiveNumber)
      ->option_text("X");
  verb.add_option("--samples", args.samples, "--trace: noised runs of each pair (default 10)")
      ->needs(trace)
      ->check(CLI::Range(1, 1000))
      ->option_text("N");
  verb.add_option("--knockout", args.knockout,
                  "attention knock-out: positions TO cannot see FROM (subject, first, last, 4, "
                  "2-5,-1), layer by layer")
      ->option_text("FROM:TO");
  verb.add_option("--window", args.window,
                  "layers around each: --trace at attn_out and mlp_out (default 10), --knockout "
                  "(default 1)")
      ->check(CLI::Range(1, 1000))
      ->option_text("W");
  CLI::Option* receivers =
      verb.add_option("--receivers", args.receivers,
                      "path patching from senders (default z,mlp_out) to q:LAYER.HEAD, k:…, v:…, "
                      "mlp:LAYER, logits")
          ->delimiter(',')
          ->option_text("PLACES");
  verb.add_option("--through", args.through,
                  "--receivers: what lies between: none (default), mlps (follow), all")
      ->needs(receivers)
      ->check(CLI::IsMember({"none", "mlps", "all"}))
      ->option_text("WHAT");
}

std::optional<PatchMode> patch_mode(const ModeArgs& args, const std::string& direction,
                                    Forward& forward, std::span<const Pair> pairs) {
  if (args.window > 0 && !args.trace && args.knockout.empty()) {
    fail_usage("--window needs --trace or --knockout");
  }
  if (!args.any()) return std::nullopt;
  if (args.trace && !args.knockout.empty()) fail_usage("--trace excludes --knockout");
  if (!args.receivers.empty() && (args.trace || !args.knockout.empty())) {
    fail_usage("--receivers excludes {}", args.trace ? "--trace" : "--knockout");
  }
  if (!args.receivers.empty()) return path_mode(args, direction, forward.model().config());
  if (!direction.empty()) {
    fail_usage("--direction: {} has one direction", args.trace ? "--trace" : "--knockout");
  }
  return args.trace ? trace_mode(args, forward, pairs) : knockout_mode(args);
}

}  // namespace lamina::cli
