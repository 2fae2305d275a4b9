#pragma once

#include <CLI/App.hpp>

#include <filesystem>

#include "globals.h"
#include "lamina/circuits/transcoder.h"

namespace lamina::cli {

void register_transcoder_train(CLI::App& transcoder, Globals& globals);

/// A dictionary as SAELens lays it out: cfg.json and sae_weights.safetensors.
void write_dictionary(const std::filesystem::path& folder, const Transcoder& transcoder);

}  // namespace lamina::cli
