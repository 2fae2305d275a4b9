#pragma once

#include <vector>

#include "lamina/core/model.h"

namespace lamina::circuits {

/// UsageError for models that predict no tokens from the residual stream alone.
void require_language_head(const ModelConfig& config);
/// Mean row of the unembedding, [D].
std::vector<double> mean_unembedding(const Model& model);

}  // namespace lamina::circuits
