#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"

namespace lamina {

/// Every kind of place in the forward pass that can be read and written. Names and meaning are
/// TransformerLens' (see docs/sites.md). In firing order within a block.
enum class SiteKind : std::uint8_t {
  embed,
  pos_embed,
  embed_ln_scale,
  embed_ln_normalized,
  resid_pre,
  ln1_scale,
  ln1_normalized,
  q,
  k,
  v,
  rot_q,
  rot_k,
  attn_scores,
  pattern,
  z,
  result,
  ln1_post_scale,
  ln1_post_normalized,
  attn_out,
  resid_mid,
  normalized_resid_mid,
  ln2_scale,
  ln2_normalized,
  mlp_pre,
  mlp_pre_linear,
  mlp_post,
  ln2_post_scale,
  ln2_post_normalized,
  mlp_out,
  resid_post,
  normalized_resid_post,
  ln_final_scale,
  ln_final_normalized,
};

/// One place: a kind, and a layer (−1 for the embeddings and the final norm).
struct Site {
  SiteKind kind = SiteKind::resid_post;
  std::int32_t layer = -1;
  auto operator<=>(const Site&) const = default;
};

/// How a site's values are laid out.
struct SiteShape {
  bool attention = false;  // [head, query, key] per prompt; otherwise one row per token
  std::int64_t heads = 0;  // 0: rows are plain vectors [width]; otherwise [heads, width]
  std::int64_t width = 0;  // d_model, d_head, d_mlp or 1; unused for attention sites
  /// Values of one token's row (not for attention sites).
  std::int64_t row() const { return (heads > 0 ? heads : 1) * width; }
};

/// "blocks.3.hook_resid_post", "hook_embed", "ln_final.hook_scale" …
std::string site_name(Site site);
SiteShape site_shape(Site site, const ModelConfig& config);
/// One sentence that says exactly what the value is.
std::string site_semantics(Site site, const ModelConfig& config);
/// Names of the dimensions after the token dimension: {"d_model"}, {"head", "d_head"} …
std::vector<std::string> site_dimensions(Site site);

/// Every site this model has, in firing order.
std::vector<Site> all_sites(const ModelConfig& config);

/// The site with this name in this model. Accepts TransformerLens names, TransformerLens 4 aliases
/// and shorthand ("resid_post:3", "z:3"). Throws UsageError that lists the nearest valid names.
Site parse_site(std::string_view name, const ModelConfig& config);

/// The sites that match any of the patterns: names, globs ("blocks.*.hook_resid_post"), shorthand
/// ("resid_post" = all layers, "z:3", "z:0-5", "resid_post:-1" = the last layer). In firing order,
/// without repeats. A pattern that matches nothing is a UsageError that lists the nearest names.
std::vector<Site> match_sites(std::span<const std::string> patterns, const ModelConfig& config);

}  // namespace lamina
