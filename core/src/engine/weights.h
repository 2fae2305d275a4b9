#pragma once

#include <cstdint>
#include <vector>

#include "engine/kernels.h"
#include "family/family.h"
#include "lamina/core/config.h"

namespace lamina {

/// A linear map y = W x + b; an empty bias means none.
struct Linear {
  kernels::PackedMatrix weight;
  std::vector<float> bias;
};

/// Weight and bias of a norm; both empty if the model has no such norm.
struct NormWeights {
  std::vector<float> weight;
  std::vector<float> bias;
};

struct LayerWeights {
  NormWeights ln1, ln1_post, ln2, ln2_post, mlp_ln;
  Linear q, k, v, o, gate, in, out;
  std::vector<float> q_norm, k_norm;  // [d_head]
};

/// A model's weights in memory: matrices packed once, everything fp32.
struct Weights {
  std::vector<float> embed;       // [V, D]; empty if tied (rows are then taken from `unembed`)
  std::vector<float> type_embed;  // [n_types, D]
  std::vector<float> pos_embed;   // [n_ctx, D]
  NormWeights embed_norm;
  std::vector<LayerWeights> layers;
  NormWeights ln_final;
  Linear head;     // [D, D] in front of the final norm; empty if there is none
  Linear unembed;  // [V, D]
};

/// Reads and packs every canonical tensor of an opened model, in parallel over tensors.
Weights load_weights(const ModelConfig& config, const WeightSource& source);

}  // namespace lamina
