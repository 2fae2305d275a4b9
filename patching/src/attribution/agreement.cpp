// Agreement of an estimate with exact patching, with bootstrap intervals over the nodes.
//
// A resample is a count per node: every statistic walks orders that are sorted once, so that a
// resample costs one pass instead of a sort.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "exact/split_mix.h"
#include "lamina/core/error.h"
#include "lamina/patching/attribution.h"

namespace lamina {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

int sign_of(double x) {
  return (x > 0.0) - (x < 0.0);
}

struct Statistics {
  double pearson = kNan, spearman = kNan, sign = kNan, top_k = kNan;
};

// The nodes of both lists, sorted in the three ways that the statistics need.
struct Sorted {
  std::vector<double> x, y;                 // [node]
  std::vector<std::uint32_t> by_x, by_y;    // ascending values
  std::vector<std::uint32_t> top_x, top_y;  // descending magnitudes, ties by index
  std::int64_t k = 0;

  std::size_t size() const { return x.size(); }
};

// Pearson's correlation of x and y, every node `count` times.
double correlation(const std::vector<double>& x, const std::vector<double>& y,
                   const std::vector<std::uint32_t>& count, double total) {
  double mean_x = 0.0, mean_y = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    mean_x += count[i] * x[i];
    mean_y += count[i] * y[i];
  }
  mean_x /= total;
  mean_y /= total;
  double xx = 0.0, yy = 0.0, xy = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double dx = x[i] - mean_x, dy = y[i] - mean_y;
    xx += count[i] * dx * dx;
    yy += count[i] * dy * dy;
    xy += count[i] * dx * dy;
  }
  // A constant list has no correlation; what rounding leaves of its variance must not make one.
  const double noise = 1e-30 * total;
  if (xx <= noise * mean_x * mean_x || yy <= noise * mean_y * mean_y) return kNan;
  return std::clamp(xy / (std::sqrt(xx) * std::sqrt(yy)), -1.0, 1.0);
}

// Average ranks of the values when every node stands there `count` times.
void ranks(const std::vector<double>& values, const std::vector<std::uint32_t>& order,
           const std::vector<std::uint32_t>& count, std::vector<double>& out) {
  double before = 0.0;
  for (std::size_t i = 0; i < order.size();) {
    std::size_t end = i;
    double tied = 0.0;
    while (end < order.size() && values[order[end]] == values[order[i]])
      tied += count[order[end++]];
    for (; i < end; ++i) out[order[i]] = before + (tied + 1.0) / 2.0;
    before += tied;
  }
}

// How often each node is among the k largest; copies of a node count.
void take(const std::vector<std::uint32_t>& top, const std::vector<std::uint32_t>& count,
          std::int64_t k, std::vector<std::uint32_t>& taken) {
  std::fill(taken.begin(), taken.end(), 0u);
  auto left = static_cast<std::uint64_t>(k);
  for (std::size_t i = 0; i < top.size() && left > 0; ++i) {
    taken[top[i]] = static_cast<std::uint32_t>(std::min<std::uint64_t>(left, count[top[i]]));
    left -= taken[top[i]];
  }
}

struct Scratch {
  explicit Scratch(std::size_t n) : count(n), rank_x(n), rank_y(n), taken_x(n), taken_y(n) {}
  std::vector<std::uint32_t> count;
  std::vector<double> rank_x, rank_y;
  std::vector<std::uint32_t> taken_x, taken_y;
};

Statistics statistics(const Sorted& s, Scratch& scratch) {
  const std::size_t n = s.size();
  const auto total = static_cast<double>(n);
  Statistics out;
  out.pearson = correlation(s.x, s.y, scratch.count, total);
  ranks(s.x, s.by_x, scratch.count, scratch.rank_x);
  ranks(s.y, s.by_y, scratch.count, scratch.rank_y);
  out.spearman = correlation(scratch.rank_x, scratch.rank_y, scratch.count, total);

  std::uint64_t either = 0, equal = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (s.x[i] == 0.0 && s.y[i] == 0.0) continue;
    either += scratch.count[i];
    if (sign_of(s.x[i]) == sign_of(s.y[i])) equal += scratch.count[i];
  }
  if (either > 0) out.sign = static_cast<double>(equal) / static_cast<double>(either);

  take(s.top_x, scratch.count, s.k, scratch.taken_x);
  take(s.top_y, scratch.count, s.k, scratch.taken_y);
  std::uint64_t both = 0;
  for (std::size_t i = 0; i < n; ++i) both += std::min(scratch.taken_x[i], scratch.taken_y[i]);
  out.top_k = static_cast<double>(both) / static_cast<double>(s.k);
  return out;
}

