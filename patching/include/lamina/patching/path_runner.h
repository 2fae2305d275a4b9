#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/forward.h"
#include "lamina/patching/layer_path.h"

namespace lamina {

/// Runs many layer paths over one batch. What leaves the steps of a path is kept, and a later path
/// starts after the steps at its front that it shares with one of them: the values are those of a
/// run of its own, bit for bit.
class PathRunner {
 public:
  /// `memory`: most bytes that the kept states may take; the ones used longest ago are dropped.
  PathRunner(Forward& forward, Batch batch, std::uint64_t memory);
  ~PathRunner();
  PathRunner(const PathRunner&) = delete;

  const Batch& batch() const { return batch_; }
  /// The residual stream after the last step, [tokens, d_model], valid until the next call.
  /// `keep`: keep what leaves its steps. UsageError for a path without steps.
  std::span<const float> run(std::span<const Step> path, bool keep);

  std::int64_t steps_asked() const { return asked_; }  // steps of all paths that were run
  std::int64_t steps_run() const { return run_; }      // those that were not reused

 private:
  struct Node;
  Node* child(Node& node, const Step& step);
  void store(Node& node, std::span<const float> state);
  void touch(Node& node);

  Forward& forward_;
  Batch batch_;
  std::uint64_t memory_;
  std::unique_ptr<Node> root_;  // the path without steps; has no state
  Node* newest_ = nullptr;      // states by their last use, a list through the nodes
  Node* oldest_ = nullptr;
  std::uint64_t bytes_ = 0;
  std::int64_t asked_ = 0, run_ = 0;
};

}  // namespace lamina
