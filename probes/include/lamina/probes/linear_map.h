#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/config.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/streams.h"

// Which layer of one model says what a layer of another says: an affine map from every stream of
// one to every stream of the other. After Csordás et al., "Do Language Models Use Their Depth
// Efficiently?", where the maps are trained; here they are the ridge solutions [ours].

namespace lamina {

struct LinearMapOptions {
  double ridge = 1e-4;       // [ours] added to the diagonal of the inputs' correlation matrix
  std::int64_t holdout = 5;  // [ours] prompts 4, 9, 14 … (one in 5) are left out and measured
  std::int64_t skip = 0;     // first tokens of every prompt that are left out
  std::uint64_t memory = std::uint64_t{1} << 30;  // bound of the sums: decides how many passes
};

/// S source streams (stream_sites of the source), T target streams.
struct LinearMapResults {
  std::int64_t sources = 0, targets = 0;
  std::int64_t fit_tokens = 0, held_tokens = 0, passes = 0;
  std::vector<double> error;       // [S, T] ‖Wx + b − y‖/‖y‖, mean over held-out tokens
  std::vector<double> mean_error;  // [T] the same of the constant b = mean of y
  /// [T] the source stream with the least error (lowest of equals).
  std::vector<std::int32_t> best() const;
};

/// Receives the same prompts of both models.
using PairConsumer =
    std::function<void(const ActivationBlock& source, const ActivationBlock& target)>;
/// Runs over all prompts in order and hands over blocks that hold the sites. Called several times;
/// every call must give the same prompts. first_prompt is the index that the holdout counts by.
using PairPass = std::function<void(std::span<const Site> source, std::span<const Site> target,
                                    const PairConsumer& consume)>;

/// Fits on the prompts that are not held out, measures on those that are; two passes for every
/// group of sources whose sums fit into the memory: 8·D·(D + T·E) bytes a source, D and E the
/// widths of the models. W minimises Σ‖W z + b − y‖² + ridge·n·‖W‖² over n tokens, z the source's
/// coordinates centred and scaled to variance 1. All sums in double. Throws UsageError for bad
/// options, Error if no tokens are left to fit or to measure, and for activations that are not
/// finite.
LinearMapResults fit_linear_maps(const ModelConfig& source, const ModelConfig& target,
                                 const PairPass& pass, const LinearMapOptions& options = {});

/// Writes to the file's current group: axes source, target.
void write_linear_maps(ResultFile& file, const LinearMapResults& results,
                       const LinearMapOptions& options, const ModelConfig& source,
                       const ModelConfig& target);

}  // namespace lamina
