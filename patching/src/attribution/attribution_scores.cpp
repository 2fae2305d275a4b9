#include "attribution/attribution_scores.h"

#include <algorithm>
#include <limits>
#include <map>

#include "lamina/core/error.h"

namespace lamina::patching {
namespace {

bool has_neurons(SiteKind kind) {
  return kind == SiteKind::mlp_pre || kind == SiteKind::mlp_pre_linear ||
         kind == SiteKind::mlp_post;
}

void check_node(const Node& node, const SiteShape& shape, const ModelConfig& config) {
  const auto check = [&](const char* what, std::int64_t index, std::int64_t count) {
    if (index < -1 || (index >= 0 && index >= count)) {
      fail_usage("{} {} of {} was asked for; it has {}", what, index, site_name(node.site), count);
    }
  };
  check("head", node.head, shape.attention ? config.n_heads : shape.heads);
  check("neuron", node.neuron, has_neurons(node.site.kind) ? shape.width : 0);
  if (node.position < -1) {
    fail_usage("position {} of {} was asked for", node.position, site_name(node.site));
  }
}

// First and one past the last of `count`, or the one that is named.
struct Range {
  Range(std::int64_t which, std::size_t count)
      : first(which < 0 ? 0 : static_cast<std::size_t>(which)),
        end(which < 0 ? count : std::min(count, first + 1)) {}
  std::size_t first, end;
};

double token_sum(const Chunk& chunk, const Node& node, const Values& difference,
                 const SiteView& gradient, const std::vector<std::int64_t>& rows,
                 std::size_t pair) {
  const auto row = static_cast<std::size_t>(gradient.shape.row());
  const auto width = static_cast<std::size_t>(gradient.shape.width);
  Range inner(node.neuron, row);
  if (node.head >= 0) {
    inner.first = static_cast<std::size_t>(node.head) * width;
    inner.end = inner.first + width;
  }
  const auto offset = static_cast<std::size_t>(chunk.offsets[pair]);
  const Range positions(node.position, static_cast<std::size_t>(chunk.pairs[pair].tokens()));
  double sum = 0.0;
  for (std::size_t p = positions.first; p < positions.end; ++p) {
    const float* d = difference.blocks[0].data() + (offset + p) * row;
    const float* g = gradient.values.data() + static_cast<std::size_t>(rows[offset + p]) * row;
    for (std::size_t i = inner.first; i < inner.end; ++i) {
      sum += static_cast<double>(d[i]) * static_cast<double>(g[i]);
    }
  }
  return sum;
}

double attention_sum(const Chunk& chunk, const Node& node, const Values& difference,
                     const SiteView& gradient, std::size_t pair) {
  const auto tokens = static_cast<std::size_t>(chunk.pairs[pair].tokens());
  const Range heads(node.head, gradient.values.size() / (tokens * tokens));
  const Range queries(node.position, tokens);
  double sum = 0.0;
  for (std::size_t h = heads.first; h < heads.end; ++h) {
    for (std::size_t i = (h * tokens + queries.first) * tokens;
         i < (h * tokens + queries.end) * tokens; ++i) {
      const float d = difference.blocks[pair][i];
      if (d != 0.0f) sum += static_cast<double>(d) * static_cast<double>(gradient.values[i]);
    }
  }
  return sum;
}

}  // namespace

std::vector<SiteNodes> group_by_site(std::span<const Node> nodes, std::span<const Pair> pairs,
                                     const ModelConfig& config) {
  const bool mapped = std::any_of(pairs.begin(), pairs.end(),
                                  [](const Pair& pair) { return !pair.token_map.empty(); });
  const std::vector<Site> known = all_sites(config);
  std::vector<SiteNodes> groups;
  std::map<Site, std::size_t> index;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const Site site = nodes[n].site;
    const auto [found, fresh] = index.try_emplace(site, groups.size());
    if (fresh) {
      if (std::find(known.begin(), known.end(), site) == known.end()) {
        const std::string name = site_name(site);
        match_sites(std::span(&name, 1), config);  // always throws: it knows the nearest names
      }
      groups.push_back({.site = site, .shape = site_shape(site, config), .nodes = {}});
      if (mapped && groups.back().shape.attention) {
        fail_usage("{} cannot be compared between prompts whose positions are mapped",
                   site_name(site));
      }
    }
    check_node(nodes[n], groups[found->second].shape, config);
    groups[found->second].nodes.push_back(n);
  }
  return groups;
}

