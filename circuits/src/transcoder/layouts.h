#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "lamina/circuits/transcoder_file.h"

// The layouts that TranscoderSet::open() knows, one function each.

namespace lamina::transcoder_files {

/// A folder with cfg.json and sae_weights.safetensors.
TranscoderSet::Entry open_saelens(const std::filesystem::path& folder,
                                  const DictionaryReadOptions& options);

/// One file of circuit-tracer's per-layer layout. `config` may be nullptr (a file by itself).
struct CircuitTracerConfig;
TranscoderSet::Entry open_circuit_tracer_file(const std::filesystem::path& path, std::int32_t layer,
                                              const CircuitTracerConfig* config,
                                              const DictionaryReadOptions& options);

/// The place that a file names; errors name the file. `what`: "input" or "output".
DictionaryPlace place_of(const std::filesystem::path& file, std::string_view what,
                         const std::string& hook, std::int32_t layer,
                         const DictionaryReadOptions& options);

/// The text of a small file; Error if it is longer than a megabyte.
std::string read_small_text(const std::filesystem::path& path);
/// Writes a text file under a temporary name and renames it.
void write_text(const std::filesystem::path& path, std::string_view text);

}  // namespace lamina::transcoder_files
