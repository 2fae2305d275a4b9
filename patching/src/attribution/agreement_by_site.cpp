// An attribution against exact patching of the same nodes, site kind by site kind.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "exact/split_mix.h"
#include "lamina/core/error.h"
#include "lamina/patching/attribution.h"

namespace lamina {
namespace {

// Means over the pairs that both lists have.
void means(std::span<const double> a, std::span<const double> b, std::vector<double>& mean_a,
           std::vector<double>& mean_b) {
  double sum_a = 0.0, sum_b = 0.0, count = 0.0;
  for (std::size_t p = 0; p < a.size(); ++p) {
    if (std::isnan(a[p]) || std::isnan(b[p])) continue;
    sum_a += a[p];
    sum_b += b[p];
    count += 1.0;
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  mean_a.push_back(count > 0.0 ? sum_a / count : nan);
  mean_b.push_back(count > 0.0 ? sum_b / count : nan);
}

}  // namespace

std::vector<std::size_t> sample_nodes(std::size_t nodes, std::size_t count, std::uint64_t seed) {
  std::vector<std::size_t> all(nodes);
  std::iota(all.begin(), all.end(), std::size_t{0});
  if (count >= nodes) return all;
  patching::SplitMix random(seed);
  for (std::size_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.below(nodes - i)]);
  all.resize(count);
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<SiteAgreement> agreement_by_site(std::span<const Node> nodes,
                                             std::span<const double> estimate,
                                             std::span<const double> exact, std::int64_t k,
                                             std::int64_t resamples, std::uint64_t seed) {
  if (nodes.empty() || estimate.size() != exact.size() || estimate.size() % nodes.size() != 0) {
    fail_usage("agreement of {} nodes: {} estimates and {} exact values", nodes.size(),
               estimate.size(), exact.size());
  }
  const std::size_t pairs = estimate.size() / nodes.size();
  std::vector<std::optional<SiteKind>> kinds{std::nullopt};
  for (const Node& node : nodes) {
    if (std::find(kinds.begin(), kinds.end(), node.site.kind) == kinds.end()) {
      kinds.emplace_back(node.site.kind);
    }
  }
  if (kinds.size() == 2) kinds.pop_back();  // one kind: the same as all
  std::vector<SiteAgreement> out;
  for (const std::optional<SiteKind> kind : kinds) {
    std::vector<double> a, b, mean_a, mean_b;
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      if (kind && nodes[n].site.kind != *kind) continue;
      const auto of_node = [&](std::span<const double> v) { return v.subspan(n * pairs, pairs); };
      const std::span<const double> x = of_node(estimate), y = of_node(exact);
      a.insert(a.end(), x.begin(), x.end());
      b.insert(b.end(), y.begin(), y.end());
      means(x, y, mean_a, mean_b);
    }
    out.push_back({.kind = kind,
                   .by_node = agreement(mean_a, mean_b, k, resamples, seed),
                   .by_pair = agreement(a, b, k, resamples, seed)});
  }
  return out;
}

}  // namespace lamina
