#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/exact.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/node.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// Where a path ends: a head's q, k or v (k and v: of a key/value head), an MLP, or the logits.
struct Receiver {
  enum class Kind : std::uint8_t { q, k, v, mlp, logits };
  Kind kind = Kind::logits;
  std::int32_t layer = -1;  // not for logits
  std::int64_t head = -1;   // q, k and v only
  auto operator<=>(const Receiver&) const = default;
};

/// "q:9.6", "k:5.1", "v:5.1", "mlp:3", "logits"; UsageError (with the ranges) for anything else.
Receiver parse_receiver(std::string_view text, const ModelConfig& config);
std::string receiver_name(const Receiver& receiver);

/// What lies between sender and receiver.
enum class Through : std::uint8_t {
  none,  // the residual stream alone: all other attention and MLP outputs are the base run's
  mlps,  // MLPs follow, attention outputs are the base run's (Wang et al.)
  all,   // everything follows
};

struct PathOptions {
  /// noise: the clean prompt runs, the sender's corrupted value travels (Wang et al.).
  Direction direction = Direction::noise;
  Through through = Through::none;
  std::uint64_t memory = std::uint64_t{1} << 30;                        // as PatchOptions::memory
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // sender × pair
};

/// Path patching: for every sender, what its value in the other prompt does to the metric by way of
/// the receivers alone. First the base prompt runs with the sender's other value, the rest as
/// `through` says, and the receivers' inputs are kept; then the base prompt runs with these inputs
/// put in, and everything behind the receivers follows. Senders: nodes at z (a head or all) or
/// mlp_out. Sender and receivers in the wrong order have no path: the base value (skipped).
/// Source: Wang et al., "Interpretability in the Wild", and its code.
/// Throws UsageError for post-norm models, whose residual stream is no sum of what was added, for
/// other senders, and for `all` with the logits beside other receivers: there the logits hold every
/// path already.
PatchResult patch_paths(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                        std::span<const Node> senders, std::span<const Receiver> receivers,
                        const PathOptions& options = {});

}  // namespace lamina
