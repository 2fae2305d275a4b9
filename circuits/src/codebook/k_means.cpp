// Lloyd's k-means. Distances come from products on the engine's kernels and sums run in the order
// of the rows, so that the result does not depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "lamina/circuits/codebook.h"
#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lamina/internal/product.h"

namespace lamina {
namespace {

constexpr std::int64_t kRows = 256, kCentres = 256;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double squared_distance(const float* a, const float* b, std::int64_t width) {
  double sum = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    const double difference = double{a[i]} - b[i];
    sum += difference * difference;
  }
  return sum;
}

// 53 random bits: the same numbers with every standard library.
double uniform(std::mt19937_64& engine) {
  return static_cast<double>(engine() >> 11) * 0x1p-53;
}

// Arthur and Vassilvitskii 2007: each next centre is a row, drawn with a weight of its squared
// distance to the centres so far.
std::vector<float> plus_plus(std::span<const float> x, std::int64_t width, std::int64_t codes,
                             std::uint64_t seed) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / width;
  std::mt19937_64 engine(seed);
  std::vector<float> centres;
  centres.reserve(size(codes * width));
  std::vector<double> distance(size(rows), INFINITY);
  std::int64_t chosen = std::min(static_cast<std::int64_t>(uniform(engine) * rows), rows - 1);
  for (std::int64_t c = 0;; ++c) {
    const float* centre = x.data() + chosen * width;
    centres.insert(centres.end(), centre, centre + width);
    if (c + 1 == codes) return centres;
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < rows; ++r) {
      distance[size(r)] =
          std::min(distance[size(r)], squared_distance(x.data() + r * width, centre, width));
    }
    const double total = std::accumulate(distance.begin(), distance.end(), 0.0);
    if (!(total > 0)) {
      fail("k-means: {} codes asked for, but only {} rows are different", codes, c + 1);
    }
    double left = uniform(engine) * total;
    chosen = -1;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (distance[size(r)] == 0) continue;
      chosen = r;  // the last possible one, if rounding leaves something over
      left -= distance[size(r)];
      if (left < 0) break;
    }
  }
}

// The nearest centre of each row: largest x·c − ‖c‖²/2, ties by the smaller centre.
void assign(std::span<const float> x, std::int64_t width, const std::vector<float>& centres,
            std::vector<std::int32_t>& nearest) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / width;
  const std::int64_t codes = static_cast<std::int64_t>(centres.size()) / width;
  std::vector<internal::Operand> blocks;
  std::vector<float> half(size(codes));
  for (std::int64_t first = 0; first < codes; first += kCentres) {
    const std::int64_t count = std::min(kCentres, codes - first);
    blocks.emplace_back(count, width).set(centres.data() + first * width, count);
  }
  const std::vector<float> zeros(size(width));
  for (std::int64_t c = 0; c < codes; ++c) {
    half[size(c)] =
        static_cast<float>(squared_distance(centres.data() + c * width, zeros.data(), width) / 2);
  }
  const std::int64_t chunks = (rows + kRows - 1) / kRows;
  // One buffer a thread, made here: no exception may leave a parallel region.
  const int team = threads();
  std::vector<float> scores(size(team * kRows * kCentres)), bests(size(team * kRows));
#pragma omp parallel num_threads(team)
  {
    float* score = scores.data() + omp_get_thread_num() * kRows * kCentres;
    float* best = bests.data() + omp_get_thread_num() * kRows;
#pragma omp for schedule(dynamic)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t begin = chunk * kRows, count = std::min(kRows, rows - begin);
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        internal::product(x.data() + begin * width, width, count, blocks[b], score, kCentres);
        for (std::int64_t r = 0; r < count; ++r) {
          for (std::int64_t c = 0; c < blocks[b].n_out(); ++c) {
            const std::int64_t code = static_cast<std::int64_t>(b) * kCentres + c;
            const float value = score[r * kCentres + c] - half[size(code)];
            if (code == 0 || value > best[r]) {
              best[r] = value;
              nearest[size(begin + r)] = static_cast<std::int32_t>(code);
            }
          }
        }
      }
    }
  }
}

// Rows of each centre, ascending.
std::vector<std::vector<std::int32_t>> members(const std::vector<std::int32_t>& nearest,
                                               std::int64_t codes) {
  std::vector<std::vector<std::int32_t>> of(size(codes));
  for (std::size_t r = 0; r < nearest.size(); ++r) {
    of[size(nearest[r])].push_back(static_cast<std::int32_t>(r));
  }
  return of;
}

