#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/gradient_pass.h"
#include "lamina/patching/node.h"
#include "lamina/patching/pairs.h"

namespace lamina::patching {

/// The nodes of one site.
struct SiteNodes {
  Site site;
  SiteShape shape;
  std::vector<std::size_t> nodes;  // indices into the caller's list
};

/// Groups the nodes, sites in the order of their first node. Throws UsageError for sites the model
/// lacks, heads, neurons and positions that a site does not have, and attention sites when a pair
/// has a token map.
std::vector<SiteNodes> group_by_site(std::span<const Node> nodes, std::span<const Pair> pairs,
                                     const ModelConfig& config);

/// other − base of one site, in the order of the clean prompt. What is −∞ in both runs (masked
/// scores) differs by nothing.
Values difference(const Chunk& chunk, const SiteShape& shape, const Values& base,
                  const Values& other);

/// Collects what gradients at the sites say about the nodes.
class Scores {
 public:
  Scores(std::span<const Node> nodes, std::size_t pairs);

  /// Adds weight · Σ difference · gradient to every node of the group. `rows`: where the clean
  /// prompt's positions stand in the run of the gradient.
  void add(const Chunk& chunk, const SiteNodes& group, const Values& difference,
           const SiteView& gradient, const std::vector<std::int64_t>& rows, double weight);

  /// [node, pair], NaN where the pair's prompt does not reach the node's position.
  std::vector<double> take(std::span<const Pair> pairs);

 private:
  std::span<const Node> nodes_;
  std::size_t pairs_;
  std::vector<double> values_;
};

/// Adds a hook that moves the site of a run of the base prompts by α · difference.
void interpolate(Hooks& hooks, Site site, const Chunk& chunk, const Values& difference,
                 double alpha);

}  // namespace lamina::patching
