// lamina lens: what each layer would answer.

#include "lamina/probes/lens.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/lens_tables.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  std::vector<std::string> sites;
  std::string positions = "last";
  std::int64_t top_k = 10;
  std::int64_t overlap_k = 5;
  std::string translators;
  std::int64_t show = 5;
  bool json = false;
};

int run_lens(const Args& args, const Globals& globals) {
  if (!args.source.recordings.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  LensOptions options;
  parse_positions(args.positions, options);
  OpenedSource source(args.source);
  const ModelConfig& config = source.model().config();
  options.top_k = args.top_k;
  options.overlap_k = args.overlap_k;
  if (!args.sites.empty()) options.sites = match_sites(args.sites, config);
  if (!args.translators.empty()) {
    options.translators =
        std::make_shared<const LensTranslators>(read_translators(args.translators, config));
  }
  const std::vector<Prompt> prompts =
      source.live() ? load_prompts(args.prompts, source.model()) : std::vector<Prompt>();

  const std::unique_ptr<Readout> readout = model_readout(source.forward());
  LogitLens lens(config, *readout, options, source.model().tokenizer());
  source.run(lens, prompts, "reading");

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group(lens.name());
    lens.write(file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(lens_json(lens.results(), source.model().tokenizer()), out);
  } else {
    out.write(lens_text(lens.results(), source.model().tokenizer(), args.show));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_lens(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("lens", "logit lens: what each layer would answer");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--sites", args->sites,
                   "residual places to read (default: resid_pre:0 resid_post)")
      ->delimiter(',')
      ->option_text("GLOB...");
  verb->add_option("--positions", args->positions,
                   "tokens to read: last (default), all, or a list such as 0,5,-1")
      ->option_text("WHICH");
  verb->add_option("--top-k", args->top_k, "most likely tokens to keep (default 10)")
      ->check(CLI::Range(1, 100000))
      ->option_text("K");
  verb->add_option("--overlap-k", args->overlap_k,
                   "tokens in the overlap with the final answer (default 5)")
      ->check(CLI::Range(1, 100000))
      ->option_text("K");
  verb->add_option("--translators", args->translators,
                   "tuned lens: safetensors file with an affine map per site")
      ->option_text("FILE");
  verb->add_option("--show", args->show, "prompts to print in full (default 5)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_lens(*args, globals); }; });
}

}  // namespace lamina::cli
