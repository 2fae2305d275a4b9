#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lamina/circuits/attribution_graph.h"

// Rows of an attribution graph: several targets by one backward pass over copies of the prompt.

namespace lamina::circuits {

/// A linear read-out of the residual stream at one token: a feature or a logit.
struct Target {
  Site stream;  // where the residual stream is read; resid_post of the last layer for logits
  std::int64_t position = 0;
  std::vector<float> direction;  // [D] at the stream: norm, its denominator frozen, included
};

class TargetBatch {
 public:
  /// Copies of the prompt up to `tokens` and `memory` (bytes of the tape) in all, at most `targets`
  /// of them; one whatever its length.
  TargetBatch(Replacement& replacement, std::int64_t tokens, std::uint64_t memory,
              std::int64_t targets);
  ~TargetBatch();

  Target target(const ActiveFeature& feature) const;
  Target target(const LogitReadout& logit) const;
  /// The order that is least work: targets of one pass share how far the prompt is read (nothing
  /// behind a target acts on it) and the layers. [targets]
  std::vector<std::size_t> order(std::span<const Target> targets) const;
  /// How many of the first ones of `targets`, in order(), go into one run.
  std::int64_t fits(std::span<const Target> targets) const;
  /// What every source adds to every target: [targets, sources], valid until the next call. At most
  /// fits() targets.
  std::span<const float> run(std::span<const Target> targets);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::circuits
