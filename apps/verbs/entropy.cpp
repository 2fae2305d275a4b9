// lamina entropy: how concentrated attention is, what it rests on, and how large things get.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "verbs/entropy_tables.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  std::vector<std::string> parts;
  AttentionOptions attention;
  MassiveOptions massive;
  OutputStatsOptions logits;
  std::int64_t show = 10;
  bool json = false;
};

// Why a part cannot be run here; empty if it can.
std::string obstacle(const Probe& probe, const OpenedSource& source) {
  for (const Recording& recording : source.recordings()) {
    for (const Site site : probe.sites(source.model().config())) {
      if (recording.has(site)) continue;
      const std::string name = site_name(site);
      return fmt::format("{}: {} needs {}, which was not recorded (record with --sites {})",
                         recording.path().string(), probe.name(), name,
                         name.substr(name.rfind("hook_") + 5));
    }
  }
  return "";
}

// A part that cannot be run is an error if it was asked for, and left out with a line if not.
bool usable(const std::string& why_not, bool asked) {
  if (why_not.empty()) return true;
  if (asked) fail("{}", why_not);
  info("left out: {}", why_not);
  return false;
}

int run_entropy(Args& args, const Globals& globals) {
  if (!args.source.recordings.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const bool all = args.parts.empty();
  const auto asked = [&](const char* part) {
    return std::find(args.parts.begin(), args.parts.end(), part) != args.parts.end();
  };
  OpenedSource source(args.source);
  const ModelConfig& config = source.model().config();
  const std::unique_ptr<Readout> readout = model_readout(source.forward());

  std::vector<std::unique_ptr<Probe>> owned;
  std::vector<Probe*> probes;
  EntropyParts parts;
  if (all || asked("attention")) {
    args.attention.source = source.live()
                                ? live_attention_source(config)
                                : recorded_attention_source(config, source.recordings().front());
    auto probe = std::make_unique<AttentionProbe>(config, args.attention);
    if (usable(obstacle(*probe, source), true)) parts.attention = probe.get();
    owned.push_back(std::move(probe));
  }
  if (all || asked("massive")) {
    auto probe = std::make_unique<MassiveProbe>(config, args.massive);
    if (usable(obstacle(*probe, source), !all)) {
      parts.massive = probe.get();
      owned.push_back(std::move(probe));
    }
  }
  if (all || asked("output")) {
    if (config.head != Head::language) {
      usable(fmt::format("output: this {} model has no language head", config.family), !all);
    } else {
      auto probe = std::make_unique<OutputProbe>(config, *readout, args.logits);
      if (usable(obstacle(*probe, source), !all)) {
        parts.output = probe.get();
        owned.push_back(std::move(probe));
      }
    }
  }
  for (const auto& probe : owned) probes.push_back(probe.get());
  const std::vector<Prompt> prompts =
      source.live() ? load_prompts(args.prompts, source.model()) : std::vector<Prompt>();
  source.run(probes, prompts, "reading");

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    for (const Probe* probe : probes) {
      file.group(probe->name());
      probe->write(file);
    }
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(entropy_json(parts, source.model().tokenizer()), out);
  } else {
    out.write(entropy_text(parts, source.model().tokenizer(), args.show));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_entropy(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand(
      "entropy", "attention entropy and sinks, massive activations, output logits");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--parts", args->parts,
                   "attention, massive, output (default: all that the recording allows)")
      ->delimiter(',')
      ->check(CLI::IsMember({"attention", "massive", "output"}))
      ->option_text("PART...");
  const auto share = [&](const char* name, double& value, const char* text) {
    verb->add_option(name, value, text)->option_text("SHARE");
  };
  share("--collapse", args->attention.collapse,
        "a query is collapsed up to this share of log(visible keys) (default 0.1 [ours])");
  share("--overload", args->attention.overload,
        "and overloaded from this share on (default 0.9 [ours])");
  share("--state-share", args->attention.state_share,
        "queries in a state that name a head after it (default 0.5 [ours])");
  share("--sink", args->attention.sink,
        "attention on position 0 that makes a sink head, on the token before a previous-token "
        "head, … (default 0.3)");
  verb->add_option("--bin-width", args->attention.bin_width,
                   "query positions in a bin of the profile (default 0: bins double [ours])")
      ->option_text("N");
  verb->add_option("--first-keys", args->attention.first_keys,
                   "key positions kept one by one (default 8)")
      ->option_text("N");
  verb->add_option("--strong-keys", args->attention.strongest,
                   "keys behind position 0 to list (default 10)")
      ->option_text("N");
  verb->add_option("--least", args->massive.least, "massive: |a| above this (default 100)")
      ->option_text("A");
  verb->add_option("--ratio", args->massive.ratio,
                   "and above this × the median of |a| of the prompt's layer (default 1000)")
      ->option_text("R");
  verb->add_option("--list", args->massive.strongest,
                   "massive activations to keep one by one (default 100)")
      ->option_text("N");
  verb->add_option("--every", args->logits.every,
                   "output: read every N-th position of a prompt (default 1)")
      ->option_text("N");
  verb->add_option("--show", args->show, "entries of every list to print (default 10)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_entropy(*args, globals); };
  });
}

}  // namespace lamina::cli
