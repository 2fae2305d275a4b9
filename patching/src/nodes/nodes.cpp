#include "nodes/nodes.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

bool is_mlp_row(SiteKind kind) {
  return kind == SiteKind::mlp_pre || kind == SiteKind::mlp_pre_linear ||
         kind == SiteKind::mlp_post;
}

bool norm_after_block(const ModelConfig& config) {
  return config.norm != NormKind::none && config.norm_place == NormPlace::post;
}

std::int64_t head_count(const SiteShape& shape, const ModelConfig& config) {
  return shape.attention ? config.n_heads : shape.heads;
}

}  // namespace

NodeSlice node_slice(const Node& node, const ModelConfig& config) {
  const SiteShape shape = site_shape(node.site, config);
  if (node.head >= 0) return {node.head * shape.width, shape.width};
  if (node.neuron >= 0) return {node.neuron, 1};
  return {0, shape.row()};
}

HeadRange node_heads(const Node& node, const ModelConfig& config) {
  if (node.head >= 0) return {node.head, node.head + 1};
  return {0, config.n_heads};
}

void check_nodes(std::span<const Node> nodes, const ModelConfig& config, std::int64_t longest) {
  const std::vector<Site> sites = all_sites(config);
  Site checked{SiteKind::embed, -2};
  for (const Node& node : nodes) {
    if (node.site != checked) {
      if (std::find(sites.begin(), sites.end(), node.site) == sites.end()) {
        const std::string name = site_name(node.site);
        match_sites(std::span(&name, 1), config);  // always throws: it knows the nearest names
      }
      start_layer(latest_equal(node.site, config), config);
      checked = node.site;
    }
    const SiteShape shape = site_shape(node.site, config);
    const std::int64_t heads = head_count(shape, config);
    if (node.head >= 0 && heads == 0) {
      fail_usage("{} has no heads, head {} was asked for", site_name(node.site), node.head);
    }
    if (node.head < -1 || node.head >= std::max<std::int64_t>(heads, 1)) {
      fail_usage("head {} of {} was asked for; it has {}", node.head, site_name(node.site), heads);
    }
    if (node.neuron >= 0 && !is_mlp_row(node.site.kind)) {
      fail_usage("{} has no neurons, neuron {} was asked for", site_name(node.site), node.neuron);
    }
    if (node.neuron < -1 || node.neuron >= std::max<std::int64_t>(config.d_mlp, 1)) {
      fail_usage("neuron {} of {} was asked for; it has {}", node.neuron, site_name(node.site),
                 config.d_mlp);
    }
    if (node.position < -1 || node.position >= longest) {
      fail_usage("position {} of {} was asked for; the longest prompt has {} tokens", node.position,
                 site_name(node.site), longest);
    }
  }
}

bool behind_keys(SiteKind kind) {
  switch (kind) {
    case SiteKind::embed:
    case SiteKind::pos_embed:
    case SiteKind::resid_pre:
    case SiteKind::ln1_scale:
    case SiteKind::ln1_normalized:
    case SiteKind::k:
    case SiteKind::rot_k:
    case SiteKind::v:
      return false;
    default:
      return true;
  }
}

Site latest_equal(Site site, const ModelConfig& config) {
  if (site.kind == SiteKind::resid_post && site.layer + 1 < config.n_layers &&
      !norm_after_block(config)) {
    return {SiteKind::resid_pre, site.layer + 1};
  }
  if (site.kind == SiteKind::embed && config.positions != Positions::learned) {
    return {SiteKind::resid_pre, 0};
  }
  return site;
}

std::int32_t start_layer(Site site, const ModelConfig& config) {
  if (site.kind == SiteKind::embed || site.kind == SiteKind::pos_embed) {
    fail_usage("{} cannot be patched in this model: positions are added to it; patch resid_pre:0",
               site_name(site));
  }
  const auto layers = static_cast<std::int32_t>(config.n_layers);
  if (site.layer < 0) return layers;  // the final norm's sites
  if (site.kind == SiteKind::resid_post && site.layer + 1 == layers && !norm_after_block(config)) {
    return layers;
  }
  return site.layer;
}

}  // namespace lamina
