#pragma once

#include <CLI/App.hpp>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "globals.h"
#include "lamina/core/model.h"
#include "lamina/core/prompts.h"
#include "lamina/core/run.h"

// Options that several verbs share, and what they mean.
namespace lamina::cli {

/// --prompts FILE or --text …, and how they become tokens.
struct PromptInputs {
  std::string file;
  std::vector<std::string> texts;
  std::string bos = "model";
  /// Longer prompts are cut into pieces of this many tokens, BOS in front of each if it stands in
  /// front of the prompt; 0: they are not cut.
  std::int64_t piece = 0;
};
void add_prompt_options(CLI::App& verb, PromptInputs& inputs);
bool has_prompts(const PromptInputs& inputs);
/// The prompts; Error if there are none or one is longer than the model's context.
std::vector<Prompt> load_prompts(const PromptInputs& inputs, const Model& model);
/// Whether the model's tokenizer puts a BOS token in front under these inputs.
bool prepends_bos(const PromptInputs& inputs, const Model& model);

/// --temperature, --top-p and how many tokens; the seed is the global one.
struct Sampling {
  std::int64_t max_new = 0;
  double temperature = 0.0;
  double top_p = 1.0;
};
void add_sampling_options(CLI::App& verb, Sampling& sampling);
/// Continues the prompts with a progress line. prompts[0] is prompt `first` of the run; `hooks`
/// fire in every pass.
void generate_with_progress(Forward& forward, std::span<Prompt> prompts, const Sampling& sampling,
                            std::int64_t first, const Globals& globals,
                            const Hooks* hooks = nullptr);

/// -o FILE and --force.
struct OutputOptions {
  std::string path;
  bool force = false;
};
void add_output_options(CLI::App& verb, OutputOptions& options, const std::string& what);

/// Removes what --force replaces: the recording of this name with its shards, finished or not.
void remove_recording(const std::filesystem::path& path);

/// Loads a model (path or shipped name) and says so.
Model load_model(const std::string& typed);

/// "4G", "500M", "64k" or plain bytes, as typed for `option`. UsageError for anything else.
std::uint64_t parse_bytes(const std::string& text, std::string_view option);

std::string now_utc();
/// Root attributes of a result file: tool_version, argv, created_utc, seed.
std::map<std::string, std::string> provenance(const Globals& globals);

/// Tokens of all prompts together.
std::int64_t total_tokens(std::span<const Prompt> prompts);

}  // namespace lamina::cli
