#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "edges/source_activations.h"
#include "lamina/core/forward.h"
#include "lamina/patching/circuit_run.h"

namespace lamina {

/// Some pairs with everything a circuit run needs to know of their plain and ablated passes. Rows
/// before the first one that an ablation can change are left out.
struct CircuitChunk {
  std::int64_t first_pair = 0, pairs = 0;
  RunState clean;                   // of the clean prompts
  std::vector<std::int64_t> first;  // [pair] first row that can change
  SourceRows ablated;               // what every source adds when ablated
  SourceRows delta;                 // ablated − clean
  /// The residual stream with every source ablated, [layer][rows, d_model]: entering the layer's
  /// attention, entering its MLP (empty in parallel blocks), after the last layer.
  std::vector<std::vector<float>> pre, mid;
  std::vector<float> final;

  std::uint64_t bytes() const;
};

/// Mean of every source over the clean prompts, per position: what `mean` ablation writes.
struct SourceMeans {
  std::int64_t positions = 0;
  std::vector<float> values;  // [source][position, d_model]
};
SourceMeans mean_sources(Forward& forward, const EdgeGraph& graph, std::span<const Pair> pairs,
                         std::int64_t batch_tokens);

/// What attention adds to the stream without any head: its output bias, [layer][d_model].
std::vector<std::vector<float>> attention_biases(Forward& forward);

/// `means` and `biases` are used by zero and mean ablation only.
CircuitChunk make_chunk(Forward& forward, const EdgeGraph& graph, std::span<const Pair> pairs,
                        std::int64_t first_pair, std::int64_t count, Ablation ablation,
                        const SourceMeans& means, const std::vector<std::vector<float>>& biases);

}  // namespace lamina
