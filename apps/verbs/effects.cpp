// lamina effects: skipped layers, erased tokens, block Jacobians.

#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "verbs/depth_effects.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PromptInputs prompts;
  OutputOptions output;
  DepthEffectsOptions options;
  bool json = false;
};

int run_effects(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const Model model = load_model(args.model);
  const std::vector<Prompt> prompts =
      with_answers(load_prompts(args.prompts, model), args.options.answer, model.tokenizer());
  Forward forward(model);
  const DepthEffects effects = run_depth_effects(forward, prompts, args.options, globals);
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_depth_effects(file, effects, prompts);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(depth_effects_json(effects, prompts), out);
  } else {
    out.write(depth_effects_text(effects, prompts, args.options, model.tokenizer()));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_effects(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand(
      "effects", "what skipping a layer changes later, and until when a token is needed");
  verb->group("Read");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  add_depth_effects_options(*verb, args->options);
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_effects(*args, globals); };
  });
}

}  // namespace lamina::cli
