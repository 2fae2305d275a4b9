// lamina generate: continues prompts.

#include <memory>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string ids_text(std::span<const std::int32_t> ids) {
  std::string text;
  for (std::int32_t id : ids) text += fmt::format("{}{}", text.empty() ? "" : " ", id);
  return text;
}

// What the new tokens add to the text. Decoders treat a text's first token apart (a leading blank),
// so the difference of two decodings is not the decoding of the new tokens.
std::string continuation_text(const Tokenizer& tokenizer, const Prompt& prompt) {
  const auto given = static_cast<std::size_t>(prompt.given);
  const std::string before = tokenizer.decode(std::span(prompt.ids).first(given));
  const std::string whole = tokenizer.decode(prompt.ids);
  if (whole.starts_with(before)) return whole.substr(before.size());
  return tokenizer.decode(std::span(prompt.ids).subspan(given));
}

void print_prompt(const Prompt& prompt, const Tokenizer* tokenizer, bool json, Output& out) {
  const auto given = static_cast<std::size_t>(prompt.given);
  const std::span<const std::int32_t> made = std::span(prompt.ids).subspan(given);
  const std::string continuation =
      tokenizer != nullptr ? continuation_text(*tokenizer, prompt) : ids_text(made);
  if (!json) {
    const std::string start =
        prompt.text.empty() ? ids_text(std::span(prompt.ids).first(given)) + " " : prompt.text;
    out.print("{}{}\n", start, styled(Style::note, continuation));
    return;
  }
  Json line;
  line["id"] = prompt.id;
  if (!prompt.text.empty()) line["text"] = prompt.text;
  line["ids"] = prompt.ids;
  line["given"] = prompt.given;
  if (tokenizer != nullptr) line["continuation"] = continuation;
  out.write(line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace

void register_generate(CLI::App& app, Globals& globals) {
  struct Args {
    std::string model;
    PromptInputs prompts;
    OutputOptions output;
    Sampling sampling{32, 0.0, 1.0};
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("generate", "continue prompts");
  verb->group("Record");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--max-new", args->sampling.max_new, "tokens to add at most (default 32)")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  add_sampling_options(*verb, args->sampling);
  add_output_options(*verb, args->output, "write to FILE instead of standard output");
  verb->add_flag("--json", args->json, "print one JSON object a prompt");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] {
      Output out(args->output.path, args->output.force);
      const Model model = load_model(args->model);
      std::vector<Prompt> prompts = load_prompts(args->prompts, model);
      Forward forward(model);
      generate_with_progress(forward, prompts, args->sampling, 0, globals);
      for (const Prompt& prompt : prompts) print_prompt(prompt, model.tokenizer(), args->json, out);
      out.close();
      return 0;
    };
  });
}

}  // namespace lamina::cli
