// How much of the metric relevance accounts for, layer by layer.

#include <algorithm>

#include "attribution_pass.h"

namespace lamina {

Conservation conservation(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                          const AttributionOptions& options) {
  patching::check_request(pairs, metric, options);
  const ModelConfig& config = forward.model().config();
  std::vector<Site> sites{{.kind = SiteKind::embed, .layer = -1}};
  if (config.positions == Positions::learned)
    sites.push_back({.kind = SiteKind::pos_embed, .layer = -1});
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    sites.push_back({.kind = SiteKind::resid_pre, .layer = l});
  }
  Conservation out;
  out.metric.resize(pairs.size());
  out.embed.resize(pairs.size());
  out.resid_pre.resize(static_cast<std::size_t>(config.n_layers) * pairs.size());
  patching::GradientPass pass(forward, metric);
  for (const patching::Chunk& chunk :
       patching::make_chunks(pairs, options.direction, options.batch_tokens)) {
    const Batch& batch = options.gradient_at_other ? chunk.other : chunk.base;
    patching::Recorded values;
    Hooks recording, gradients;
    patching::record(recording, sites, batch.prompts(), values);
    for (const Site site : sites) {
      double* to = site.layer < 0
                       ? out.embed.data()
                       : out.resid_pre.data() + static_cast<std::size_t>(site.layer) * pairs.size();
      gradients.read(site, [&chunk, &batch, &values, site, to](SiteView& view) {
        const std::vector<float>& x = values.at(site).blocks[0];
        const auto row = static_cast<std::size_t>(view.shape.row());
        for (std::size_t p = 0; p < chunk.pairs.size(); ++p) {
          const std::size_t end = static_cast<std::size_t>(batch.offsets[p + 1]) * row;
          double sum = 0.0;
          for (std::size_t i = static_cast<std::size_t>(batch.offsets[p]) * row; i < end; ++i) {
            sum += static_cast<double>(x[i]) * static_cast<double>(view.values[i]);
          }
          to[chunk.first + p] += sum;
        }
      });
    }
    const std::vector<double> metrics = pass.run(chunk, batch, recording, options.rules, gradients);
    std::copy(metrics.begin(), metrics.end(),
              out.metric.begin() + static_cast<std::ptrdiff_t>(chunk.first));
  }
  return out;
}

}  // namespace lamina
