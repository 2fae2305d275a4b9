// Attribution patching, integrated gradients and relevance patching: one backward pass scores the
// nodes of every site. See docs/patching-methods.md for the formulas and where they come from.

#include "lamina/patching/attribution.h"

#include <algorithm>
#include <map>

#include "attribution/attribution_conservation.h"
#include "attribution/attribution_scores.h"
#include "lamina/core/error.h"
#include "lamina/patching/gradient_pass.h"

namespace lamina {
namespace {

using patching::Chunk;
using patching::GradientPass;
using patching::record;
using patching::Recorded;
using patching::Scores;
using patching::SiteNodes;
using patching::Values;

void check_request(std::span<const Pair> pairs, const Metric& metric,
                   const AttributionOptions& options) {
  if (metric.pairs() != static_cast<std::int64_t>(pairs.size())) {
    fail_usage("a metric of {} pairs was given for {} pairs", metric.pairs(), pairs.size());
  }
  if (options.ig_steps < 0) fail_usage("integrated gradients with {} steps", options.ig_steps);
  if (options.conservation && options.ig_steps > 0) {
    fail_usage("relevance is summed at one point; integrated gradients have {}", options.ig_steps);
  }
  if (options.batch_tokens < 1) fail_usage("batches of {} tokens", options.batch_tokens);
}

// One call of attribute().
class Attribution {
 public:
  Attribution(Forward& forward, const Metric& metric, std::span<const SiteNodes> groups,
              const AttributionOptions& options, Scores& scores, patching::ConservationSums* sums,
              Attributed& out)
      : config_(forward.model().config()),
        groups_(groups),
        options_(options),
        scores_(scores),
        sums_(sums),
        out_(out),
        pass_(forward, metric, options.backward) {
    for (const SiteNodes& group : groups) sites_.push_back(group.site);
  }

  void run(const Chunk& chunk) {
    if (options_.ig_steps == 0) {
      at_one_point(chunk);
    } else if (options_.ig_path == IgPath::inputs) {
      along_inputs(chunk);
    } else {
      along_nodes(chunk);
    }
  }

 private:
  // Records the sites in a plain run; returns the metric.
  std::vector<double> run_plain(const Chunk& chunk, const Batch& batch, std::span<const Site> sites,
                                Recorded& out, RunState* keep = nullptr) {
    Hooks hooks;
    record(hooks, sites, batch.prompts(), out);
    return pass_.metric_of(chunk, batch, hooks, keep);
  }

  // Metrics of the two runs.
  void found(const Chunk& chunk, const std::vector<double>& base,
             const std::vector<double>& other) {
    const auto at = static_cast<std::ptrdiff_t>(chunk.first);
    std::copy(base.begin(), base.end(), out_.base.begin() + at);
    std::copy(other.begin(), other.end(), out_.other.begin() + at);
  }

  std::map<Site, Values> differences(const Chunk& chunk, Recorded& base, Recorded& other) const {
    std::map<Site, Values> out;
    for (auto& [site, values] : base) {
      out[site] = patching::difference(chunk, site_shape(site, config_), values, other.at(site));
      values = {};  // held once, not three times
      other.at(site) = {};
    }
    return out;
  }

  void at_one_point(const Chunk& chunk) {
    const bool at_other = options_.gradient_at_other;
    Recorded base, other;
    const std::vector<double> there =
        run_plain(chunk, at_other ? chunk.base : chunk.other, sites_, at_other ? base : other);
    Hooks recording, gradients;
    record(recording, sites_, chunk.base.prompts(), at_other ? other : base);
    std::map<Site, Values> difference;
    for (const SiteNodes& group : groups_) {
      gradients.read(group.site, [&](SiteView& view) {
        if (difference.empty()) difference = differences(chunk, base, other);
        scores_.add(chunk, group, difference.at(group.site), view,
                    at_other ? chunk.other_rows : chunk.base_rows, 1.0);
      });
    }
    const Batch& batch = at_other ? chunk.other : chunk.base;
    if (sums_ != nullptr) sums_->watch(chunk, batch, recording, gradients);
    const std::vector<double> here = pass_.run(chunk, batch, recording, options_.rules, gradients);
    if (sums_ != nullptr) sums_->found(chunk, here);
    found(chunk, at_other ? there : here, at_other ? here : there);
  }