// Linear between neighbours, as numpy's default.
double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

Agreement::Value with_interval(double value, std::vector<double> draws) {
  std::erase_if(draws, [](double d) { return std::isnan(d); });
  if (draws.empty()) return {value, kNan, kNan};
  std::sort(draws.begin(), draws.end());
  return {value, percentile(draws, 0.025), percentile(draws, 0.975)};
}

std::vector<std::uint32_t> order_of(std::size_t n, const auto& less) {
  std::vector<std::uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), less);
  return order;
}

Sorted sort_all(std::span<const double> estimate, std::span<const double> exact, std::int64_t k) {
  Sorted s;
  for (std::size_t i = 0; i < estimate.size(); ++i) {
    if (std::isnan(estimate[i]) || std::isnan(exact[i])) continue;
    s.x.push_back(estimate[i]);
    s.y.push_back(exact[i]);
  }
  const std::size_t n = s.size();
  const auto ascending = [n](const std::vector<double>& v) {
    return order_of(n, [&v](std::uint32_t a, std::uint32_t b) { return v[a] < v[b]; });
  };
  const auto magnitudes = [n](const std::vector<double>& v) {
    return order_of(
        n, [&v](std::uint32_t a, std::uint32_t b) { return std::abs(v[a]) > std::abs(v[b]); });
  };
  s.by_x = ascending(s.x);
  s.by_y = ascending(s.y);
  s.top_x = magnitudes(s.x);
  s.top_y = magnitudes(s.y);
  s.k = std::min(k, static_cast<std::int64_t>(n));
  return s;
}

}  // namespace

Agreement agreement(std::span<const double> estimate, std::span<const double> exact, std::int64_t k,
                    std::int64_t resamples, std::uint64_t seed) {
  if (estimate.size() != exact.size()) {
    fail_usage("agreement of {} estimates with {} exact values", estimate.size(), exact.size());
  }
  if (k < 1) fail_usage("agreement of the {} largest: at least 1 is needed", k);
  if (resamples < 0) fail_usage("agreement with {} resamples", resamples);
  if (estimate.size() > std::numeric_limits<std::uint32_t>::max()) {
    fail_usage("agreement of {} nodes: at most 4294967295", estimate.size());
  }
  const Sorted s = sort_all(estimate, exact, k);
  Agreement out;
  out.nodes = static_cast<std::int64_t>(s.size());
  out.k = s.k;
  if (s.size() == 0) {
    out.pearson = out.spearman = out.sign = out.top_k = {kNan, kNan, kNan};
    return out;
  }

  const auto draws = static_cast<std::size_t>(resamples);
  std::vector<double> pearson(draws), spearman(draws), sign(draws), top_k(draws);
  // Every draw has a stream of its own: the intervals do not depend on the number of threads.
  std::vector<Scratch> scratches(static_cast<std::size_t>(omp_get_max_threads()),
                                 Scratch(s.size()));
#pragma omp parallel for schedule(static)
  for (std::size_t r = 0; r < draws; ++r) {
    Scratch& scratch = scratches[static_cast<std::size_t>(omp_get_thread_num())];
    patching::SplitMix random = patching::stream(seed, r);
    std::fill(scratch.count.begin(), scratch.count.end(), 0u);
    for (std::size_t i = 0; i < s.size(); ++i) ++scratch.count[random.below(s.size())];
    const Statistics got = statistics(s, scratch);
    pearson[r] = got.pearson;
    spearman[r] = got.spearman;
    sign[r] = got.sign;
    top_k[r] = got.top_k;
  }
  Scratch& scratch = scratches.front();
  std::fill(scratch.count.begin(), scratch.count.end(), 1u);
  const Statistics all = statistics(s, scratch);
  out.pearson = with_interval(all.pearson, std::move(pearson));
  out.spearman = with_interval(all.spearman, std::move(spearman));
  out.sign = with_interval(all.sign, std::move(sign));
  out.top_k = with_interval(all.top_k, std::move(top_k));
  return out;
}

}  // namespace lamina
