// Features of tokens: Transcoder::encode beside the bare product with packed weights.
// encode_bench [threads]

#include <fmt/core.h>

#include <cstdint>
#include <cstdlib>

#include "engine/kernels.h"
#include "lamina/circuits/transcoder.h"
#include "lamina/core/threads.h"
#include "measure.h"

using namespace lamina;  // NOLINT

int main(int argc, char** argv) {
  if (argc > 1) set_threads(std::atoi(argv[1]));
  fmt::print("{} threads, d_in 576\n{:>9} {:>6} {:>11} {:>9} {:>11} {:>9} {:>8}\n", threads(),
             "features", "rows", "activation", "encode", "GFLOP/s", "product", "share");
  for (const std::int64_t features : {4096L, 32768L, 131072L}) {
    Transcoder t;
    t.config.name = "bench";
    t.config.d_in = 576;
    t.config.d_out = 1;
    t.config.features = features;
    t.encoder = bench::random_floats(features * 576, 1);
    t.encoder_bias.assign(static_cast<std::size_t>(features), -30.0F);  // few are active
    t.decoder.resize(static_cast<std::size_t>(features));
    t.decoder_bias.resize(1);
    kernels::PackedMatrix packed(features, 576);
    packed.set_rows(0, features, t.encoder.data());
    for (const std::int64_t rows : {16L, 256L, 1024L}) {
      const auto x = bench::random_floats(rows * 576, 2);
      std::vector<float> u(static_cast<std::size_t>(rows * features));
      const double product = bench::best_seconds(
          [&] { kernels::multiply(x.data(), 576, rows, packed, nullptr, u.data(), features); });
      for (const auto activation : {FeatureActivation::relu, FeatureActivation::topk}) {
        t.config.activation = activation;
        t.config.k = activation == FeatureActivation::topk ? 64 : 0;
        const double encode = bench::best_seconds([&] { t.encode(x); });
        fmt::print("{:>9} {:>6} {:>11} {:>7.1f}ms {:>11.0f} {:>7.1f}ms {:>8.2f}\n", features, rows,
                   feature_activation_name(activation), encode * 1e3,
                   2e-9 * static_cast<double>(rows * features * 576) / encode, product * 1e3,
                   product / encode);
      }
    }
  }
}
