#include "nodes/mean_values.h"

#include <algorithm>

#include "exact/patched_runs.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

void add_to(std::span<double> sums, std::span<const float> values) {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(values[i]);
}

}  // namespace

MeanValues::MeanValues(Forward& forward, std::span<const std::vector<std::int32_t>> reference,
                       std::span<const Site> sites, bool per_position, std::uint64_t memory) {
  const ModelConfig& config = forward.model().config();
  if (reference.empty()) fail_usage("a mean needs at least one reference prompt");
  std::int64_t tokens = 0;
  for (const auto& prompt : reference) tokens += static_cast<std::int64_t>(prompt.size());
  if (per_position) {
    length_ = static_cast<std::int64_t>(reference.front().size());
    for (const auto& prompt : reference) {
      if (static_cast<std::int64_t>(prompt.size()) != length_) {
        fail_usage("means per position need reference prompts of one length; got {} and {} tokens",
                   length_, prompt.size());
      }
    }
  }
  std::map<Site, std::vector<double>> sums;
  Hooks hooks;
  for (const Site site : sites) {
    const SiteShape shape = site_shape(site, config);
    if (shape.attention && !per_position) {
      fail_usage("a mean of {} needs one mean per position", site_name(site));
    }
    const std::int64_t width = shape.attention ? config.n_heads * length_ : shape.row();
    widths_[site] = shape.attention ? length_ : width;
    std::vector<double>& sum = sums[site];
    sum.assign(static_cast<std::size_t>(width * (per_position ? length_ : 1)), 0.0);
    hooks.read(site, [&sum, width, per_position, length = length_](SiteView& view) {
      if (view.shape.attention) return add_to(sum, view.values);
      for (std::int64_t t = 0; t < view.batch.tokens(); ++t) {
        const std::int64_t to = per_position ? t % length : 0;
        add_to(std::span(sum).subspan(static_cast<std::size_t>(to * width),
                                      static_cast<std::size_t>(width)),
               view.values.subspan(static_cast<std::size_t>(t * width),
                                   static_cast<std::size_t>(width)));
      }
    });
  }
  const std::uint64_t row_bytes = PatchedRuns::bytes_per_row(config, true);
  for (std::size_t i = 0; i < reference.size();) {
    Batch batch;
    while (i < reference.size() &&
           (batch.prompts() == 0 ||
            (static_cast<std::uint64_t>(batch.tokens()) + reference[i].size()) * row_bytes <=
                memory)) {
      batch.add(reference[i++]);
    }
    forward.run(batch, hooks);
  }
  const auto count =
      static_cast<double>(per_position ? static_cast<std::int64_t>(reference.size()) : tokens);
  for (const auto& [site, sum] : sums) {
    std::vector<float>& mean = means_[site];
    for (const double s : sum) mean.push_back(static_cast<float>(s / count));
  }
}

std::span<const float> MeanValues::row(Site site, std::int64_t position) const {
  const auto width = static_cast<std::size_t>(widths_.at(site));
  const std::size_t at = length_ > 0 ? static_cast<std::size_t>(position) * width : 0;
  return std::span(means_.at(site)).subspan(at, width);
}

std::span<const float> MeanValues::row(Site site, std::int64_t head, std::int64_t query) const {
  return std::span(means_.at(site))
      .subspan(static_cast<std::size_t>((head * length_ + query) * length_),
               static_cast<std::size_t>(length_));
}

}  // namespace lamina
