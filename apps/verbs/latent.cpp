// lamina latent: which language a model thinks in.

#include "lamina/probes/latent.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
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
  OutputOptions output;
  std::string words;
  std::string kind = "translation";
  std::string byte_tokens = "nonascii";
  std::string save_prompts;
  LatentTaskOptions task;
  std::vector<std::string> sites;
  bool no_energy = false;
  bool whole_words = false;
  bool json = false;
};

LatentTaskOptions task_options(const Args& args, const Globals& globals) {
  LatentTaskOptions options = args.task;
  options.kind = args.kind == "cloze"        ? LatentKind::cloze
                 : args.kind == "repetition" ? LatentKind::repetition
                                             : LatentKind::translation;
  options.byte_tokens = args.byte_tokens == "authors" ? ByteTokens::authors
                        : args.byte_tokens == "none"  ? ByteTokens::none
                                                      : ByteTokens::nonascii;
  options.seed = globals.seed;
  return options;
}

// The task's prompts as a file for `lamina record --prompts`.
void save_prompts(const LatentTask& task, const std::string& path, bool force) {
  Output out(path, force);
  for (const LatentItem& item : task.items) {
    nlohmann::ordered_json line;
    line["id"] = item.prompt.id;
    line["text"] = item.prompt.text;
    if (item.prompt.target) line["target"] = *item.prompt.target;
    line["labels"] = item.prompt.labels;
    out.write(line.dump() + "\n");
  }
  out.close();
}

// A tokenizer that splits at blanks only makes `"chat"` one unknown word; the numbers would then
// mean nothing.
void warn_of_unknown_words(std::span<const Prompt> prompts, const Tokenizer& tokenizer,
                           bool spaced) {
  const auto unknown = [&](std::int32_t id) {
    return tokenizer.is_special(id) && id != tokenizer.bos_id() && id != tokenizer.eos_id();
  };
  const auto count = std::count_if(prompts.begin(), prompts.end(), [&](const Prompt& prompt) {
    return std::any_of(prompt.ids.begin(), prompt.ids.end(), unknown);
  });
  if (count == 0) return;
  warn("{} of {} prompts hold words that the tokenizer does not know{}", count, prompts.size(),
       spaced ? "" : "; if it splits at blanks only, use --spaced");
}

int run_latent(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  OpenedSource source(args.source);
  const Model& model = source.model();
  if (model.tokenizer() == nullptr)
    fail("{}: the model has no tokenizer, which words need", model.id());
  const std::string words =
      !args.words.empty()
          ? args.words
          : (data_folder() / "words" / (args.kind == "cloze" ? "cloze.json" : "concepts.json"))
                .string();
  const auto task = std::make_shared<const LatentTask>(
      make_latent_task(read_word_list(words), *model.tokenizer(), task_options(args, globals)));
  if (!args.save_prompts.empty()) {
    save_prompts(*task, args.save_prompts, args.output.force);
    info("wrote {}: {} prompts", args.save_prompts, task->items.size());
    return 0;
  }
  warn_of_unknown_words(task->prompts(), *model.tokenizer(), args.task.spaced);

  LatentOptions options;
  options.energy = !args.no_energy;
  if (!args.sites.empty()) options.sites = match_sites(args.sites, model.config());
  const std::unique_ptr<Readout> readout = model_readout(source.forward());
  LatentLanguage latent(model.config(), *readout, task, options);
  source.run(latent, task->prompts(), "reading");
  if (latent.results().items() == 0) {
    fail(
        "no prompt of the recording belongs to this task; record the prompts of --save-prompts, "
        "and "
        "give the same options and --seed");
  }
  std::optional<WordProbability> whole;
  if (args.whole_words) {
    whole.emplace(model.config(), *readout, task, options);
    const std::vector<Prompt> prompts = word_prompts(*task, *model.tokenizer());
    source.run(*whole, prompts, "whole words");
  }

  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group(latent.name());
    latent.write(file);
    if (whole) {
      file.group(whole->name());
      whole->write(file);
    }
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(latent_json(*task, latent.results()), out);
  } else {
    out.write(latent_text(*task, latent.results()));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_latent(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("latent", "latent language: which language each layer prefers");
  verb->group("Read");
  add_source_options(*verb, args->source);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--words", args->words, "word list (default: the one that ships with lamina)")
      ->option_text("FILE");
  verb->add_option("--kind", args->kind, "translation (default), repetition or cloze")
      ->check(CLI::IsMember({"translation", "repetition", "cloze"}))
      ->option_text("KIND");
  verb->add_option("--from", args->task.from, "language prompted with (default fr)")
      ->option_text("LANG");
  verb->add_option("--to", args->task.to, "language asked for (default zh)")->option_text("LANG");
  verb->add_option("--pivot", args->task.pivot,
                   "language the answers must differ from (default en)")
      ->option_text("LANG");
  verb->add_option("--languages", args->task.languages,
                   "languages to score side by side (default: to, pivot, from)")
      ->delimiter(',')
      ->option_text("LANG...");
  verb->add_option("--shots", args->task.shots, "examples in a prompt (default 4, cloze 2)")
      ->check(CLI::Range(0, 1000))
      ->option_text("N");
  verb->add_option("--byte-tokens", args->byte_tokens,
                   "whose words get their first byte's token: nonascii (default), authors, none")
      ->check(CLI::IsMember({"nonascii", "authors", "none"}))
      ->option_text("RULE");
  verb->add_flag("--all-forms", args->task.all_forms,
                 "count every form of a word, not only the first");
  verb->add_flag("--distinct", args->task.distinct,
                 "drop items where any two languages share a token");
  verb->add_flag("--spaced", args->task.spaced,
                 "blanks around punctuation, for tokenizers that split at blanks only");
  verb->add_option("--sites", args->sites,
                   "residual places to read (default: resid_pre:0 resid_post)")
      ->delimiter(',')
      ->option_text("GLOB...");
  verb->add_flag("--no-energy", args->no_energy, "leave out the token energy");
  verb->add_flag("--whole-words", args->whole_words,
                 "also the probability of whole words, teacher-forced (with --model only)");
  verb->add_option("--save-prompts", args->save_prompts,
                   "write the task's prompts to this .jsonl file, for record, and stop")
      ->option_text("FILE");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] {
      if (args->whole_words && !args->source.recordings.empty()) {
        fail_usage("--whole-words runs prompts of its own; give --model without recordings");
      }
      return run_latent(*args, globals);
    };
  });
}

}  // namespace lamina::cli
