#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/site.h"

namespace lamina {

/// Means of sites over reference prompts: pooled over all their tokens, or one mean per position.
/// Sums in double, in the order of the prompts and tokens.
class MeanValues {
 public:
  /// `memory`: bytes a batch of the reference run may take. UsageError for attention sites that are
  /// pooled and for prompts of different lengths that are not.
  MeanValues(Forward& forward, std::span<const std::vector<std::int32_t>> reference,
             std::span<const Site> sites, bool per_position, std::uint64_t memory);

  /// [shape.row()]; `position` is ignored when pooled.
  std::span<const float> row(Site site, std::int64_t position) const;
  /// [keys] of an attention site.
  std::span<const float> row(Site site, std::int64_t head, std::int64_t query) const;
  /// Tokens every prompt must have; 0 if pooled.
  std::int64_t length() const { return length_; }

 private:
  std::int64_t length_ = 0;
  std::map<Site, std::vector<float>> means_;
  std::map<Site, std::int64_t> widths_;
};

}  // namespace lamina
