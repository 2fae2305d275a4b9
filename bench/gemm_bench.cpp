// Speed of kernels::multiply against the measured peak of fused multiply-adds and, for few rows,
// the rate at which weights are read. gemm_bench [avx512|avx2|generic|"" [threads]]

#include <fmt/core.h>

#include <cstdint>
#include <cstdlib>
#include <numeric>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "measure.h"

using namespace lamina;  // NOLINT

namespace {

kernels::PackedMatrix random_matrix(std::int64_t n_out, std::int64_t n_in) {
  kernels::PackedMatrix w(n_out, n_in);
  const std::int64_t at_once = 1024;
  for (std::int64_t first = 0; first < n_out; first += at_once) {
    const std::int64_t count = std::min(at_once, n_out - first);
    w.set_rows(first, count, bench::random_floats(count * n_in, 7).data());
  }
  return w;
}

/// Bytes per second of adding up a buffer too large for any cache, all threads.
double read_rate(int threads) {
  const std::int64_t n = std::int64_t{64} << 20;
  const kernels::PackedMatrix big(n / 1024, 1024);
  const float* p = big.panel(0);
  volatile float sink = 0;
  const double t = bench::best_seconds([&] {
#pragma omp parallel num_threads(threads)
    {
      const std::int64_t share = n / omp_get_num_threads() / 64 * 64;
      const float* q = p + omp_get_thread_num() * share;
      float lanes[64] = {};
      for (std::int64_t i = 0; i < share; i += 64) {
        for (int j = 0; j < 64; ++j) lanes[j] += q[i + j];
      }
      const float total = std::accumulate(lanes, lanes + 64, 0.0f);
#pragma omp critical
      sink = sink + total;
    }
  });
  return static_cast<double>(n) * 4 / t;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) kernels::select_isa(argv[1]);
  const int only = argc > 2 ? std::atoi(argv[2]) : 0;
  const bool wide = kernels::isa() == "avx512";
  const int most = omp_get_max_threads();
  fmt::print("instruction set {}\n", kernels::isa());
  std::vector<int> thread_counts = {1};
  if (most > 1) thread_counts.push_back(most);
  const std::int64_t shapes[][2] = {
      {576, 576}, {576, 1536}, {1536, 576}, {640, 2048}, {576, 49152}};

  for (int threads : thread_counts) {
    if (only > 0 && threads != only) continue;
    omp_set_num_threads(threads);
    const double peak = bench::peak_flops(threads, wide);
    const double rate = read_rate(threads);
    fmt::print("\n{} thread(s): peak {:.0f} GFLOP/s, memory read {:.1f} GB/s\n", threads,
               peak / 1e9, rate / 1e9);
    fmt::print("{:>6} {:>6} {:>6} {:>10} {:>10} {:>7} {:>8}\n", "rows", "n_in", "n_out", "µs",
               "GFLOP/s", "% peak", "GB/s");
    for (const auto& shape : shapes) {
      const std::int64_t n_in = shape[0], n_out = shape[1];
      // Enough copies that no weight is in a cache when its turn comes, as in a real pass.
      const std::size_t bytes = static_cast<std::size_t>(n_in * n_out * 4);
      std::vector<kernels::PackedMatrix> w;
      for (std::size_t total = 0; total < (std::size_t{96} << 20) || w.empty(); total += bytes) {
        w.push_back(random_matrix(n_out, n_in));
      }
      for (std::int64_t rows : {1, 2, 4, 8, 16, 64, 256, 1024}) {
        if (rows == 1024 && n_out > 10'000) continue;  // 200 MB of logits
        const auto x = bench::random_floats(rows * n_in, 1);
        std::vector<float> y(rows * n_out);
        std::size_t i = 0;
        const double t = bench::best_seconds([&] {
          kernels::multiply(x.data(), n_in, rows, w[i++ % w.size()], nullptr, y.data(), n_out);
        });
        const double flops = 2.0 * static_cast<double>(rows * n_in * n_out);
        fmt::print("{:>6} {:>6} {:>6} {:>10.1f} {:>10.1f} {:>7.1f} {:>8.1f}\n", rows, n_in, n_out,
                   t * 1e6, flops / t / 1e9, 100 * flops / t / peak, bytes / t / 1e9);
      }
    }
  }
}
