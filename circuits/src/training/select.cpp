#include "select.h"

#include <algorithm>
#include <numeric>

#include "rows.h"

namespace lamina::training {
namespace {

constexpr std::int64_t kRowBlock = 64;

// What a block of rows keeps, before the number of entries in front of it is known.
struct Part {
  std::vector<std::int32_t> feature;
  std::vector<std::int64_t> ends;  // [rows of the block]
};

std::int64_t blocks_of(std::int64_t rows) {
  return (rows + kRowBlock - 1) / kRowBlock;
}

// keep(row, features): appends what the row keeps. Rows run in parallel.
template <class Keep>
void gather(std::int64_t rows, const float* u, std::int64_t features, Entries& out,
            const Keep& keep) {
  const std::int64_t blocks = blocks_of(rows);
  std::vector<Part> parts(size(blocks));
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t b = 0; b < blocks; ++b) {
    Part& part = parts[size(b)];
    for (std::int64_t r = b * kRowBlock; r < std::min(rows, (b + 1) * kRowBlock); ++r) {
      keep(r, part.feature);
      part.ends.push_back(static_cast<std::int64_t>(part.feature.size()));
    }
  }
  std::vector<std::int64_t> begins(size(blocks + 1));
  for (std::int64_t b = 0; b < blocks; ++b) {
    begins[size(b + 1)] = begins[size(b)] + std::ssize(parts[size(b)].feature);
  }
  out.offsets.assign(size(rows + 1), 0);
  out.feature.resize(size(begins.back()));
  out.value.resize(out.feature.size());
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < blocks; ++b) {
    const Part& part = parts[size(b)];
    std::copy(part.feature.begin(), part.feature.end(), out.feature.begin() + begins[size(b)]);
    std::int64_t e = begins[size(b)];
    for (std::int64_t i = 0; i < std::ssize(part.ends); ++i) {
      const std::int64_t r = b * kRowBlock + i;
      out.offsets[size(r + 1)] = begins[size(b)] + part.ends[size(i)];
      for (; e < out.offsets[size(r + 1)]; ++e) {
        out.value[size(e)] = u[r * features + out.feature[size(e)]];
      }
    }
  }
}

// Keeps of ids [first, end) the k with the largest values, ties by the smaller id; ascending.
void keep_largest(const float* u, std::int64_t k, std::size_t first,
                  std::vector<std::int32_t>& ids) {
  const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(first);
  if (ids.end() - begin <= k) return;
  std::nth_element(begin, begin + k, ids.end(), [u](std::int32_t a, std::int32_t b) {
    return u[a] > u[b] || (u[a] == u[b] && a < b);
  });
  ids.resize(first + size(k));
  std::sort(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
}

// Number of groups whose maxima give a useful lower bound of the k-th largest of n; 0: none.
std::int64_t groups_for(std::int64_t k, std::int64_t n) {
  const std::int64_t groups = std::max<std::int64_t>(128, (4 * k + 15) / 16 * 16);
  return groups <= n / 2 ? groups : 0;
}

// The k-th largest of `values`, which are reordered.
float kth_largest(std::vector<float>& values, std::int64_t k) {
  const auto at = values.begin() + (k - 1);
  std::nth_element(values.begin(), at, values.end(), std::greater<>());
  return *at;
}

// Both top-k selections add the biases while they have a row in the cache.
void select_topk(std::int64_t k, std::span<const float> bias, std::int64_t rows, float* u,
                 Entries& out) {
  const auto features = static_cast<std::int64_t>(bias.size());
  const std::int64_t groups = groups_for(k, features);
  gather(rows, u, features, out, [&](std::int64_t r, std::vector<std::int32_t>& ids) {
    float* row = u + r * features;
    add_and_count(bias.data(), features, 0.0F, row);
    float bound = 0;
    if (groups > 0) {  // the k-th largest maximum: at least k values are not below it
      thread_local std::vector<float> maxima;
      maxima.resize(size(groups));
      group_maxima(row, features, groups, maxima.data());
      bound = kth_largest(maxima, k);
    }
    const std::size_t first = ids.size();
    collect_above(row, features, 0.0F, bound, ids);
    keep_largest(row, k, first, ids);
  });
}

void select_batch_topk(std::int64_t k, std::span<const float> bias, std::int64_t rows, float* u,
                       Selection& out) {
  const auto features = static_cast<std::int64_t>(bias.size());
  const std::int64_t wanted = k * rows;
  const std::int64_t groups = groups_for(k, features);
  std::vector<float> maxima(size(rows * groups));
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = u + r * features;
    add_and_count(bias.data(), features, 0.0F, row);
    if (groups > 0) group_maxima(row, features, groups, maxima.data() + r * groups);
  }
  const float bound = groups > 0 ? kth_largest(maxima, wanted) : 0.0F;
  gather(rows, u, features, out.entries, [&](std::int64_t r, std::vector<std::int32_t>& ids) {
    collect_above(u + r * features, features, 0.0F, bound, ids);
  });
  Entries& e = out.entries;
  if (e.count() > wanted) {  // of equal values the first ones stay
    std::vector<float> values = e.value;
    const float least = kth_largest(values, wanted);
    std::int64_t equal = wanted;
    for (float v : e.value) equal -= v > least ? 1 : 0;
    std::int64_t to = 0, from = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (; from < e.offsets[size(r + 1)]; ++from) {
        const float v = e.value[size(from)];
        if (v < least || (v == least && equal-- <= 0)) continue;
        e.feature[size(to)] = e.feature[size(from)];
        e.value[size(to++)] = v;
      }
      e.offsets[size(r + 1)] = to;
    }
    e.feature.resize(size(to));
    e.value.resize(size(to));
  }
  out.least = e.value.empty() ? 0 : *std::min_element(e.value.begin(), e.value.end());
}

