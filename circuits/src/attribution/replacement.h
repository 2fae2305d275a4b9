#pragma once

#include "lamina/circuits/replacement.h"

#include <map>

// What a replacement model holds of its prompt.

namespace lamina {

struct Replacement::Impl {
  Impl(Forward& forward, std::span<const Transcoder> transcoders,
       const CrossLayerTranscoder* across, std::span<const std::int32_t> prompt,
       const ReplacementOptions& options);

  Forward& forward;
  const ModelConfig& config;
  ReplacementOptions options;
  std::vector<std::int32_t> ids;
  std::int64_t tokens = 0;
  const CrossLayerTranscoder* cross = nullptr;
  std::vector<const Transcoder*> transcoders;  // [layer], nullptr without
  std::vector<ActiveFeature> features;

  // Of the prompt's own run.
  std::map<Site, std::vector<float>> scales;           // [T]
  std::vector<std::vector<float>> patterns;            // [layer][H, T, T]
  std::vector<std::vector<float>> inputs, mlp, error;  // [layer][T, width], [T, D], [T, D]
  std::vector<std::vector<float>> constant;  // [layer][T, D] MLP outputs without features, errors
                                             // and skip: b_dec, or all of a constant first token
  std::vector<float> embed;                  // [T, D]
  ReplacementRun clean;

  struct Values {  // of a pass over copies
    std::vector<std::vector<float>> inputs;
    std::vector<float> normalized;  // [rows, D] over the final denominator
  };

  void place(const Transcoder& t);
  std::int32_t first_writer(std::int32_t target) const { return cross != nullptr ? 0 : target; }
  void write_rows(std::int32_t layer, std::int32_t target,
                  std::span<const std::int32_t> features_of, std::span<float> out) const;
  void decode(std::int32_t target, std::span<const SparseRows> z, std::span<const float> x,
              std::span<float> y) const;
  void read_prompt();
  bool has_mlp() const { return config.d_mlp > 0; }
  void watch(Hooks& hooks, Values& values) const;
  void freeze(Hooks& hooks) const;
  std::vector<ReplacementRun> results(std::int64_t copies, const Values& values) const;
  void add_skip(std::int32_t layer, std::span<const float> x, bool difference,
                std::span<float> y) const;
  std::vector<ReplacementRun> pass(std::span<const std::vector<SourceChange>> sets,
                                   Freedom freedom) const;
};

}  // namespace lamina
