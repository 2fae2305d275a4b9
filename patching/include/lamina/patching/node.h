#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/site.h"

namespace lamina {

/// A part of a site's values that is patched or scored as one: −1 means all of that dimension.
struct Node {
  Site site;
  std::int64_t position = -1;  // token index in the prompt (query index at attention sites)
  std::int64_t head = -1;      // key/value head at k and v
  std::int64_t neuron = -1;    // index within d_mlp at mlp pre, pre_linear and post
  auto operator<=>(const Node&) const = default;
};

/// "blocks.3.attn.hook_z[5].head2", "blocks.0.mlp.hook_post.neuron17" …
std::string node_name(const Node& node);

/// Along which dimensions a site is split into nodes.
struct Split {
  bool position = true;
  bool head = false;    // sites with heads
  bool neuron = false;  // mlp sites
};

/// Every node of the sites in order: site, then position (0 … positions − 1), head, neuron.
/// At attention sites a position is a query index: the node is that row of the pattern or scores.
/// UsageError for sites the model lacks (with the nearest names), a split along a dimension that a
/// site lacks, no position to split into, and more than 2^26 nodes.
std::vector<Node> nodes_of(std::span<const Site> sites, const Split& split, std::int64_t positions,
                           const ModelConfig& config);

}  // namespace lamina
