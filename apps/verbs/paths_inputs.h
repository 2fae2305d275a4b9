#pragma once

#include <CLI/App.hpp>
#include <string>

#include "globals.h"
#include "inputs.h"
#include "lamina/circuits/transcoder_file.h"

// The parts of `lamina paths`: one function per verb below it.
namespace lamina::cli {

void register_paths_weights(CLI::App& paths, Globals& globals);
void register_paths_find(CLI::App& paths, Globals& globals);
void register_paths_contexts(CLI::App& paths, Globals& globals);

/// MODEL --transcoders PATH, and the set bound to the model.
struct PathsInputs {
  std::string model, transcoders;
  bool other_model = false;
};
void add_paths_inputs(CLI::App& verb, PathsInputs& inputs);
TranscoderSet open_dictionaries(const PathsInputs& inputs, const Model& model);

/// A token as a reader sees it, its number if there is no tokenizer.
std::string token_text(const Tokenizer* tokenizer, std::int64_t id);

}  // namespace lamina::cli
