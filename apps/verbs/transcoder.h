#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "globals.h"
#include "lamina/circuits/transcoder_file.h"

// The parts of `lamina transcoder`: one function per verb below it.
namespace lamina::cli {

void register_transcoder_train(CLI::App& transcoder, Globals& globals);
void register_transcoder_eval(CLI::App& transcoder, Globals& globals);
void register_transcoder_keep(CLI::App& transcoder, Globals& globals);
void register_transcoder_info(CLI::App& transcoder, Globals& globals);

/// What a dictionary file may leave open, as options.
struct DictionaryInputs {
  std::vector<std::string> paths;
  std::string input_hook, output_hook, activation, norm_weights;
  std::int64_t k = 0;
  double input_scale = 0;
  bool other_model = false;
};
void add_dictionary_options(CLI::App& verb, DictionaryInputs& inputs);
DictionaryReadOptions read_options(const DictionaryInputs& inputs);

}  // namespace lamina::cli