  void along_inputs(const Chunk& chunk) {
    const Site embedding{.kind = SiteKind::embed, .layer = -1};
    std::vector<Site> sites = sites_;
    if (std::find(sites.begin(), sites.end(), embedding) == sites.end()) sites.push_back(embedding);
    Recorded base, other;
    const std::vector<double> there = run_plain(chunk, chunk.other, sites, other);
    found(chunk, run_plain(chunk, chunk.base, sites, base), there);
    const std::map<Site, Values> difference = differences(chunk, base, other);
    for (std::int64_t k = 0; k < options_.ig_steps; ++k) {
      Hooks writing;
      patching::interpolate(writing, embedding, chunk, difference.at(embedding), alpha(k));
      Hooks gradients;
      for (const SiteNodes& group : groups_) read_gradient(gradients, chunk, group, difference);
      pass_.run(chunk, chunk.base, writing, options_.rules, gradients);
    }
  }

  void along_nodes(const Chunk& chunk) {
    Recorded base, other;
    const std::vector<double> there = run_plain(chunk, chunk.other, sites_, other);
    RunState state;
    found(chunk, run_plain(chunk, chunk.base, sites_, base, &state), there);
    const std::map<Site, Values> difference = differences(chunk, base, other);
    const std::vector<Step> all = all_steps(config_);
    for (const SiteNodes& group : groups_) {
      // What stands before the site's layer is the base run's and need not run again. The final
      // norm comes after every layer: the last one runs again for it.
      const bool embedding =
          group.site.kind == SiteKind::embed || group.site.kind == SiteKind::pos_embed;
      const std::size_t layer =
          group.site.layer >= 0 ? static_cast<std::size_t>(group.site.layer) : all.size() - 1;
      std::span<const Step> steps;
      std::span<const float> start;
      if (!embedding) {
        steps = std::span(all).subspan(layer);
        start = state.resid[layer];
      }
      for (std::int64_t k = 0; k < options_.ig_steps; ++k) {
        Hooks writing, gradients;
        patching::interpolate(writing, group.site, chunk, difference.at(group.site), alpha(k));
        read_gradient(gradients, chunk, group, difference);
        pass_.run(chunk, chunk.base, writing, options_.rules, gradients, steps, start);
      }
    }
  }

  double alpha(std::int64_t k) const {
    return static_cast<double>(k) / static_cast<double>(options_.ig_steps);
  }

  void read_gradient(Hooks& hooks, const Chunk& chunk, const SiteNodes& group,
                     const std::map<Site, Values>& difference) {
    const double weight = 1.0 / static_cast<double>(options_.ig_steps);
    const Values& values = difference.at(group.site);
    hooks.read(group.site, [this, &chunk, &group, &values, weight](SiteView& view) {
      scores_.add(chunk, group, values, view, chunk.base_rows, weight);
    });
  }

  const ModelConfig& config_;
  std::span<const SiteNodes> groups_;
  std::vector<Site> sites_;
  const AttributionOptions& options_;
  Scores& scores_;
  patching::ConservationSums* sums_;  // nullptr: not asked for
  Attributed& out_;
  GradientPass pass_;
};

}  // namespace

Attributed attribute_with_runs(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                               std::span<const Node> nodes, const AttributionOptions& options) {
  check_request(pairs, metric, options);
  const std::vector<SiteNodes> groups =
      patching::group_by_site(nodes, pairs, forward.model().config());
  Scores scores(nodes, pairs.size());
  Attributed out;
  out.base.resize(pairs.size());
  out.other.resize(pairs.size());
  patching::ConservationSums sums(forward.model().config(),
                                  options.conservation ? pairs.size() : 0);
  Attribution attribution(forward, metric, groups, options, scores,
                          options.conservation ? &sums : nullptr, out);
  const auto total = static_cast<std::int64_t>(pairs.size());
  for (const Chunk& chunk : patching::make_chunks(pairs, options.direction, options.batch_tokens)) {
    attribution.run(chunk);
    if (options.progress) {
      options.progress(static_cast<std::int64_t>(chunk.first + chunk.pairs.size()), total);
    }
  }
  out.scores = scores.take(pairs);
  if (options.conservation) out.conservation = sums.take();
  return out;
}

std::vector<double> attribute(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                              std::span<const Node> nodes, const AttributionOptions& options) {
  return attribute_with_runs(forward, pairs, metric, nodes, options).scores;
}

}  // namespace lamina
