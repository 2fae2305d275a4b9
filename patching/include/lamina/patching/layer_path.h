#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/forward.h"

namespace lamina {

/// The layers that a pass runs, in order; layers may be missing, repeated and out of order.
using LayerPath = std::vector<Step>;

/// Most steps a path may have.
inline constexpr std::int64_t kMaxSteps = 4096;

/// Reads a path as it is typed: items separated by commas, each a layer or a range of layers
/// ("0-5"; "5-3" runs downwards), optionally followed by `a` (attention alone) or `m` (MLP alone),
/// optionally by `*N` (the item N times). "0-5,7,7,9a,10m", "0-9,10-12*2,13-29".
/// UsageError names the path, the character (counted from 1), what was expected and found: syntax,
/// layers that the model lacks, m in a model without MLPs, more than kMaxSteps steps, an empty
/// path.
LayerPath parse_layer_path(std::string_view text, const ModelConfig& config);

/// The shortest text that parse_layer_path reads as this path; steps that run neither sublayer are
/// left out. "nothing" if no step is left.
std::string layer_path_text(std::span<const Step> path, const ModelConfig& config);

/// Layers that a path runs; a sublayer alone counts half (whole in a model without MLPs).
double layers_used(std::span<const Step> path, const ModelConfig& config);

/// One attention or MLP sublayer of the model.
struct Sublayer {
  std::int32_t layer = 0;
  bool mlp = false;
  auto operator<=>(const Sublayer&) const = default;
};

/// "12a", "12m".
std::string sublayer_name(Sublayer sublayer);
/// Every sublayer in the order of the pass.
std::vector<Sublayer> all_sublayers(const ModelConfig& config);
/// Sublayers separated by commas: "12a,3m". UsageError as for parse_layer_path, and for repeats.
std::vector<Sublayer> parse_sublayers(std::string_view text, const ModelConfig& config);
/// The whole model without these. A layer that loses both keeps its step, which then changes
/// nothing. Removing is the same as writing zeros to attn_out or mlp_out, except in models that
/// normalise after each addition: there the sublayer's norm goes with it.
LayerPath path_without(std::span<const Sublayer> removed, const ModelConfig& config);

}  // namespace lamina