// Empty centres take the rows that are farthest from their own, each from a centre with several.
void refill(std::vector<std::vector<std::int32_t>>& of, std::vector<double>& distance) {
  for (std::size_t c = 0; c < of.size(); ++c) {
    if (!of[c].empty()) continue;
    std::size_t from = of.size(), at = 0;
    for (std::size_t other = 0; other < of.size(); ++other) {
      if (of[other].size() < 2) continue;
      for (std::size_t i = 0; i < of[other].size(); ++i) {
        const auto row = size(of[other][i]);
        const bool first = from == of.size();
        const auto best = first ? 0 : size(of[from][at]);
        if (first || distance[row] > distance[best] ||
            (distance[row] == distance[best] && row < best)) {
          from = other;
          at = i;
        }
      }
    }
    if (from == of.size()) fail("k-means: {} codes asked for, fewer rows than that", of.size());
    const std::int32_t row = of[from][at];
    of[from].erase(of[from].begin() + static_cast<std::ptrdiff_t>(at));
    of[c].push_back(row);
    distance[size(row)] = 0;
  }
}

void check(std::span<const float> x, std::int64_t width, const KMeansOptions& o) {
  const std::int64_t rows = width < 1 ? 0 : static_cast<std::int64_t>(x.size()) / width;
  if (width < 1 || x.size() != size(rows * width)) {
    fail_usage("k-means: {} values, expected rows of {}", x.size(), width);
  }
  if (o.codes < 1 || o.codes > rows) {
    fail("k-means: {} codes asked for, expected 1 to the number of rows, {}", o.codes, rows);
  }
  if (o.max_iterations < 1) {
    fail_usage("k-means: iterations: expected at least 1, got {}", o.max_iterations);
  }
  for (float v : x) {
    if (!std::isfinite(v)) fail("k-means: a row holds {}, expected finite values", v);
  }
}

}  // namespace

KMeansResult k_means(std::span<const float> x, std::int64_t width, const KMeansOptions& options) {
  check(x, width, options);
  return k_means_from(plus_plus(x, width, options.codes, options.seed), x, width, options);
}

KMeansResult k_means_from(std::vector<float> centres, std::span<const float> x, std::int64_t width,
                          const KMeansOptions& options) {
  check(x, width, options);
  if (centres.size() != size(options.codes * width)) {
    fail_usage("k-means: {} values of centres, expected {} × {}", centres.size(), options.codes,
               width);
  }
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / width;
  KMeansResult result;
  std::vector<std::int32_t> nearest(size(rows)), before;
  std::vector<double> distance(size(rows));
  for (; result.iterations < options.max_iterations; ++result.iterations) {
    assign(x, width, centres, nearest);
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < rows; ++r) {
      distance[size(r)] = squared_distance(
          x.data() + r * width, centres.data() + std::int64_t{nearest[size(r)]} * width, width);
    }
    const double inertia = std::accumulate(distance.begin(), distance.end(), 0.0);
    const double last = result.inertia.empty() ? INFINITY : result.inertia.back();
    result.inertia.push_back(inertia);
    if (options.progress) options.progress(result.iterations + 1, inertia);
    if (nearest == before || last - inertia < options.tolerance * inertia) {
      result.converged = true;
      break;
    }
    before = nearest;
    auto of = members(nearest, options.codes);
    refill(of, distance);
    const int team = threads();
    std::vector<double> sums(size(team * width));
#pragma omp parallel num_threads(team)
    {
      const std::span<double> sum(sums.data() + omp_get_thread_num() * width, size(width));
#pragma omp for schedule(dynamic, 8)
      for (std::int64_t c = 0; c < options.codes; ++c) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (std::int32_t r : of[size(c)]) {
          for (std::int64_t i = 0; i < width; ++i) {
            sum[size(i)] += x[size(std::int64_t{r} * width + i)];
          }
        }
        const auto n = static_cast<double>(of[size(c)].size());
        for (std::int64_t i = 0; i < width; ++i) {
          centres[size(c * width + i)] = static_cast<float>(sum[size(i)] / n);
        }
      }
    }
  }
  result.centres = std::move(centres);
  return result;
}

}  // namespace lamina
