#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "globals.h"
#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/block_jacobian.h"
#include "lamina/probes/depth_gradients.h"
#include "lamina/probes/layer_effects.h"
#include "lamina/probes/residual_erasure.h"

// The part of a model's depth that interventions show: what skipping a layer changes, until when a
// token is needed, how far blocks are from the identity. Needs the model, not a recording.
namespace lamina::cli {

struct DepthEffectsOptions {
  std::vector<std::string> variants = {"future"};
  std::string part = "layer";
  std::string read = "answer";    // where erasure is read
  std::string answer = "answer";  // label of the prompts whose text is the answer
  std::string statistic = "max";  // that is printed
  std::int64_t batch_tokens = 1024;
  bool no_skip = false;
  LayerEffectsOptions skip;    // splits
  std::int64_t erase = 0;      // prompts to erase in; 0: none
  std::int64_t jacobian = 0;   // pairs of random vectors; 0: none
  std::int64_t gradients = 0;  // prompts to integrate gradients in; 0: none
  std::int64_t gradient_steps = 256;
};
void add_depth_effects_options(CLI::App& verb, DepthEffectsOptions& options);

/// The prompts with the text of their label `label`, if they have it, as their last tokens;
/// Prompt::given stays where these begin.
std::vector<Prompt> with_answers(std::vector<Prompt> prompts, const std::string& label,
                                 const Tokenizer* tokenizer);

/// What was asked for.
struct DepthEffects {
  LayerEffectsOptions skip_options;
  ErasureOptions erasure_options;
  JacobianOptions jacobian_options;
  DepthGradientOptions gradient_options;
  std::optional<LayerEffects> skip;
  std::optional<Erasure> erasure;
  std::optional<BlockJacobian> jacobian;
  std::optional<DepthGradients> gradients;
};
/// Runs it with progress lines. Prompts as from with_answers().
DepthEffects run_depth_effects(Forward& forward, std::span<const Prompt> prompts,
                               const DepthEffectsOptions& options, const Globals& globals);

/// Groups layer_effects, residual_erasure, block_jacobian and depth_gradients, as far as measured.
void write_depth_effects(ResultFile& file, const DepthEffects& effects,
                         std::span<const Prompt> prompts);
std::string depth_effects_text(const DepthEffects& effects, std::span<const Prompt> prompts,
                               const DepthEffectsOptions& options, const Tokenizer* tokenizer);
nlohmann::ordered_json depth_effects_json(const DepthEffects& effects,
                                          std::span<const Prompt> prompts);

}  // namespace lamina::cli
