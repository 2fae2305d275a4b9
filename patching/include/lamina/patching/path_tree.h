#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/patching/layer_path.h"

namespace lamina {

/// What a path is worth, and what it costs.
struct PathValue {
  double quality = 0;  // higher is better; not finite = useless
  double layers = 0;
};
using PathEvaluator = std::function<PathValue(std::span<const Step>)>;

struct TreeOptions {
  std::int64_t simulations = 200;  // paths that are evaluated, the whole model's beside them
  double cost = 0.0;               // reward = quality − cost · layers
  std::int64_t edits = 4;          // most edits of a path
  std::int64_t block = 2;          // most neighbouring steps that one edit skips or repeats
  std::int64_t repeats = 1;        // most times that one edit repeats its block; 0: skip only
  bool skip = true;
  double explore = 0.5;  // weight of the exploration term
  std::uint64_t seed = 0;
  std::function<void(std::int64_t done)> progress;  // paths evaluated
};

/// A path that was evaluated, in the order in which the search came to it.
struct PathTried {
  LayerPath path;
  PathValue value;
  double reward = 0;       // −∞ if the quality is not finite
  std::int32_t edits = 0;  // fewest edits by which the search reached it
};

struct TreeResult {
  std::vector<PathTried> tried;  // [0] is the path that the search began with; no path twice
  std::size_t best = 0;          // highest reward (ties: fewer layers, then earlier)
  bool exhausted = false;        // every path within the edits was tried
};

/// Monte-Carlo tree search over edits of a path. An edit skips or repeats a block of steps; a node
/// is a path, and its children edit it at or behind the place of its own last edit, so that a path
/// is reached from left to right. Every node is a path that can be run: there are no random
/// playouts. Which node is refined: UCT over the best reward seen below a node, measured between
/// the median and the best of all rewards so far. A node may have 2·√visits children, drawn at
/// random. The same seed gives the same search. Every path is evaluated once.
/// After the chain-of-layers search of Li et al., "Skip a Layer or Loop it?"; the median, the best
/// below (there: the mean) and the growing number of children are ours.
TreeResult search_tree(const LayerPath& whole, const PathEvaluator& evaluate,
                       const TreeOptions& options);

}  // namespace lamina
