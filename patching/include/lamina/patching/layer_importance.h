#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/path_judge.h"

namespace lamina {

/// LIM: −cos(layer input, layer output), mean over tokens (the last ones only if `last_only`). The
/// output is what the next layer reads. −1 for a layer that changes nothing; higher = more
/// important. [layer]
std::vector<double> layer_input_metric(Forward& forward, const PathPrompts& prompts, bool last_only,
                                       std::uint64_t memory = std::uint64_t{1} << 30);

/// ZD: share of a layer's matrix entries (biases and norms aside) with z > 1, or |z| > 1, where
/// z = (w − mean)/deviation over all matrices of the layer, the deviation with 1/n. Lower = more
/// important. [layer]
std::vector<double> weight_outliers(const Model& model, bool two_sided = false);

/// Σ over tokens of |Σ_d a_d·g_d|, a a sublayer's output and g its gradient (or relevance, by
/// `rules`), mean over prompts. [layer]; mlp empty in models without MLPs.
struct SublayerRelevance {
  std::vector<double> attention, mlp;
};
/// What is differentiated: the metric at the last token of each prompt (pair i is prompt i);
/// without one the log-probability of the known next tokens, summed over the tokens, where the
/// last one's is its answer or, if `last_only` and it has none, the model's own most likely token.
/// `last_only`: the last token's alone.
SublayerRelevance sublayer_relevance(Forward& forward, const PathPrompts& prompts,
                                     const Metric* metric, bool last_only,
                                     const BackwardRules& rules,
                                     std::uint64_t memory = std::uint64_t{1} << 30);

/// Spearman's rank correlation, ties by their mean rank. NaN if either is constant.
double rank_correlation(std::span<const double> a, std::span<const double> b);

}  // namespace lamina
