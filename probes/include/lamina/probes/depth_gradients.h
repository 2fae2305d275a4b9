#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/layer_effects.h"

// Which tokens the answer's probability owes to which layer: integrated gradients over what every
// layer writes. After "Do Language Models Use Their Depth Efficiently?" and its released code
// (get_igrads_multiple).

namespace lamina {

struct DepthGradientOptions {
  EffectPart part = EffectPart::layer;  // whose output: the block's, attention's or the MLP's
  std::int64_t steps = 256;             // left Riemann sum
  std::int64_t prompts = 1;             // the first so many
  std::int64_t batch_tokens = 1024;     // rows computed at once
  StepProgress progress;
};

/// One prompt of T tokens.
struct DepthGradientMap {
  std::int64_t prompt = 0;  // index
  double probability = 0;   // F: sum of the probabilities of the answer's tokens
  /// [L, T] Σ_i (o_ti − ō_i) · mean over steps of ∂F/∂o_ti at ō + k/steps · (o − ō), with o what
  /// the layer writes at all tokens and ō its mean over them. Its sum over tokens is F minus what
  /// F is with every token's o replaced by ō, up to the error of the Riemann sum.
  std::vector<double> attribution;
  std::vector<double> baseline;  // [L] F with every token's o replaced by ō
};

struct DepthGradients {
  std::int64_t n_layers = 0;
  std::vector<DepthGradientMap> maps;
};

/// The answer of a prompt: its tokens behind Prompt::given, or its target if there are none. Error
/// for a prompt that has neither; UsageError for a model that is no causal language model.
DepthGradients measure_depth_gradients(Forward& forward, std::span<const Prompt> prompts,
                                       const DepthGradientOptions& options = {});

/// Writes to the file's current group.
void write_depth_gradients(ResultFile& file, const DepthGradients& results,
                           std::span<const Prompt> prompts, const DepthGradientOptions& options);

}  // namespace lamina
