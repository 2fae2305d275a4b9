#pragma once

#include <cstdint>
#include <span>

#include "lamina/core/config.h"
#include "lamina/core/site.h"
#include "lamina/patching/node.h"

// What a node is in terms of the rows of its site.
namespace lamina {

/// Where in a token row a node's values lie.
struct NodeSlice {
  std::int64_t offset = 0, count = 0;
};
NodeSlice node_slice(const Node& node, const ModelConfig& config);

/// Heads [first, end) of an attention site that belong to a node.
struct HeadRange {
  std::int64_t first = 0, end = 0;
};
HeadRange node_heads(const Node& node, const ModelConfig& config);

/// Throws UsageError unless the site exists, head and neuron are dimensions of it and in range, and
/// the position is −1 or less than `longest`.
void check_nodes(std::span<const Node> nodes, const ModelConfig& config, std::int64_t longest);

/// Whether the site feeds only its own row of the last block's output, once its layer is the last:
/// everything behind the keys and values.
bool behind_keys(SiteKind kind);

/// The same place written later in the pass: resid_post of a layer is resid_pre of the next, unless
/// a norm stands between; embed is resid_pre of layer 0 where nothing is added to it.
Site latest_equal(Site site, const ModelConfig& config);

/// The layer a pass must start at so that writing `site` (as latest_equal() gives it) is part of
/// it. n_layers: no layer.
std::int32_t start_layer(Site site, const ModelConfig& config);

}  // namespace lamina
