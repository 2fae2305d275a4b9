#pragma once

#include <cstdint>
#include <vector>

#include "lamina/core/backward.h"

namespace lamina {

/// What one pass keeps for the way back, hooks' changes included. Letters as in pass.h.
struct Tape::Impl {
  struct Norm {
    std::vector<float> normalized;  // [rows, width]
    std::vector<float> scale;       // [rows]
    // What was computed, only where a hook then wrote.
    std::vector<float> computed, computed_scale;
  };
  /// Attention of one prompt, kept only where a hook may have changed it: [H, T, T] each.
  struct Written {
    std::vector<float> scores, pattern;
  };
  struct Step {
    lamina::Step step;
    Norm ln1, ln1_post, ln2, ln2_post, mlp_ln, q_norm, k_norm;
    std::vector<float> attn_in, mlp_in;  // [N, D] what a sublayer reads where no norm stands before
    std::vector<float> q, k, v, z;       // q and k after the rotation
    std::vector<float> gate, up;         // [N, M] pre-activations
    std::vector<float> post;             // [N, M] only if a hook may have changed it
    std::vector<Written> written;        // [prompt] or empty
  };

  const Model* model = nullptr;  // nullptr until a pass has filled the tape
  std::uint64_t pass = 0;        // passes recorded so far
  Batch batch;
  std::vector<std::int32_t> positions;  // [N]
  bool embedded = true;                 // false: the pass began with RunOptions::start
  std::vector<Step> steps;
  Norm final_norm;
  std::vector<float> resid;  // [N, D] after the last step
};

}  // namespace lamina
