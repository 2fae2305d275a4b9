// Attention of one layer beside that layer's weight products, and the elementwise kernels.
// attention_bench [avx512|avx2|generic|"" [threads]]

#include <fmt/core.h>

#include <cstdint>
#include <cstdlib>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "lamina/core/math.h"
#include "measure.h"

using namespace lamina;  // NOLINT

namespace {

struct Model {
  const char* name;
  std::int64_t d_model, heads, kv_heads, d_head, d_mlp;
};

void attention_rows(const Model& m) {
  const std::int64_t q_width = m.heads * m.d_head, kv_width = m.kv_heads * m.d_head;
  const kernels::PackedMatrix q(q_width, m.d_model), kv(2 * kv_width, m.d_model),
      o(m.d_model, q_width), up(2 * m.d_mlp, m.d_model), down(m.d_model, m.d_mlp);
  struct Setting {
    std::int64_t prompts, queries, keys;
  };
  for (const Setting s :
       {Setting{1, 64, 64}, Setting{1, 256, 256}, Setting{1, 1024, 1024}, Setting{1, 1, 256},
        Setting{1, 1, 2048}, Setting{32, 1, 256}, Setting{32, 20, 20}}) {
    const std::int64_t rows = s.prompts * s.queries;
    const auto x = bench::random_floats(rows * std::max(m.d_mlp, std::max(q_width, m.d_model)), 1);
    std::vector<float> y(rows * 2 * std::max(m.d_mlp, q_width));
    const auto k = bench::random_floats(s.prompts * s.keys * kv_width, 2);
    const auto v = bench::random_floats(s.prompts * s.keys * kv_width, 3);
    std::vector<kernels::AttentionArgs> args;
    for (std::int64_t p = 0; p < s.prompts; ++p) {
      args.push_back({x.data() + p * s.queries * q_width, k.data() + p * s.keys * kv_width,
                      v.data() + p * s.keys * kv_width, y.data() + p * s.queries * q_width,
                      s.queries, s.keys, m.heads, m.kv_heads, m.d_head, 0.125f, 0.0f, true, 0});
    }
    const double products = bench::best_seconds([&] {
      kernels::multiply(x.data(), m.d_model, rows, q, nullptr, y.data(), q_width);
      kernels::multiply(x.data(), m.d_model, rows, kv, nullptr, y.data(), 2 * kv_width);
      kernels::multiply(x.data(), q_width, rows, o, nullptr, y.data(), m.d_model);
      kernels::multiply(x.data(), m.d_model, rows, up, nullptr, y.data(), 2 * m.d_mlp);
      kernels::multiply(x.data(), m.d_mlp, rows, down, nullptr, y.data(), m.d_model);
    });
    const double attention = bench::best_seconds([&] { kernels::attention_batch(args); });
    const double visible = static_cast<double>(s.queries) *
                           (static_cast<double>(s.keys) - 0.5 * static_cast<double>(s.queries - 1));
    const double flops = 4.0 * static_cast<double>(s.prompts * q_width) * visible;
    fmt::print(
        "{:<14} {:>3} × {:>4} queries, {:>4} keys: attention {:>8.1f} µs ({:>5.1f} GFLOP/s), "
        "products {:>8.1f} µs, share {:>4.1f} %\n",
        m.name, s.prompts, s.queries, s.keys, attention * 1e6, flops / attention / 1e9,
        products * 1e6, 100 * attention / (attention + products));
  }
}

template <class Function>
void per_value(const char* name, std::int64_t n, Function f) {
  const double t = bench::best_seconds(f);
  fmt::print("{:<24} {:>8.3f} ns per value\n", name, t * 1e9 / static_cast<double>(n));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) kernels::select_isa(argv[1]);
  if (argc > 2) omp_set_num_threads(std::atoi(argv[2]));
  fmt::print("instruction set {}, {} threads\n", kernels::isa(), omp_get_max_threads());
  attention_rows({"SmolLM2-135M", 576, 9, 3, 64, 1536});
  attention_rows({"gemma-3-270m", 640, 4, 1, 256, 2048});

  omp_set_num_threads(1);
  fmt::print("\none thread:\n");
  const std::int64_t n = 16'384;
  const auto x = bench::random_floats(n, 4);
  std::vector<float> y(n);
  const auto act = [&](const char* name, Activation a) {
    per_value(name, n, [&] { kernels::activate_gated(a, x.data(), x.data(), 1, n, y.data()); });
  };
  act("silu, gated", Activation::silu);
  act("gelu, gated", Activation::gelu);
  act("gelu_tanh, gated", Activation::gelu_tanh);
  per_value("softcap", n, [&] {
    std::copy(x.begin(), x.end(), y.begin());
    kernels::softcap(y.data(), n, 30.0f);
  });
  const std::int64_t vocabulary = 49'152;
  const auto p = bench::random_floats(vocabulary, 5), q = bench::random_floats(vocabulary, 6);
  volatile double sink = 0;
  std::vector<std::int32_t> ids(10);
  std::vector<float> values(10);
  per_value("log_sum_exp", vocabulary, [&] { sink = math::log_sum_exp(p); });
  per_value("entropy", vocabulary, [&] { sink = math::entropy(p, 11.0); });
  per_value("kl_divergence", vocabulary, [&] { sink = math::kl_divergence(p, 11.0, q, 11.0); });
  per_value("top 10", vocabulary, [&] { math::top_k(p, ids, values); });
}
