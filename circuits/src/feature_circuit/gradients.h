#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "feature_circuit/states.h"

namespace lamina::feature_circuit {

/// Gradients of the metric at the sites that dictionaries rebuild, over clean prompts.
class SiteGradients {
 public:
  /// [dictionary][tokens, D].
  using Values = std::vector<std::vector<double>>;

  SiteGradients(const FeatureStudy& study, const FeatureEffectOptions& options,
                patching::GradientPass& pass)
      : study_(study), options_(options), pass_(pass) {}

  /// `state`: of the plain run of the chunk's clean prompts, read for ig alone.
  Values of(FeatureMethod method, const patching::Chunk& chunk, const RunState& state,
            std::span<const State> clean, std::span<const State> baseline);

 private:
  Values at_clean(const patching::Chunk& chunk, const BackwardRules& rules);
  Values along(const patching::Chunk& chunk, const RunState& state, std::span<const State> clean,
               std::span<const State> baseline);
  Site site(std::size_t d) const { return study_.dictionaries[d].config.output.site; }

  const FeatureStudy& study_;
  const FeatureEffectOptions& options_;
  patching::GradientPass& pass_;
};

/// The plain runs of a chunk: metrics and nodes, and what stands in for these.
struct PlainRuns {
  std::vector<double> clean_metric, corrupted_metric;  // [pair of the chunk]
  std::vector<State> clean, baseline;                  // [dictionary]
  RunState state;                                      // of the clean prompts; if asked for
};
PlainRuns run_plain(const FeatureStudy& study, patching::GradientPass& pass,
                    const Baselines& baselines, const patching::Chunk& chunk, bool keep_state);

}  // namespace lamina::feature_circuit
