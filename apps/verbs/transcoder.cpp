// lamina transcoder: training, evaluation and inspection of dictionaries of features.

#include "verbs/transcoder.h"

#include "verbs/verbs.h"

namespace lamina::cli {

void register_transcoder(CLI::App& app, Globals& globals) {
  CLI::App* verb = app.add_subcommand(
      "transcoder", "dictionaries of features: transcoders and sparse autoencoders");
  verb->group("Explain");
  verb->require_subcommand(1);
  register_transcoder_train(*verb, globals);
}

}  // namespace lamina::cli
