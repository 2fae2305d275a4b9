// lamina tune: trains the affine maps of a tuned lens.

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/probes/tuned_lens.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  std::vector<std::string> sites;
  std::string positions = "all";
  TunedLensOptions training;
  bool json = false;
};

std::string table_text(const TunedLensTrainer& trainer) {
  const TunedLensReport& r = trainer.report();
  Table table({"layer", ">plain", ">tuned"});
  for (std::size_t s = 0; s < trainer.trained_sites().size(); ++s) {
    table.row({lens_label(trainer.trained_sites()[s]), short_number(r.plain[s]),
               short_number(r.tuned[s])});
  }
  return fmt::format(
      "trained on {} tokens of {} prompts\n"
      "KL(final ‖ layer) in nats, mean over {} tokens of {} held-out prompts:\n{}",
      grouped(r.tokens), grouped(r.prompts), grouped(r.held_out_tokens),
      grouped(r.held_out_prompts), table.text(2));
}

nlohmann::ordered_json report_json(const TunedLensTrainer& trainer, double seconds) {
  const TunedLensReport& r = trainer.report();
  const std::size_t sites = trainer.trained_sites().size();
  nlohmann::ordered_json json = {{"prompts", r.prompts},
                                 {"tokens", r.tokens},
                                 {"held_out_prompts", r.held_out_prompts},
                                 {"held_out_tokens", r.held_out_tokens},
                                 {"seconds", seconds}};
  for (std::size_t s = 0; s < sites; ++s) {
    json["layers"].push_back({{"layer", lens_label(trainer.trained_sites()[s])},
                              {"site", site_name(trainer.trained_sites()[s])},
                              {"plain", r.plain[s]},
                              {"tuned", r.tuned[s]},
                              {"first_loss", r.loss[s]},
                              {"last_loss", r.loss[r.loss.size() - sites + s]}});
  }
  return json;
}

int run_tune(Args& args, const Globals& globals) {
  if (!args.source.recordings.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  check_writable(args.output.path, args.output.force);
  LensOptions which;
  parse_positions(args.positions, which);
  TunedLensOptions& options = args.training;
  options.positions = which.positions;
  options.position_list = which.position_list;
  options.seed = globals.seed;
  OpenedSource source(args.source);
  const ModelConfig& config = source.model().config();
  if (!args.sites.empty()) options.sites = match_sites(args.sites, config);
  const std::vector<Prompt> prompts =
      source.live() ? load_prompts(args.prompts, source.model()) : std::vector<Prompt>();
  const std::unique_ptr<Readout> readout = model_readout(source.forward());
  TunedLensTrainer trainer(config, *readout, options);
  source.run(trainer, prompts, "reading");

  const auto start = std::chrono::steady_clock::now();
  ProgressLine progress("training", "steps", options.steps);
  trainer.train([&](std::int64_t step, double) { progress.update(step); });
  progress.finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  auto metadata = source.provenance(globals);
  metadata["steps"] = std::to_string(options.steps);
  metadata["batch"] = std::to_string(options.batch);
  metadata["learning_rate"] = fmt::format("{}", options.learning_rate);
  metadata["weight_decay"] = fmt::format("{}", options.weight_decay);
  metadata["positions"] = args.positions;
  metadata["optimizer"] = fmt::format("Adam, beta1 {}, beta2 {}, epsilon {}, linear decay",
                                      options.beta1, options.beta2, options.epsilon);
  write_translators(args.output.path, trainer.translators(), metadata);
  Output out;
  if (args.json) {
    print_json(report_json(trainer, seconds), out);
  } else {
    out.write(table_text(trainer));
  }
  out.close();
  info("wrote {}; read with it: lamina lens --translators {}", args.output.path,
       quoted_word(args.output.path));
  return 0;
}

}  // namespace

void register_tune(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("tune", "train a tuned lens: an affine map per layer");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "the translators to write, a safetensors file");
  verb->get_option("--output")->required();
  verb->add_option("--sites", args->sites,
                   "residual places to train (default: resid_pre:0 and every resid_post but the "
                   "last)")
      ->delimiter(',')
      ->option_text("GLOB...");
  verb->add_option("--positions", args->positions,
                   "tokens to train on: all (default), last, or a list such as 0,5,-1")
      ->option_text("WHICH");
  TunedLensOptions& training = args->training;
  verb->add_option("--steps", training.steps,
                   fmt::format("optimiser steps (default {})", training.steps))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->option_text("N");
  verb->add_option("--batch", training.batch,
                   fmt::format("tokens a step (default {})", training.batch))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->option_text("N");
  verb->add_option("--lr", training.learning_rate,
                   fmt::format("Adam's learning rate, falling to 0 along a line (default {})",
                               training.learning_rate))
      ->option_text("RATE");
  verb->add_option("--weight-decay", training.weight_decay,
                   "pull of the maps towards zero, times the learning rate (default 0)")
      ->option_text("W");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_tune(*args, globals); }; });
}

}  // namespace lamina::cli
