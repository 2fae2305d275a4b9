#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/config.h"
#include "lamina/core/site.h"

namespace lamina {

/// The residual stream between the blocks: h_0 enters block 0, h_{l+1} leaves block l and enters
/// the next. In post-norm models h_{l+1} stands behind the block's last norm. [n_layers + 1]
std::vector<Site> stream_sites(const ModelConfig& config);

/// "embed" for h_0, "l" for the stream that leaves block l: labels of the axis `stream`.
std::vector<std::string> stream_labels(const ModelConfig& config);

/// Which tokens an analysis reads.
struct TokenChoice {
  std::int64_t skip = 0;   // first tokens of every prompt that are left out
  std::int64_t every = 1;  // of the rest: tokens with (index of the prompt + position) % every = 0
  bool operator==(const TokenChoice&) const = default;
};
/// UsageError unless skip ≥ 0 and every ≥ 1.
void check_choice(const TokenChoice& choice);
/// Rows of the block that are read, in order. Depends on the index of the prompt in the run and on
/// the position alone, not on blocks or shards.
std::vector<std::int64_t> chosen_rows(const ActivationBlock& block, const TokenChoice& choice);

}  // namespace lamina