// Everything above θ − ε/2; what is not above θ gets the value 0.
void select_jump_relu(std::span<const float> threshold, float bandwidth, std::int64_t rows,
                      std::int64_t features, const float* u, Entries& out) {
  const float half = bandwidth / 2;
  gather(rows, u, features, out, [&](std::int64_t r, std::vector<std::int32_t>& ids) {
    const float* row = u + r * features;
    for (std::int64_t j = 0; j < features; ++j) {
      if (row[j] > threshold[size(j)] - half) ids.push_back(static_cast<std::int32_t>(j));
    }
  });
  out.near.resize(out.feature.size());
#pragma omp parallel for schedule(static)
  for (std::int64_t e = 0; e < out.count(); ++e) {
    const float limit = threshold[size(out.feature[size(e)])];
    float& value = out.value[size(e)];
    const float distance = (value - limit) / bandwidth;
    out.near[size(e)] = distance > -0.5F && distance < 0.5F ? 1 : 0;
    if (!(value > limit)) value = 0;
  }
}

}  // namespace

void select_features(const TranscoderConfig& config, std::span<const float> bias,
                     std::span<const float> threshold, float bandwidth, std::int64_t rows, float* u,
                     Selection& out) {
  const std::int64_t f = config.features;
  out.least = 0;
  out.dense = false;
  out.entries.near.clear();
  if (config.activation == FeatureActivation::topk) {
    select_topk(config.k, bias, rows, u, out.entries);
    return;
  }
  if (config.activation == FeatureActivation::batch_topk) {
    select_batch_topk(config.k, bias, rows, u, out);
    return;
  }
  const bool jump = config.activation == FeatureActivation::jump_relu;
  std::vector<float> bounds(threshold.begin(), threshold.end());
  for (float& b : bounds) b -= bandwidth / 2;
  std::int64_t above = 0;
#pragma omp parallel for schedule(static) reduction(+ : above)
  for (std::int64_t r = 0; r < rows; ++r) {
    above += jump ? add_and_count(bias.data(), f, bounds.data(), u + r * f)
                  : add_and_count(bias.data(), f, 0.0F, u + r * f);
  }
  out.dense =
      static_cast<double>(above) > kDenseShare * static_cast<double>(rows) * static_cast<double>(f);
  if (out.dense) {
    out.entries.feature.clear();
    out.entries.value.clear();
    out.entries.offsets.assign(size(rows + 1), 0);
  } else if (jump) {
    select_jump_relu(threshold, bandwidth, rows, f, u, out.entries);
  } else {
    gather(rows, u, f, out.entries, [&](std::int64_t r, std::vector<std::int32_t>& ids) {
      collect_above(u + r * f, f, 0.0F, 0.0F, ids);
    });
  }
}

void select_among(std::span<const std::int32_t> candidates, std::int64_t k, const float* u,
                  std::int64_t rows, std::int64_t features, Entries& out) {
  gather(rows, u, features, out, [&](std::int64_t r, std::vector<std::int32_t>& ids) {
    const float* row = u + r * features;
    const std::size_t first = ids.size();
    for (std::int32_t j : candidates) {
      if (row[j] > 0) ids.push_back(j);
    }
    keep_largest(row, k, first, ids);
  });
}

void ByFeature::build(const Entries& entries, std::int64_t features) {
  // Rows in a few blocks, each with its own counts: entries keep the order of their rows.
  constexpr std::int64_t kBlocks = 16;
  const auto rows = static_cast<std::int64_t>(entries.offsets.size()) - 1;
  const bool jump = !entries.near.empty();
  std::vector<std::int64_t> counts(size(kBlocks * features));
  const auto each = [&](std::int64_t b, const auto& visit) {
    for (std::int64_t r = b * rows / kBlocks; r < (b + 1) * rows / kBlocks; ++r) {
      for (std::int64_t e = entries.offsets[size(r)]; e < entries.offsets[size(r + 1)]; ++e) {
        visit(r, e, counts[size(b * features + entries.feature[size(e)])]);
      }
    }
  };
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    each(b, [](std::int64_t, std::int64_t, std::int64_t& n) { ++n; });
  }
  offsets.assign(size(features + 1), 0);
  std::int64_t total = 0;
  for (std::int64_t f = 0; f < features; ++f) {
    for (std::int64_t b = 0; b < kBlocks; ++b) {
      const std::int64_t n = counts[size(b * features + f)];
      counts[size(b * features + f)] = total;
      total += n;
    }
    offsets[size(f + 1)] = total;
  }
  row.resize(size(total));
  value.resize(size(total));
  slope.resize(size(total));
  threshold_slope.resize(jump ? size(total) : 0);
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    each(b, [&](std::int64_t r, std::int64_t e, std::int64_t& next) {
      row[size(next)] = static_cast<std::int32_t>(r);
      value[size(next)] = entries.value[size(e)];
      slope[size(next)] = entries.slope[size(e)];
      if (jump) threshold_slope[size(next)] = entries.threshold_slope[size(e)];
      ++next;
    });
  }
}

}  // namespace lamina::training
