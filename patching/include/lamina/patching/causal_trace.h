#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/node.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// Layers [first, end) of a window around `layer`: layer − ⌊w/2⌋ … layer + ⌈w/2⌉ − 1, cut at the
/// model's ends. Source: the code of ROME (kmeng01/rome).
struct LayerWindow {
  std::int32_t first = 0, end = 0;
};
LayerWindow layer_window(std::int32_t layer, std::int64_t width, std::int64_t layers);

struct TraceOptions {
  /// Noise on the subject's embeddings, in standard deviations of theirs.
  double noise_sigmas = 3.0;
  double sigma = 0.0;         // the deviation; 0: subject_deviation() of these pairs
  std::int64_t samples = 10;  // noised runs per pair, averaged
  /// Layers restored together around a node's at attn_out and mlp_out; everywhere else one.
  std::int64_t window = 10;
  std::uint64_t seed = 0;
  std::uint64_t memory = std::uint64_t{1} << 30;                        // as PatchOptions::memory
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // restorations
};

struct TraceResult {
  double sigma = 0.0;                  // standard deviation of the subjects' embedding values
  std::vector<double> clean, noised;   // metric, [pair]; noised: mean over the samples
  std::vector<double> restored;        // metric, [node, pair], mean over the samples; NaN where
                                       // there is no such position
  std::int64_t runs = 0, skipped = 0;  // as in PatchResult, samples counted one by one
};

/// Standard deviation (n − 1) of all embedding values at the subject tokens of all pairs.
/// UsageError for a pair without a subject.
double subject_deviation(Forward& forward, std::span<const Pair> pairs);

/// Causal tracing: the clean prompts run with noise on hook_embed at the subject's tokens, then
/// again with the clean value of one node (or of a window of layers around it) put back. The
/// noise is a function of the seed, the pair's id and the sample. Nodes: token sites of the layers.
/// Source: Meng et al., "Locating and Editing Factual Associations in GPT" (ROME), and its code.
/// Throws UsageError for pairs without a subject and for nodes the model lacks.
TraceResult trace_causes(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                         std::span<const Node> nodes, const TraceOptions& options = {});

}  // namespace lamina
