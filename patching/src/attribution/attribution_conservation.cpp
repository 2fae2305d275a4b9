// How much of the metric relevance accounts for, layer by layer.

#include "attribution/attribution_conservation.h"

#include <algorithm>

namespace lamina::patching {

ConservationSums::ConservationSums(const ModelConfig& config, std::size_t pairs) : pairs_(pairs) {
  sites_.push_back({.kind = SiteKind::embed, .layer = -1});
  if (config.positions == Positions::learned) {
    sites_.push_back({.kind = SiteKind::pos_embed, .layer = -1});
  }
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    sites_.push_back({.kind = SiteKind::resid_pre, .layer = l});
  }
  sums_.metric.resize(pairs);
  sums_.embed.resize(pairs);
  sums_.resid_pre.resize(static_cast<std::size_t>(config.n_layers) * pairs);
}

void ConservationSums::watch(const Chunk& chunk, const Batch& batch, Hooks& recording,
                             Hooks& gradients) {
  values_.clear();
  record(recording, sites_, batch.prompts(), values_);
  for (const Site site : sites_) {
    double* to = site.layer < 0
                     ? sums_.embed.data()
                     : sums_.resid_pre.data() + static_cast<std::size_t>(site.layer) * pairs_;
    gradients.read(site, [this, &chunk, &batch, site, to](SiteView& view) {
      const std::vector<float>& x = values_.at(site).blocks[0];
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
}

void ConservationSums::found(const Chunk& chunk, std::span<const double> metric) {
  std::copy(metric.begin(), metric.end(),
            sums_.metric.begin() + static_cast<std::ptrdiff_t>(chunk.first));
}

}  // namespace lamina::patching
