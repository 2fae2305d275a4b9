#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/forward.h"
#include "lamina/core/site.h"

namespace lamina {

/// The values of some sites in one pass over whole prompts.
class SiteValues {
 public:
  SiteValues(const ModelConfig& config, std::span<const Site> sites, const Batch& batch);
  /// Adds the reading hooks that fill it; it must not move until the pass is done.
  void attach(Hooks& hooks);

  /// One token's row [shape.row()] of a token site.
  std::span<const float> row(Site site, std::int64_t prompt, std::int64_t position) const;
  /// One query's row [keys] of an attention site; keys = the prompt's length.
  std::span<const float> row(Site site, std::int64_t prompt, std::int64_t head,
                             std::int64_t query) const;
  /// All rows of all prompts, [tokens, shape.row()], of a token site.
  std::span<const float> all(Site site) const;

  /// Bytes that this site takes for prompts of these lengths.
  static std::uint64_t bytes(Site site, const ModelConfig& config,
                             std::span<const std::int64_t> lengths);

 private:
  struct Values {
    SiteShape shape;
    std::vector<float> values;
    std::vector<std::int64_t> offsets;  // attention sites, [prompt + 1]
  };
  const Values& at(Site site) const;

  std::vector<std::int64_t> offsets_;  // [prompt + 1], in tokens
  std::int64_t heads_;
  std::map<Site, Values> sites_;
};

}  // namespace lamina
