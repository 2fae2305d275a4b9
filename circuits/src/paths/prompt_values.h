#pragma once

#include <vector>

#include "lamina/circuits/paths.h"

namespace lamina {

/// What a prompt's run left behind, as far as contributions need it.
struct PathFinder::Impl {
  explicit Impl(const Replacement& replacement);

  const Replacement& replacement;
  const Model& model;
  const ModelConfig& config;
  std::int64_t tokens = 0;
  std::vector<float> positions;                 // [T, D]; empty without
  std::vector<std::vector<float>> patterns;     // [layer][H, T, T]
  std::vector<std::vector<float>> values;       // [layer][T, K, d_head], biases included
  std::vector<std::vector<float>> value_bias;   // [layer][K, d_head]: of W_V and of the norm
  std::vector<std::vector<float>> output_bias;  // [layer][D]: of W_O
  std::vector<std::vector<float>> inputs;       // [layer][T, D] of the dictionaries
  std::vector<float> final_input;               // [T, D] normalised
  std::vector<ActiveFeature> features;

  bool has_norms() const;
  bool sandwich() const { return has_norms() && config.norm_place == NormPlace::sandwich; }
  /// The denominator of the norm at a normalised site, 1 without norms.
  double denominator(SiteKind normalized, std::int32_t layer, std::int32_t position) const;
  /// A vector set against what a dictionary reads, as a cursor in the residual stream.
  PathCursor behind_place(const Transcoder& dictionary, std::span<const float> vector,
                          std::int32_t position) const;
  /// The same of a feature's encoder row, `gain` times.
  PathCursor behind_feature(const Transcoder& dictionary, std::int64_t feature,
                            std::int32_t position, double gain) const;

  /// One cursor's reader at the output of a layer's attention, in front of a norm that stands on
  /// it; adds that norm's bias.
  std::vector<float> at_attention(const PathCursor& cursor, std::int32_t layer, double& bias) const;
  void add_attention(std::int32_t layer, std::span<const PathCursor> cursors,
                     std::vector<std::vector<PathContribution>>& out) const;
  void add_features(const PathCursor& cursor, std::vector<PathContribution>& out) const;
  void add_mlp_rest(const PathCursor& cursor, std::vector<PathContribution>& out) const;
  void add_embeddings(const PathCursor& cursor, std::vector<PathContribution>& out) const;
};

}  // namespace lamina
