#include "nodes/site_values.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {

SiteValues::SiteValues(const ModelConfig& config, std::span<const Site> sites, const Batch& batch)
    : offsets_(batch.offsets), heads_(config.n_heads) {
  for (const Site site : sites) {
    Values& v = sites_[site];
    v.shape = site_shape(site, config);
    if (!v.shape.attention) {
      v.values.resize(static_cast<std::size_t>(batch.tokens() * v.shape.row()));
      continue;
    }
    v.offsets = {0};
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      v.offsets.push_back(v.offsets.back() + heads_ * batch.length(p) * batch.length(p));
    }
    v.values.resize(static_cast<std::size_t>(v.offsets.back()));
  }
}

void SiteValues::attach(Hooks& hooks) {
  for (auto& [site, values] : sites_) {
    hooks.read(site, [v = &values](SiteView& view) {
      const std::int64_t to = view.shape.attention ? v->offsets[view.prompt] : 0;
      std::copy(view.values.begin(), view.values.end(), v->values.begin() + to);
    });
  }
}

const SiteValues::Values& SiteValues::at(Site site) const {
  const auto found = sites_.find(site);
  if (found == sites_.end()) fail("{} was not recorded", site_name(site));
  return found->second;
}

std::span<const float> SiteValues::row(Site site, std::int64_t prompt,
                                       std::int64_t position) const {
  const Values& v = at(site);
  const std::int64_t width = v.shape.row();
  return std::span(v.values).subspan(
      static_cast<std::size_t>((offsets_[prompt] + position) * width),
      static_cast<std::size_t>(width));
}

std::span<const float> SiteValues::row(Site site, std::int64_t prompt, std::int64_t head,
                                       std::int64_t query) const {
  const Values& v = at(site);
  const std::int64_t length = offsets_[prompt + 1] - offsets_[prompt];
  return std::span(v.values).subspan(
      static_cast<std::size_t>(v.offsets[prompt] + (head * length + query) * length),
      static_cast<std::size_t>(length));
}

std::span<const float> SiteValues::all(Site site) const {
  return at(site).values;
}

std::uint64_t SiteValues::bytes(Site site, const ModelConfig& config,
                                std::span<const std::int64_t> lengths) {
  const SiteShape shape = site_shape(site, config);
  std::uint64_t count = 0;
  for (const std::int64_t n : lengths) {
    count += static_cast<std::uint64_t>(shape.attention ? config.n_heads * n * n : n * shape.row());
  }
  return count * sizeof(float);
}

}  // namespace lamina
