#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/exact.h"
#include "lamina/patching/metric.h"
#include "support/tiny_model.h"

// The slow way to patch: whole runs of single prompts with one writing hook, nothing shared with
// the sweep that is tested.
namespace lamina::testing {

using Ids = std::vector<std::int32_t>;

/// Every site of one prompt: token sites [token, row], attention sites [head, query, key].
using AllSites = std::map<Site, std::vector<float>>;

inline AllSites record_all(Forward& forward, const Ids& ids) {
  AllSites out;
  Hooks hooks;
  for (const Site site : all_sites(forward.model().config())) {
    hooks.read(site, [&out, site](SiteView& view) {
      out[site].assign(view.values.begin(), view.values.end());
    });
  }
  Batch batch;
  batch.add(ids);
  forward.run(batch, hooks);
  return out;
}

/// Logits of the last row of a whole run.
inline std::vector<float> last_logits(Forward& forward, const Ids& ids, const Hooks& hooks = {}) {
  Batch batch;
  batch.add(ids);
  forward.run(batch, hooks);
  const std::vector<std::int64_t> rows = {batch.tokens() - 1};
  std::vector<float> logits(static_cast<std::size_t>(forward.model().config().d_vocab));
  forward.run_logits(rows, logits);
  return logits;
}

/// Calls use(index) for the index of every value of a site that a node covers, in a prompt of
/// `length` tokens; keys that the mask hides from a query are left out.
inline void for_values(const Node& node, const ModelConfig& c, std::int64_t length,
                       const std::function<void(std::size_t)>& use) {
  const SiteShape shape = site_shape(node.site, c);
  for (std::int64_t t = 0; t < length; ++t) {
    if (node.position >= 0 && t != node.position) continue;
    if (shape.attention) {
      const std::int64_t window = c.layers[static_cast<std::size_t>(node.site.layer)].window;
      for (std::int64_t h = 0; h < c.n_heads; ++h) {
        if (node.head >= 0 && h != node.head) continue;
        for (std::int64_t k = 0; k < length; ++k) {
          if ((c.causal && k > t) || (window > 0 && k <= t - window)) continue;
          use(static_cast<std::size_t>((h * length + t) * length + k));
        }
      }
      continue;
    }
    for (std::int64_t i = 0; i < shape.row(); ++i) {
      if (node.head >= 0 && i / shape.width != node.head) continue;
      if (node.neuron >= 0 && i != node.neuron) continue;
      use(static_cast<std::size_t>(t * shape.row() + i));
    }
  }
}

/// Metric of pair `pair`'s prompt `ids` with the node's values replaced by those of `source`.
inline double patched_slowly(Forward& forward, const Metric& metric, std::int64_t pair,
                             const Ids& ids, const Node& node, const std::vector<float>& source) {
  Hooks hooks;
  hooks.write(node.site, [&](SiteView& view) {
    ASSERT_EQ(view.values.size(), source.size());
    for_values(node, forward.model().config(), static_cast<std::int64_t>(ids.size()),
               [&](std::size_t i) { view.values[i] = source[i]; });
  });
  return metric.value(pair, last_logits(forward, ids, hooks));
}

/// varied_configs() and more: norms and masks that they do not combine.
inline std::vector<TinyConfig> patch_configs() {
  std::vector<TinyConfig> all = varied_configs();
  all.push_back({.label = "causal post-norm",
                 .norm = "layer",
                 .norm_place = "post",
                 .positions = "learned",
                 .act = "relu",
                 .rotary_dim = 0,
                 .mlp_bias = true,
                 .gated = false,
                 .final_norm = false});
  all.push_back({.label = "bidirectional pre-norm", .causal = false});
  all.push_back({.label = "four layers solu", .n_layers = 4, .act = "solu", .gated = false});
  all.push_back({.label = "one layer", .n_layers = 1});
  return all;
}

/// Pairs whose prompts differ in a few places; the last one has equal prompts.
inline std::vector<Pair> random_pairs(const std::vector<std::int64_t>& lengths,
                                      std::int64_t d_vocab, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto prompts = random_prompts(lengths, d_vocab, seed);
  std::vector<Pair> pairs;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Pair pair;
    pair.id = "p" + std::to_string(i);
    pair.clean = pair.corrupted = prompts[i];
    const std::size_t changes = i + 1 == prompts.size() ? 0 : 1 + random() % 2;
    for (std::size_t k = 0; k < changes; ++k) {
      std::int32_t& id = pair.corrupted[random() % pair.corrupted.size()];
      id = static_cast<std::int32_t>((id + 1) % d_vocab);
    }
    pair.correct = {static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(d_vocab))};
    pair.wrong = {static_cast<std::int32_t>((pair.correct[0] + 7) % d_vocab)};
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

/// Random nodes at every kind of site that can be patched, `each` of a kind.
inline std::vector<Node> random_nodes(const ModelConfig& c, std::int64_t longest, int each,
                                      std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  std::vector<Node> nodes;
  std::set<SiteKind> kinds;
  const std::vector<Site> sites = all_sites(c);
  for (const Site site : sites) kinds.insert(site.kind);
  for (const SiteKind kind : kinds) {
    if (kind == SiteKind::embed || kind == SiteKind::pos_embed) continue;
    std::vector<Site> same;
    std::copy_if(sites.begin(), sites.end(), std::back_inserter(same),
                 [&](Site s) { return s.kind == kind; });
    for (int i = 0; i < each; ++i) {
      // The last layer, where rows and layers run out, comes up more often.
      Node node{
          .site =
              same[i == 0 ? same.size() - 1 : static_cast<std::size_t>(below(std::ssize(same)))]};
      const SiteShape shape = site_shape(node.site, c);
      if (below(3) > 0) node.position = below(longest);
      const std::int64_t heads = shape.attention ? c.n_heads : shape.heads;
      if (heads > 0 && below(3) > 0) node.head = below(heads);
      const bool mlp = kind == SiteKind::mlp_pre || kind == SiteKind::mlp_pre_linear ||
                       kind == SiteKind::mlp_post;
      if (mlp && below(2) > 0) node.neuron = below(c.d_mlp);
      nodes.push_back(node);
    }
  }
  return nodes;
}

/// A test name out of a configuration's label.
inline std::string plain_name(std::string label) {
  std::erase_if(label, [](unsigned char c) { return std::isalnum(c) == 0; });
  return label;
}

}  // namespace lamina::testing
