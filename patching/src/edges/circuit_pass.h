#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "edges/circuit_chunk.h"
#include "lamina/core/forward.h"
#include "lamina/patching/graph.h"
#include "lamina/patching/metric.h"

namespace lamina {

/// Metric of pairs which[i] at token rows[i] of the last run, a few rows of logits at a time.
std::vector<double> metric_of_rows(Forward& forward, const Metric& metric,
                                   std::span<const std::int64_t> which,
                                   std::span<const std::int64_t> rows);

/// The same for rows of the last block's output, [rows, d_model].
std::vector<double> metric_of_streams(Forward& forward, const Metric& metric,
                                      std::span<const std::int64_t> which,
                                      std::span<const float> streams);

/// Patched passes over the pairs of one chunk.
struct CircuitPass {
  Forward& forward;
  const EdgeGraph& graph;
  const Metric& metric;
  std::int64_t rows;  // of one batch, at most (but at least one prompt)

  struct Item {
    const EdgeMask* circuit;  // pruned
    std::int64_t pair;        // within the chunk
    std::size_t result;       // where its metric goes
  };

  void run(const CircuitChunk& chunk, std::span<const Item> items, std::int32_t from_layer,
           std::vector<double>& results);

  /// The whole graph without one edge into `read`, for each: adds the metric of every pair to
  /// sums[edge]. Returns the number of prompts computed.
  std::int64_t without_each_source(const CircuitChunk& chunk, std::int64_t read,
                                   std::span<const double> clean, std::vector<double>& sums);
};

}  // namespace lamina
