// lamina ablate: what happens without some layers, with repeated ones, or in another order.

#include "verbs/ablate.h"

#include <algorithm>
#include <array>

#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

// Options that only some methods read.
constexpr std::array<std::pair<const char*, const char*>, 15> kOptionMethods = {
    {{"--remove", "finercut"},
     {"--max-distance", "finercut"},
     {"--removed", "finercut"},
     {"--two-sided", "importance"},
     {"--path", "path"},
     {"--simulations", "search"},
     {"--edits", "search"},
     {"--block", "search"},
     {"--repeats", "search"},
     {"--cost", "search"},
     {"--explore", "search"},
     {"--sublayers", "search"},
     {"--show", "search"},
     {"--distance", "finercut importance path"},
     {"--positions", "finercut importance path"}}};

void check_options(const CLI::App& verb, const std::string& method) {
  for (const auto& [option, methods] : kOptionMethods) {
    if (verb.get_option(option)->count() == 0) continue;
    if (std::string(methods).find(method) != std::string::npos) continue;
    fail_usage("{} does not go with --method {}", option, method);
  }
}

int run_ablate(const CLI::App& verb, AblateArgs& args, const Globals& globals) {
  if (args.method.empty()) args.method = args.paths.empty() ? "finercut" : "path";
  check_options(verb, args.method);
  if (args.method == "path" && args.paths.empty()) {
    fail_usage("--method path needs --path, such as --path 0-5,7,7,9a,10m");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  Ablation run(args, globals);
  const std::string text = args.method == "finercut"     ? ablate_finercut(run)
                           : args.method == "importance" ? ablate_importance(run)
                           : args.method == "path"       ? ablate_paths(run)
                                                         : ablate_search(run);
  Output out;
  out.write(text);
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

CLI::Option* number(CLI::App& verb, const char* name, std::int64_t& value, std::int64_t least,
                    std::int64_t most, const std::string& what) {
  return verb.add_option(name, value, fmt::format("{} (default {})", what, value))
      ->check(CLI::Range(least, most))
      ->option_text("N");
}

void add_search_options(CLI::App& verb, AblateArgs& args) {
  constexpr std::int64_t kMany = 1'000'000'000;
  number(verb, "--simulations", args.simulations, 0, kMany, "search: paths tried per prompt");
  number(verb, "--edits", args.edits, 0, 1000, "search: most edits of a path");
  number(verb, "--block", args.block, 1, 1000,
         "search: most neighbouring steps that an edit takes");
  number(verb, "--repeats", args.repeats, 0, 1000,
         "search: most times an edit repeats them, 0 to skip only");
  verb.add_option("--cost", args.cost,
                  fmt::format("search: reward = quality - cost x layers (default {})", args.cost))
      ->option_text("X");
  verb.add_option("--explore", args.explore,
                  fmt::format("search: weight of what was seldom tried (default {})", args.explore))
      ->check(CLI::NonNegativeNumber)
      ->option_text("X");
  verb.add_flag("--sublayers", args.sublayers,
                "search: skip and repeat sublayers instead of layers");
  verb.add_option("--show", args.show,
                  fmt::format("search: prompts to print in full (default {})", args.show))
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
}

}  // namespace

void register_ablate(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<AblateArgs>();
  CLI::App* verb = app.add_subcommand(
      "ablate", "remove, repeat and reorder layers; importance, and search for better paths");
  verb->group("Intervene");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->option_text("MODEL")
      ->required();
  add_prompt_options(*verb, args->prompts);
  CLI::Option* pairs = verb->add_option("--pairs", args->pairs.file,
                                        "judge by the clean prompts of these pairs instead")
                           ->option_text("FILE");
  for (const char* other : {"--prompts", "--text"}) pairs->excludes(verb->get_option(other));
  verb->add_option("--metric", args->pairs.metric,
                   "pairs: logit_diff (default), prob_diff, logprob, nll, kl (to the whole model)")
      ->option_text("METRIC")
      ->needs(pairs);
  verb->add_flag("--solved-only", args->pairs.solved_only,
                 "pairs: only those whose clean prompt the model answers correctly")
      ->needs(pairs);
  verb->add_option("--limit", args->pairs.limit, "use the first N prompts or (solved) pairs")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb->add_option("--method", args->method,
                   "finercut (default): remove sublayers greedily; importance: a table of the "
                   "layers; path: run --path; search: look for a better path for each prompt")
      ->check(CLI::IsMember({"finercut", "importance", "path", "search"}))
      ->option_text("NAME");
  verb->add_option("--positions", args->positions, "tokens judged: all (default) or last")
      ->check(CLI::IsMember({"all", "last"}))
      ->option_text("WHICH");
  verb->add_option("--distance", args->distance,
                   "from the whole model's logits: angular (default), norm, kl or js")
      ->check(CLI::IsMember({"angular", "norm", "kl", "js"}))
      ->option_text("NAME");
  verb->add_option("--remove", args->remove,
                   "finercut: sublayers to remove (default: half of them)")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1000000}))
      ->option_text("N");
  verb->add_option("--max-distance", args->max_distance,
                   "finercut: stop before the distance exceeds this")
      ->check(CLI::NonNegativeNumber)
      ->option_text("X");
  verb->add_option("--removed", args->removed,
                   "finercut: sublayers removed beforehand, such as 12a,3m")
      ->option_text("LIST");
  verb->add_flag("--two-sided", args->two_sided, "importance: ZD counts |z| > 1 instead of z > 1");
  verb->add_option("--path", args->paths,
                   "path: layers to run, such as 0-5,7,7,9a,10m: a for attention alone, m for MLP "
                   "alone, 10-12*2 twice")
      ->option_text("LAYERS...");
  add_search_options(*verb, *args);
  verb->add_option("--memory", args->memory,
                   "memory beyond the weights: bytes, or with K, M, G (default 1G)")
      ->option_text("SIZE");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, verb, &globals] {
    globals.action = [args, verb, &globals] { return run_ablate(*verb, *args, globals); };
  });
}

}  // namespace lamina::cli
