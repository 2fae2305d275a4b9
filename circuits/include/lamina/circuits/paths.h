#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/feature_weights.h"
#include "lamina/circuits/replacement.h"
#include "lamina/core/result_file.h"

// What a feature or a logit of one prompt is made of, and the strongest ways on which it comes
// about. Patterns and the denominators of the norms are the prompt's: everything is linear, and
// what was attributed is the sum of its parts, errors and biases included. Source: Dunefsky,
// Chlenski, Nanda 2024, algorithms 1 and 2 (greedy path finding).

namespace lamina {

enum class PathNodeKind : std::uint8_t {
  logit,     ///< a root: index = token, other = the token subtracted, −1 without
  feature,   ///< index = feature
  head,      ///< index = head; position = where it reads
  skip,      ///< the linear path beside a layer's features
  token,     ///< the embedding; index = id
  position,  ///< the position's embedding
  error,     ///< what a layer's dictionary does not rebuild: no further sources
  bias,  ///< what is added whatever the prompt; layer −1 = of the node itself, −2 = embeddings
};
std::string_view path_node_kind_name(PathNodeKind kind);

struct PathNode {
  PathNodeKind kind = PathNodeKind::feature;
  std::int32_t layer = -1;
  std::int32_t position = 0;
  std::int64_t index = -1;
  std::int64_t other = -1;
  auto operator<=>(const PathNode&) const = default;
};
/// "3.57@9", "a2.h1@4", "token@4", "error3@9" …: unique in a prompt.
std::string path_node_name(const PathNode& node);

/// Something with a value to be attributed: reader · stream at a token + constant.
struct PathCursor {
  StreamReader reader;  // denominators of the prompt's norms applied
  std::int32_t position = 0;
  double constant = 0;  // biases of the node itself
  double value = 0;
};

struct PathContribution {
  PathNode node;
  double value = 0;
};

/// The parts of one prompt's replacement model, each set against readers of the residual stream.
class PathFinder {
 public:
  /// Runs the prompt once more. `replacement` must outlive this object. UsageError for a
  /// replacement with a constant first token.
  explicit PathFinder(const Replacement& replacement);
  ~PathFinder();
  PathFinder(PathFinder&&) noexcept;

  const Replacement& replacement() const;
  /// Roots. A feature's value is its pre-activation (it need not be active); a logit's is the logit
  /// before any soft-cap, minus the mean logit or minus that of token `minus`. `position` of −1:
  /// the last token. UsageError for what is not there.
  PathCursor feature(std::int32_t layer, std::int32_t position, std::int64_t feature) const;
  PathCursor logit(std::int32_t token, std::int32_t minus = -1, std::int32_t position = -1) const;

  /// For each cursor, everything that its value is the sum of: features at its token, heads by
  /// source token, skips, token, position, errors and biases. Layers ascending.
  std::vector<std::vector<PathContribution>> contributions(
      std::span<const PathCursor> cursors) const;
  /// What is attributed next if a contribution of a cursor is followed. UsageError for tokens,
  /// positions, errors and biases, which nothing contributes to.
  PathCursor follow(const PathCursor& cursor, const PathContribution& contribution) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct PathOptions {
  std::int64_t depth = 3;  // [ours] steps from the root; the authors' 2
  std::int64_t width = 5;  // paths that are kept of every length
  bool absolute = false;   // [ours] rank by |contribution|; the authors' search is signed
  /// The authors' search: the embeddings of token and position are one, heads of layer 0 are not
  /// followed further, what heads read at the first token does not take part.
  bool as_authors = false;
};

/// A path up to one of its nodes. Paths that share their beginning share prefixes.
struct PathPrefix {
  PathNode node;
  std::int32_t parent = -1;  // −1: the root
  std::int32_t depth = 0;
  double contribution = 0;  // of this way to the root; of the root its value
  bool expanded = false;
  /// Of an expanded prefix: what `contribution` is the sum of.
  struct Account {
    double kept = 0;                                            // prefixes that follow
    double features = 0, heads = 0, skips = 0, embeddings = 0;  // what was not kept of each
    double errors = 0, biases = 0;
    double sum() const { return kept + features + heads + skips + embeddings + errors + biases; }
    double magnitude = 0;  // Σ |part| over all parts
  } account;
};

struct FoundPaths {
  PathOptions options;
  std::vector<PathPrefix> prefixes;  // [0] the root; parents before children
  std::vector<std::string> tokens;   // of the prompt, as text
  std::string explained;  // the root's token as text, "A − B" of a difference; else empty

  /// Prefixes that none was kept of: the ends of the paths, strongest (signed) first.
  std::vector<std::int32_t> ends() const;
  /// Root … prefix.
  std::vector<std::int32_t> path(std::int32_t prefix) const;
  /// The largest |contribution − account.sum()| over account.magnitude of expanded prefixes:
  /// rounding.
  double rounding() const;
  void write(ResultFile& file) const;
};
/// Repeatedly extends every path by what contributes to its end, and keeps the `width` ones of the
/// largest contribution.
FoundPaths find_paths(const PathFinder& finder, const PathNode& root, const PathCursor& cursor,
                      const PathOptions& options);

/// Paths laid over one another: a node once, edges with the sum over the distinct prefixes that end
/// in them.
struct PathGraph {
  struct Node {
    PathNode node;
    std::string kind;  // as path_node_kind_name, "rest" for all that was not kept
    std::string name;
    std::string word;         // token at its position; of a logit, the token it is of
    double contribution = 0;  // to the root, over all ways to it
  };
  struct Edge {
    std::int32_t source = 0, target = 0;
    double weight = 0;  // of the root's value
  };
  std::vector<Node> nodes;  // [0] the root
  std::vector<Edge> edges;  // none of weight 0
  std::vector<std::string> tokens;
};
/// Every expanded node also gets its errors, its biases and the rest: what points to it adds up to
/// what was followed of it.
PathGraph merge_paths(const FoundPaths& paths);
std::string path_graph_json(const PathGraph& graph);
std::string path_graph_dot(const PathGraph& graph);

}  // namespace lamina
