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
  /// Runs the prompt forward, once per copy. As many copies as `tokens`, `memory` (bytes of the
  /// tape) and the number of targets ask for.
  TargetBatch(Replacement& replacement, std::int64_t tokens, std::uint64_t memory,
              std::int64_t targets);
  ~TargetBatch();

  std::int64_t copies() const;
  Target target(const ActiveFeature& feature) const;
  Target target(const LogitReadout& logit) const;
  /// What every source adds to every target: [targets, sources], valid until the next call. At most
  /// copies() targets.
  std::span<const float> run(std::span<const Target> targets);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::circuits
