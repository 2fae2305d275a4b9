#include "lamina/patching/finercut.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// The candidate with the smallest distance, the last one of equals; candidates.size() if none is
// finite.
std::size_t closest(std::span<const double> distances) {
  std::size_t best = distances.size();
  for (std::size_t i = 0; i < distances.size(); ++i) {
    if (!std::isfinite(distances[i])) continue;
    if (best == distances.size() || distances[i] <= distances[best]) best = i;
  }
  return best;
}

}  // namespace

std::vector<Removal> finercut(PathJudge& judge, const ModelConfig& config,
                              const FinerCutOptions& options) {
  const std::vector<Sublayer> all = all_sublayers(config);
  const auto total = static_cast<std::int64_t>(all.size());
  std::vector<Sublayer> removed = options.first;
  const auto before = static_cast<std::int64_t>(removed.size());
  const std::int64_t most = options.remove < 0 ? total : std::min(options.remove, total - before);
  std::vector<Removal> order;
  while (static_cast<std::int64_t>(order.size()) < most &&
         static_cast<std::int64_t>(removed.size()) < total) {
    std::vector<std::size_t> which;
    std::vector<LayerPath> candidates;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (std::ranges::find(removed, all[i]) != removed.end()) continue;
      which.push_back(i);
      removed.push_back(all[i]);
      candidates.push_back(path_without(removed, config));
      removed.pop_back();
    }
    const auto progress = [&](double tried) {
      if (options.progress) {
        options.progress(tried, static_cast<std::int64_t>(candidates.size()),
                         static_cast<std::int64_t>(order.size()));
      }
    };
    const std::vector<double> distances =
        judge.distances(path_without(removed, config), candidates, progress);
    const std::size_t best = closest(distances);
    if (best == distances.size()) {
      fail("after {} removals every further one makes logits that are not finite", removed.size());
    }
    if (options.limit >= 0 && distances[best] > options.limit) break;
    Removal removal;
    removal.sublayer = all[which[best]];
    removal.distance = distances[best];
    removal.left = judge.judge(candidates[best]);
    removal.candidates.assign(all.size(), std::numeric_limits<double>::quiet_NaN());
    for (std::size_t c = 0; c < which.size(); ++c) removal.candidates[which[c]] = distances[c];
    removed.push_back(removal.sublayer);
    order.push_back(std::move(removal));
    if (options.removed && !options.removed(order.back())) break;
  }
  return order;
}

}  // namespace lamina
