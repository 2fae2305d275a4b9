#include "feature_circuit/gradients.h"

namespace lamina::feature_circuit {

using patching::Chunk;

SiteGradients::Values SiteGradients::of(FeatureMethod method, const Chunk& chunk,
                                        const RunState& state, std::span<const State> clean,
                                        std::span<const State> baseline) {
  if (method == FeatureMethod::ig) return along(chunk, state, clean, baseline);
  return at_clean(chunk, method == FeatureMethod::relp ? options_.relp_rules : BackwardRules{});
}

SiteGradients::Values SiteGradients::at_clean(const Chunk& chunk, const BackwardRules& rules) {
  Values out(study_.dictionaries.size());
  Hooks hooks;
  for (std::size_t d = 0; d < out.size(); ++d) {
    hooks.read(site(d), [&values = out[d]](SiteView& view) {
      values.assign(view.values.begin(), view.values.end());
    });
  }
  pass_.run(chunk, chunk.base, {}, rules, hooks);
  return out;
}

// Since decoding is affine, features and error on their way from clean to baseline move the site
// along a line too.
SiteGradients::Values SiteGradients::along(const Chunk& chunk, const RunState& state,
                                           std::span<const State> clean,
                                           std::span<const State> baseline) {
  Values out;
  const std::vector<Step> steps = all_steps(study_.forward.model().config());
  for (std::size_t d = 0; d < study_.dictionaries.size(); ++d) {
    const std::span<const float> from = clean[d].site, to = baseline[d].site;
    std::vector<double>& sum = out.emplace_back(from.size());
    const auto layer = size(site(d).layer);
    for (std::int64_t k = 0; k < options_.ig_steps; ++k) {
      const double alpha = static_cast<double>(k) / static_cast<double>(options_.ig_steps);
      Hooks writing, reading;
      writing.write(site(d), [&](SiteView& view) {
        for (std::size_t i = 0; i < to.size(); ++i) {
          view.values[i] =
              static_cast<float>(double{from[i]} + alpha * (double{to[i]} - double{from[i]}));
        }
      });
      reading.read(site(d), [&](SiteView& view) {
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += double{view.values[i]};
      });
      pass_.run(chunk, chunk.base, writing, {}, reading, std::span(steps).subspan(layer),
                state.resid[layer]);
    }
    for (double& g : sum) g /= static_cast<double>(options_.ig_steps);
  }
  return out;
}

PlainRuns run_plain(const FeatureStudy& study, patching::GradientPass& pass,
                    const Baselines& baselines, const Chunk& chunk, bool keep_state) {
  PlainRuns runs;
  const Model& model = study.forward.model();
  std::vector<State> corrupted;
  {
    SiteCopies copies(model, study.dictionaries);
    Hooks hooks;
    if (baselines.needs_corrupted()) copies.watch(hooks);
    runs.corrupted_metric = pass.metric_of(chunk, chunk.other, hooks);
    if (baselines.needs_corrupted()) corrupted = copies.states();
  }
  SiteCopies copies(model, study.dictionaries);
  Hooks hooks;
  copies.watch(hooks);
  runs.clean_metric = pass.metric_of(chunk, chunk.base, hooks, keep_state ? &runs.state : nullptr);
  runs.clean = copies.states();
  runs.baseline = baselines.of(chunk, corrupted);
  return runs;
}

}  // namespace lamina::feature_circuit
