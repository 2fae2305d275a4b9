#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/transcoder.h"

// The descriptions beside the weights, parsed and checked; no file is touched here.

namespace lamina::transcoder_files {

/// Sizes beyond these are refused before anything is allocated.
inline constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxFeatures = std::int64_t{1} << 26;

/// SAELens' cfg.json, version 6 or older, as far as it says how to compute.
struct SaeLensConfig {
  std::string architecture;
  FeatureActivation activation = FeatureActivation::relu;
  std::int64_t d_in = 0, d_out = 0;
  std::int64_t d_sae = 0;  // 0: not said
  std::int64_t k = 0;
  bool transcoder = false, skip = false;
  bool subtract_decoder_bias = false;
  bool rescale_by_decoder_norm = false;  // topk: chosen by u‖W_dec‖
  bool scaling_factor = false;           // finetuned: W_dec is multiplied by it
  bool expected_average = false;         // inputs were scaled by a factor the file does not hold
  std::string model_name, hook_name, hook_name_out;
  std::vector<std::string> notes;
};
/// Throws Error naming `name` for ill-formed text and for what lamina does not compute.
SaeLensConfig parse_saelens_config(std::string_view text, std::string_view name);

/// circuit-tracer's config.yaml or config.json.
struct CircuitTracerConfig {
  std::string model_name, model_kind;
  std::string feature_input_hook, feature_output_hook;
  std::string activation;  // "" = not said
  std::int64_t k = 0;
  std::vector<std::string> transcoders;  // files, layer by layer; empty: layer_{l}.safetensors
  std::vector<std::string> notes;
};
/// `text` is JSON if its first character beyond blanks is '{', else YAML: flat, one
/// "key: value" a line, lists as "- item" lines or [a, b], plain or quoted scalars, comments.
/// Anything else of YAML (anchors, tags, nested mappings, block scalars, several documents) is
/// refused.
CircuitTracerConfig parse_circuit_tracer_config(std::string_view text, std::string_view name);

/// The flat YAML above: every key with its scalar (one value) or list.
struct YamlValue {
  bool list = false;
  std::vector<std::string> items;
};
std::map<std::string, YamlValue> parse_flat_yaml(std::string_view text, std::string_view name);

}  // namespace lamina::transcoder_files
