#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/graph.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// What an edge outside the circuit carries instead of the value of this run.
enum class Ablation : std::uint8_t {
  patching,  // the source's value on the corrupted prompt
  zero,      // 0
  mean,      // the source's mean over the clean prompts of the pairs, per position
};
std::string_view ablation_name(Ablation ablation);
/// UsageError that lists the names.
Ablation parse_ablation(std::string_view name);

struct CircuitOptions {
  Ablation ablation = Ablation::patching;
  std::int64_t batch_tokens = 512;
  std::uint64_t memory = std::uint64_t{1} << 30;  // bytes for activations beyond the weights
};

/// Runs parts of a model on the clean prompts: every read point v of a circuit C gets
///   Σ_{u→v ∈ C} a_u(this run) + Σ_{u→v ∉ C} a_u(ablated) + the constant biases,
/// so that what an ablated edge changes is felt by everything behind it (recursive edge patching).
///
/// a_u is what a source adds to the residual stream: a head's share of attn_out, mlp_out, and for
/// the input the stream entering layer 0, positions included. Where a norm stands between
/// attention and the stream (Gemma 2 and 3), a head's share is its result over that norm's
/// denominator in the same run, times its weight.
///
/// The whole graph gives the plain run bit for bit; with `patching` the empty graph gives the
/// corrupted run bit for bit. A prompt's values do not depend on what else is in the batch.
class CircuitRunner {
 public:
  /// The model must have one key and value head per query head (Model::ungrouped) and add its
  /// sublayers to the residual stream without a norm over the sum; UsageError otherwise, and for
  /// `mean` with empty pairs. `forward` and `pairs` must live as long as this object.
  CircuitRunner(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                const CircuitOptions& options = {});
  ~CircuitRunner();
  CircuitRunner(CircuitRunner&&) noexcept;

  const EdgeGraph& graph() const;
  /// Metric of the plain runs, [pair].
  const std::vector<double>& clean() const;
  const std::vector<double>& corrupted() const;

  /// Metric of every circuit (pruned first) on every pair: [circuit, pair].
  /// `from_layer`: a promise that all circuits have every edge into earlier layers; those are then
  /// not computed again.
  std::vector<double> run(std::span<const EdgeMask> circuits, std::int32_t from_layer = 0);
  /// The same, mean over the pairs: [circuit].
  std::vector<double> run_means(std::span<const EdgeMask> circuits, std::int32_t from_layer = 0);

  /// Metric of the whole graph without one edge, for every edge: mean over pairs, [edge]. The same
  /// numbers as run() to within rounding, much faster: what stands before the edge is not touched.
  /// `progress`: edges done.
  std::vector<double> without_each_edge(
      const std::function<void(std::int64_t, std::int64_t)>& progress = {});

  std::int64_t prompts_run() const;  // patched prompts computed so far

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// UsageError unless edges of this model are defined as above: norms over the sum (BERT) are not.
void check_edge_model(const ModelConfig& config);

}  // namespace lamina
