#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/transcoder_eval.h"
#include "lamina/core/block.h"

// What evaluations of dictionaries and codebooks share.

namespace lamina::rows {

/// Token rows of a batch that are not among the first `skip` of their prompt.
std::vector<std::int64_t> counted(const Batch& batch, std::int64_t skip);
/// A site's values at these rows, [rows, width]. Error naming `name` for another width.
std::vector<float> gather(const ActivationBlock& block, Site site, std::int64_t width,
                          std::span<const std::int64_t> rows, const std::string& name);
/// Adds what one token's row and its reconstruction contribute, tokens and active aside.
void add(ReconstructionSums& sums, std::span<const float> y, std::span<const float> rebuilt,
         std::span<const double> mean);
void add(ReconstructionSums& to, const ReconstructionSums& from);

}  // namespace lamina::rows
