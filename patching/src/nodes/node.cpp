#include "lamina/patching/node.h"

#include <fmt/format.h>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::int64_t kMaxNodes = std::int64_t{1} << 26;

bool has_neurons(SiteKind kind) {
  return kind == SiteKind::mlp_pre || kind == SiteKind::mlp_pre_linear ||
         kind == SiteKind::mlp_post;
}

}  // namespace

std::string node_name(const Node& node) {
  std::string name = site_name(node.site);
  if (node.position >= 0) name += fmt::format("[{}]", node.position);
  if (node.head >= 0) name += fmt::format(".head{}", node.head);
  if (node.neuron >= 0) name += fmt::format(".neuron{}", node.neuron);
  return name;
}

std::vector<Node> nodes_of(std::span<const Site> sites, const Split& split, std::int64_t positions,
                           const ModelConfig& config) {
  if (split.position && positions < 1) {
    fail_usage("nodes per position: at least 1 position expected, found {}", positions);
  }
  std::vector<Node> nodes;
  for (Site site : sites) {
    const std::string name = site_name(site);
    match_sites(std::span(&name, 1), config);  // throws, with the nearest names
    const SiteShape shape = site_shape(site, config);
    if (split.head && shape.heads == 0) {
      fail_usage("site {} has no heads to split into (q, k, v, z, result, pattern … have)", name);
    }
    if (split.neuron && !has_neurons(site.kind)) {
      fail_usage("site {} has no neurons to split into (pre, pre_linear and post have)", name);
    }
    const std::int64_t n_positions = split.position ? positions : 1;
    const std::int64_t n_heads = split.head ? shape.heads : 1;
    const std::int64_t n_neurons = split.neuron ? shape.width : 1;
    // Divisions: the product of three hostile numbers may not fit.
    const std::int64_t room = kMaxNodes - static_cast<std::int64_t>(nodes.size());
    if (n_positions > room / n_heads / n_neurons) {
      fail_usage("site {}: {} positions × {} heads × {} neurons make more than {} nodes in all",
                 name, n_positions, n_heads, n_neurons, kMaxNodes);
    }
    for (std::int64_t p = 0; p < n_positions; ++p) {
      for (std::int64_t h = 0; h < n_heads; ++h) {
        for (std::int64_t n = 0; n < n_neurons; ++n) {
          nodes.push_back(
              {site, split.position ? p : -1, split.head ? h : -1, split.neuron ? n : -1});
        }
      }
    }
  }
  return nodes;
}

}  // namespace lamina
