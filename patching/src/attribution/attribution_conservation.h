#pragma once

#include <span>
#include <vector>

#include "lamina/patching/attribution.h"
#include "lamina/patching/gradient_pass.h"

namespace lamina::patching {

/// Sums Σ x · ρ at the embedding and in front of every layer while a gradient is taken.
class ConservationSums {
 public:
  ConservationSums(const ModelConfig& config, std::size_t pairs);

  /// Adds hooks to a pass over `batch`: `recording` to its forward, `gradients` to its backward
  /// part. Both live no longer than this object's next watch().
  void watch(const Chunk& chunk, const Batch& batch, Hooks& recording, Hooks& gradients);
  /// The metric of the pass.
  void found(const Chunk& chunk, std::span<const double> metric);
  Conservation take() { return std::move(sums_); }

 private:
  std::vector<Site> sites_;
  std::size_t pairs_;
  Recorded values_;
  Conservation sums_;
};

}  // namespace lamina::patching