Values difference(const Chunk& chunk, const SiteShape& shape, const Values& base,
                  const Values& other) {
  const auto minus = [](float a, float b) { return a == b ? 0.0f : a - b; };
  Values out;
  if (shape.attention) {
    for (std::size_t p = 0; p < base.blocks.size(); ++p) {
      std::vector<float>& d = out.blocks.emplace_back(base.blocks[p].size());
      std::transform(other.blocks[p].begin(), other.blocks[p].end(), base.blocks[p].begin(),
                     d.begin(), minus);
    }
    return out;
  }
  const auto row = static_cast<std::size_t>(shape.row());
  std::vector<float>& d = out.blocks.emplace_back(chunk.base_rows.size() * row);
  for (std::size_t t = 0; t < chunk.base_rows.size(); ++t) {
    const float* a = other.blocks[0].data() + static_cast<std::size_t>(chunk.other_rows[t]) * row;
    const float* b = base.blocks[0].data() + static_cast<std::size_t>(chunk.base_rows[t]) * row;
    std::transform(a, a + row, b, d.begin() + static_cast<std::ptrdiff_t>(t * row), minus);
  }
  return out;
}

Scores::Scores(std::span<const Node> nodes, std::size_t pairs)
    : nodes_(nodes), pairs_(pairs), values_(nodes.size() * pairs, 0.0) {}

void Scores::add(const Chunk& chunk, const SiteNodes& group, const Values& difference,
                 const SiteView& gradient, const std::vector<std::int64_t>& rows, double weight) {
  const bool attention = gradient.shape.attention;
  const std::size_t first = attention ? static_cast<std::size_t>(gradient.prompt) : 0;
  const std::size_t count = attention ? 1 : chunk.pairs.size();
#pragma omp parallel for schedule(static)
  for (std::size_t i = 0; i < group.nodes.size() * count; ++i) {
    const std::size_t node = group.nodes[i / count];
    const std::size_t pair = first + i % count;
    const double sum = attention ? attention_sum(chunk, nodes_[node], difference, gradient, pair)
                                 : token_sum(chunk, nodes_[node], difference, gradient, rows, pair);
    values_[node * pairs_ + chunk.first + pair] += weight * sum;
  }
}

std::vector<double> Scores::take(std::span<const Pair> pairs) {
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    for (std::size_t p = 0; p < pairs_; ++p) {
      if (nodes_[n].position >= pairs[p].tokens()) {
        values_[n * pairs_ + p] = std::numeric_limits<double>::quiet_NaN();
      }
    }
  }
  return std::move(values_);
}

void interpolate(Hooks& hooks, Site site, const Chunk& chunk, const Values& difference,
                 double alpha) {
  const auto scale = static_cast<float>(alpha);
  hooks.write(site, [&chunk, &difference, scale](SiteView& view) {
    if (view.shape.attention) {
      const std::vector<float>& d = difference.blocks[static_cast<std::size_t>(view.prompt)];
      for (std::size_t i = 0; i < d.size(); ++i) {
        if (d[i] != 0.0f) view.values[i] += scale * d[i];
      }
      return;
    }
    const auto row = static_cast<std::size_t>(view.shape.row());
    for (std::size_t t = 0; t < chunk.base_rows.size(); ++t) {
      float* x = view.values.data() + static_cast<std::size_t>(chunk.base_rows[t]) * row;
      const float* d = difference.blocks[0].data() + t * row;
      for (std::size_t i = 0; i < row; ++i) x[i] += scale * d[i];
    }
  });
}

}  // namespace lamina::patching
