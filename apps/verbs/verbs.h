#pragma once

#include <CLI/App.hpp>

#include "globals.h"

// One function per verb: adds its options to the program and, when the verb is typed, sets
// Globals::action.
namespace lamina::cli {

void register_info(CLI::App& app, Globals& globals);
void register_verify(CLI::App& app, Globals& globals);
void register_diff(CLI::App& app, Globals& globals);
void register_demo(CLI::App& app, Globals& globals);
void register_record(CLI::App& app, Globals& globals);
void register_merge(CLI::App& app, Globals& globals);
void register_generate(CLI::App& app, Globals& globals);
void register_tokenize(CLI::App& app, Globals& globals);
void register_survey(CLI::App& app, Globals& globals);
void register_lens(CLI::App& app, Globals& globals);
void register_tune(CLI::App& app, Globals& globals);
void register_latent(CLI::App& app, Globals& globals);
void register_inflection(CLI::App& app, Globals& globals);
void register_entropy(CLI::App& app, Globals& globals);
void register_depth(CLI::App& app, Globals& globals);
void register_effects(CLI::App& app, Globals& globals);
void register_probe(CLI::App& app, Globals& globals);
void register_clue(CLI::App& app, Globals& globals);
void register_infoplane(CLI::App& app, Globals& globals);
void register_cka(CLI::App& app, Globals& globals);
void register_void(CLI::App& app, Globals& globals);
void register_eval(CLI::App& app, Globals& globals);
void register_pairs(CLI::App& app, Globals& globals);
void register_patch(CLI::App& app, Globals& globals);
void register_ablate(CLI::App& app, Globals& globals);
void register_edges(CLI::App& app, Globals& globals);
void register_bakeoff(CLI::App& app, Globals& globals);
void register_codebook(CLI::App& app, Globals& globals);
void register_circuit(CLI::App& app, Globals& globals);
void register_paths(CLI::App& app, Globals& globals);
void register_feature_circuit(CLI::App& app, Globals& globals);
void register_graph(CLI::App& app, Globals& globals);
void register_transcoder(CLI::App& app, Globals& globals);
void register_completion(CLI::App& app, Globals& globals);

}  // namespace lamina::cli
