#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/layer_effects.h"

// How far every block is from doing nothing: the distance of its Jacobian from the identity. After
// "The Curse of Depth in Large Language Models", which argues that the deep blocks of pre-norm
// models become the identity.

namespace lamina {

struct JacobianOptions {
  std::int64_t probes = 8;  // pairs of random vectors a layer, each a backward pass; 0: exact
  std::uint64_t seed = 0;
  std::int64_t batch_tokens = 512;  // whole prompts are packed up to this many tokens
  StepProgress progress;
};

/// Root mean square over tokens, as a share of ‖I‖ = √d_model: 0 for a block that passes its input
/// on, 1 for one whose output does not depend on it. L layers.
struct BlockJacobian {
  std::int64_t n_layers = 0, tokens = 0;
  bool exact = false;
  /// ‖∂h_{l+1,t}/∂h_{l,t} − I‖: a token's own stream.
  std::vector<double> own, own_error;
  /// ‖∂h_{l+1}/∂h_l − I‖ of all tokens of a prompt, per token: also what attention carries over.
  std::vector<double> all, all_error;
  // Standard errors of the random vectors, NaN if there is only one pair, 0 if exact.
};

/// Estimates squared Frobenius norms with random ±1 vectors v (Hutchinson): ‖(J − I)ᵀv‖² has them
/// as its mean. For a token alone the parts that come from other tokens fall out of the product of
/// two such vectors whose tokens have random signs (see docs/depth-effects.md). The vectors depend
/// on seed, prompt, position, layer and pair, not on batches or threads. `probes` = 0 takes every
/// unit vector: longest prompt × d_model backward passes a layer.
BlockJacobian measure_block_jacobian(Forward& forward, std::span<const Prompt> prompts,
                                     const JacobianOptions& options = {});

/// Writes to the file's current group.
void write_block_jacobian(ResultFile& file, const BlockJacobian& results,
                          const JacobianOptions& options);

}  // namespace lamina
