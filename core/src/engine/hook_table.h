#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/forward.h"

namespace lamina {

/// The hooks of one pass, looked up by site in constant time.
class HookTable {
 public:
  /// Throws UsageError if a hooked site does not exist in this model.
  HookTable(const Hooks& hooks, const ModelConfig& config);

  bool wanted(SiteKind kind, std::int32_t layer) const { return !at(kind, layer).empty(); }
  bool writes(SiteKind kind, std::int32_t layer) const;
  /// Whether any site of this layer is hooked.
  bool wanted_in(std::int32_t layer) const;

  /// Fires the hooks of a token site; `values` is [tokens, row].
  void fire(SiteKind kind, std::int32_t layer, const Batch& batch, std::span<float> values) const;
  /// Fires the hooks of an attention site for one prompt; `values` is [heads, queries, keys].
  void fire_attention(SiteKind kind, std::int32_t layer, const Batch& batch, std::int64_t prompt,
                      std::int64_t queries, std::int64_t keys, std::span<float> values) const;

 private:
  using List = std::vector<const Hooks::Entry*>;
  const List& at(SiteKind kind, std::int32_t layer) const;

  const ModelConfig* config_;
  std::vector<List> table_;  // [layer + 1][kind]
};

}  // namespace lamina
