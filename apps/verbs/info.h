#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>

#include "lamina/core/config.h"
#include "lamina/core/site.h"
#include "ui/output.h"

// The parts of `lamina info`: one function per kind of file.
namespace lamina::cli {

struct InfoOptions {
  bool json = false;
  bool sites = false;    // list every site
  bool prompts = false;  // list every prompt (recordings)
};

void info_model(const std::filesystem::path& path, const InfoOptions& options, Output& out);
void info_results(const std::filesystem::path& path, const InfoOptions& options, Output& out);
void info_recording(const std::filesystem::path& path, const InfoOptions& options, Output& out);
void info_tokenizer(const std::filesystem::path& path, const InfoOptions& options, Output& out);

/// The sites of a model or recording, layers folded: name, layers, shape and, if the configuration
/// is complete (a recording stores only sizes), meaning.
void print_sites(std::span<const Site> sites, const ModelConfig& config, bool meaning, Output& out);
/// "[token, head, d_head] = [·, 12, 64]" without the token dimension's size.
std::string shape_text(Site site, const ModelConfig& config);
/// JSON as it is printed: indented, bytes that are no UTF-8 replaced.
void print_json(const nlohmann::ordered_json& json, Output& out);

}  // namespace lamina::cli
