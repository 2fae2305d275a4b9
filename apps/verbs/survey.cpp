// lamina survey: every analysis that applies to a model, in one pass; the page to read first.

#include "lamina/probes/survey.h"

#include <algorithm>

#include "inputs.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "verbs/info.h"
#include "verbs/survey_page.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PromptInputs prompts;
  OutputOptions output;
  SurveyOptions options;
  std::int64_t exit_tokens = SurveyOptions::kExitTokens;
  std::int64_t gradient_tokens = 1024;
  bool json = false;
};

// Gradients cost three passes: the first prompts only, whole ones, at least one.
std::optional<InflectionResults> measure_gradients(Forward& forward,
                                                   std::span<const Prompt> prompts,
                                                   std::int64_t most) {
  const ModelConfig& config = forward.model().config();
  if (most == 0 || !config.causal || config.head != Head::language) return std::nullopt;
  std::size_t count = 0;
  std::int64_t tokens = 0;
  while (count < prompts.size()) {
    const auto length = static_cast<std::int64_t>(prompts[count].ids.size());
    if (count > 0 && tokens + length > most) break;
    tokens += length;
    ++count;
  }
  if (tokens < 2 * static_cast<std::int64_t>(count)) return std::nullopt;  // nothing to predict
  InflectionOptions options;
  options.loss = InflectionLoss::next_token;
  ProgressLine progress("gradients", "tokens", tokens);
  options.progress = [&](std::int64_t, std::int64_t done) { progress.update(done); };
  Forward* const models[] = {&forward};
  InflectionResults results = measure_inflection(models, prompts.first(count), options);
  progress.finish();
  return results;
}

int run_survey(Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const Model model = load_model(args.model);
  args.prompts.piece = std::min(args.prompts.piece, model.config().n_ctx);
  const std::vector<Prompt> prompts = load_prompts(args.prompts, model);
  args.options.exit_every =
      args.exit_tokens == 0 ? 0
                            : std::max<std::int64_t>(1, total_tokens(prompts) / args.exit_tokens);
  Forward forward(model);
  Survey survey(forward, args.options);
  {
    ProgressLine progress("surveying", "tokens", total_tokens(prompts));
    LiveOptions options;
    options.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
    survey.run(prompts, options);
    progress.finish();
  }
  SurveyFindings findings{model,
                          survey,
                          static_cast<std::int64_t>(prompts.size()),
                          total_tokens(prompts),
                          0,
                          measure_gradients(forward, prompts, args.gradient_tokens)};
  for (const Prompt& prompt : prompts) {
    findings.longest = std::max(findings.longest, static_cast<std::int64_t>(prompt.ids.size()));
  }

  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    survey.write(file);
    if (findings.gradients) {
      file.group("inflection");
      write_inflection(file, *findings.gradients, {});
    }
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(survey_json(findings), out);
  } else {
    out.write(survey_page(findings));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_survey(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  args->prompts.piece = 512;
  CLI::App* verb = app.add_subcommand(
      "survey", "every analysis that applies, in one pass: the page to read first");
  verb->group("Read");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--piece", args->prompts.piece,
                   "cut longer prompts into pieces of this many tokens (default 512, at most the "
                   "model's context)")
      ->check(CLI::Range(2, 1 << 30))
      ->option_text("N");
  verb->add_option("--skip", args->options.skip,
                   "first tokens of every prompt that contributions, angles, coding rate and CKA "
                   "leave out (default 1 [ours])")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--exit-tokens", args->exit_tokens,
                   "decode about this many tokens at every layer (default 250 [ours]; 0: none)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--coding-every", args->options.coding_every,
                   "one token in N enters the coding rate (default 4 [ours])")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb->add_option("--minibatch", args->options.minibatch,
                   "rows of a minibatch of the CKA (default 256 [ours])")
      ->check(CLI::Range(4, 1 << 16))
      ->option_text("N");
  verb->add_option("--gradient-tokens", args->gradient_tokens,
                   "gradients over the first prompts with up to this many tokens (default 1024 "
                   "[ours]; 0: none)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_output_options(*verb, args->output, "write all results to this HDF5 file");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_survey(*args, globals); };
  });
}

}  // namespace lamina::cli
