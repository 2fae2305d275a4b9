#include "engine/hook_table.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::size_t kKinds = static_cast<std::size_t>(SiteKind::ln_final_normalized) + 1;

std::size_t slot(SiteKind kind, std::int32_t layer) {
  return static_cast<std::size_t>(layer + 1) * kKinds + static_cast<std::size_t>(kind);
}

}  // namespace

void Hooks::read(Site site, HookFunction function) {
  entries_.push_back({site, std::move(function), false});
}

void Hooks::write(Site site, HookFunction function) {
  entries_.push_back({site, std::move(function), true});
}

HookTable::HookTable(const Hooks& hooks, const ModelConfig& config)
    : config_(&config), table_((static_cast<std::size_t>(config.n_layers) + 1) * kKinds) {
  if (hooks.empty()) return;
  const std::vector<Site> valid = all_sites(config);
  for (const Hooks::Entry& entry : hooks.entries()) {
    if (std::find(valid.begin(), valid.end(), entry.site) == valid.end()) {
      // match_sites knows the nearest names; it always throws for a site that is not there.
      const std::string name = site_name(entry.site);
      match_sites(std::span(&name, 1), config);
    }
    table_[slot(entry.site.kind, entry.site.layer)].push_back(&entry);
  }
}

const HookTable::List& HookTable::at(SiteKind kind, std::int32_t layer) const {
  return table_[slot(kind, layer)];
}

bool HookTable::writes(SiteKind kind, std::int32_t layer) const {
  const List& list = at(kind, layer);
  return std::any_of(list.begin(), list.end(), [](const Hooks::Entry* e) { return e->writes; });
}

bool HookTable::wanted_in(std::int32_t layer) const {
  const auto first = table_.begin() + static_cast<std::ptrdiff_t>(slot(SiteKind{}, layer));
  return std::any_of(first, first + kKinds, [](const List& list) { return !list.empty(); });
}

void HookTable::fire(SiteKind kind, std::int32_t layer, const Batch& batch,
                     std::span<float> values) const {
  for (const Hooks::Entry* entry : at(kind, layer)) {
    SiteView view{.site = entry->site,
                  .shape = site_shape(entry->site, *config_),
                  .batch = batch,
                  .values = values};
    entry->function(view);
  }
}

void HookTable::fire_attention(SiteKind kind, std::int32_t layer, const Batch& batch,
                               std::int64_t prompt, std::int64_t queries, std::int64_t keys,
                               std::span<float> values) const {
  for (const Hooks::Entry* entry : at(kind, layer)) {
    SiteView view{.site = entry->site,
                  .shape = site_shape(entry->site, *config_),
                  .batch = batch,
                  .values = values,
                  .prompt = prompt,
                  .queries = queries,
                  .keys = keys};
    entry->function(view);
  }
}

}  // namespace lamina
