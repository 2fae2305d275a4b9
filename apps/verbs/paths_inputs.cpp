// lamina paths: what is connected to a feature or a logit, by weights alone and on a prompt.

#include "verbs/paths_inputs.h"

#include <fmt/format.h>

#include "paths.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {

void add_paths_inputs(CLI::App& verb, PathsInputs& inputs) {
  verb.add_option("model", inputs.model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  verb.add_option("--transcoders,--transcoder", inputs.transcoders,
                  "one a layer: a folder or file as SAELens or circuit-tracer write it")
      ->required()
      ->option_text("PATH");
  verb.add_flag("--other-model", inputs.other_model,
                "use transcoders that name another model than this");
}

TranscoderSet open_dictionaries(const PathsInputs& inputs, const Model& model) {
  TranscoderSet set = TranscoderSet::open(resolve_dictionaries(inputs.transcoders));
  set.bind(model, inputs.other_model);
  return set;
}

std::string token_text(const Tokenizer* tokenizer, std::int64_t id) {
  if (tokenizer == nullptr || id < 0 || id >= tokenizer->vocab_size())
    return fmt::format("#{}", id);
  return quoted_piece(tokenizer->piece(static_cast<std::int32_t>(id)));
}

void register_paths(CLI::App& app, Globals& globals) {
  CLI::App* verb =
      app.add_subcommand("paths", "what makes a feature or a logit: by weights, on a prompt");
  verb->group("Explain");
  verb->require_subcommand(1);
  register_paths_weights(*verb, globals);
  register_paths_find(*verb, globals);
  register_paths_contexts(*verb, globals);
}

}  // namespace lamina::cli
