// Gradients and Adam, feature by feature: the gradient of a feature's two rows never leaves the
// cache, and its parameters are read and written once.

#include <algorithm>
#include <cmath>

#include "impl.h"

namespace lamina {

using training::size;

namespace {

constexpr std::int64_t kFeatureBlock = 64;

}  // namespace

void TranscoderTrainer::Impl::update_features(const Batch& b, const training::AdamStep& adam,
                                              std::int64_t first, std::int64_t end,
                                              const DenseGradient* dense, float* bias_slope) {
  const training::Workspace& w = *work;
  const std::int64_t d_in = config.d_in, d = config.d_out;
  thread_local std::vector<float> in, out;
  in.resize(size(d_in));
  out.resize(size(d));
  const bool jump = config.activation == FeatureActivation::jump_relu;
  const auto add_entries = [&](const training::ByFeature& by, const std::vector<float>& slopes,
                               std::int64_t f, float& bias) {
    for (std::int64_t e = by.offsets[size(f)]; e < by.offsets[size(f + 1)]; ++e) {
      const std::int64_t row = by.row[size(e)];
      const float z = by.value[size(e)], slope = by.slope[size(e)];
      if (z == 0) continue;
      training::add_scaled(z, slopes.data() + row * d, d, out.data());
      training::add_scaled(slope, b.xc + row * d_in, d_in, in.data());
      bias += slope;
    }
  };
  for (std::int64_t f = first; f < end; ++f) {
    float bias = 0, limit = 0;
    if (dense != nullptr) {
      const DenseGradient& g = dense[f - first];
      std::copy_n(g.encoder, d_in, in.data());
      std::copy_n(g.decoder, d, out.data());
      bias = g.bias;
      limit = g.threshold;
    } else {
      std::fill(in.begin(), in.end(), 0.0F);
      std::fill(out.begin(), out.end(), 0.0F);
      add_entries(w.by_feature, w.slope, f, bias);
      if (jump) {
        for (std::int64_t e = w.by_feature.offsets[size(f)]; e < w.by_feature.offsets[size(f + 1)];
             ++e) {
          limit += w.by_feature.threshold_slope[size(e)];
        }
      }
    }
    if (!w.aux.feature.empty()) add_entries(w.aux_by_feature, w.aux_slope, f, bias);

    float* encoder_row = encoder.value.data() + f * d_in;
    float* decoder_row = decoder.value.data() + f * d;
    if (bias_slope != nullptr) training::add_scaled(bias, encoder_row, d_in, bias_slope);
    if (options.unit_decoder) {
      training::add_scaled(-training::dot(out.data(), decoder_row, d), decoder_row, d, out.data());
    }
    adam.apply(out.data(), d, decoder_row, decoder.mean.data() + f * d,
               decoder.square.data() + f * d);
    adam.apply(in.data(), d_in, encoder_row, encoder.mean.data() + f * d_in,
               encoder.square.data() + f * d_in);
    adam.apply(&bias, 1, &encoder_bias.value[size(f)], &encoder_bias.mean[size(f)],
               &encoder_bias.square[size(f)]);
    if (jump) {  // through θ = exp(log θ)
      limit *= b.threshold[size(f)];
      adam.apply(&limit, 1, &log_threshold.value[size(f)], &log_threshold.mean[size(f)],
                 &log_threshold.square[size(f)]);
    }
    if (options.unit_decoder) {
      const auto scale = static_cast<float>(1 / std::sqrt(training::sum_squares(decoder_row, d)));
      for (std::int64_t i = 0; i < d; ++i) decoder_row[i] *= scale;
    }
  }
}

void TranscoderTrainer::Impl::update(const Batch& b) {
  training::Workspace& w = *work;
  const std::int64_t d_in = config.d_in, d = config.d_out, f = config.features;
  const auto t = static_cast<double>(steps + 1);
  const training::AdamStep adam{static_cast<float>(1 - options.beta1),
                                static_cast<float>(options.beta2),
                                static_cast<float>(1 - options.beta2),
                                static_cast<float>(options.epsilon),
                                static_cast<float>(b.rate / (1 - std::pow(options.beta1, t))),
                                static_cast<float>(std::sqrt(1 - std::pow(options.beta2, t)))};
  // Before anything changes: what reads the old weights.
  std::vector<float> skip_slope;
  if (config.skip) {
    std::vector<float> slope_t(size(d * b.rows)), x_t(size(d_in * b.rows));
    training::transpose(w.slope.data(), d, b.rows, d, slope_t.data());
    training::transpose(b.x, d_in, b.rows, d_in, x_t.data());
    internal::Operand inputs(d_in, b.rows);
    inputs.set(x_t.data(), d_in);
    skip_slope.resize(size(d * d_in));
    internal::product(slope_t.data(), b.rows, d, inputs, skip_slope.data(), d_in);
  }
  if (!w.aux.feature.empty()) w.aux_by_feature.build(w.aux, f);

  std::vector<double> bias_slope(subtracts() ? size(d_in) : 0);  // Σ_f W_enc[f]·∂L/∂b_enc[f]
  if (w.selection.dense) {
    update_dense(b, adam, bias_slope);
  } else {
    w.by_feature.build(w.selection.entries, f);
    const std::int64_t blocks = (f + kFeatureBlock - 1) / kFeatureBlock;
    std::vector<float> parts(bias_slope.empty() ? 0 : size(blocks * d_in));
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < blocks; ++i) {
      update_features(b, adam, i * kFeatureBlock, std::min(f, (i + 1) * kFeatureBlock), nullptr,
                      parts.empty() ? nullptr : parts.data() + i * d_in);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) bias_slope[i % size(d_in)] += parts[i];
    for (std::int64_t j = 0; j < f; ++j) {
      for (std::int64_t e = w.by_feature.offsets[size(j)]; e < w.by_feature.offsets[size(j + 1)];
           ++e) {
        if (w.by_feature.value[size(e)] == 0) continue;
        last_active[size(j)] = static_cast<float>(steps + 1);
        break;
      }
    }
  }

  const auto apply = [&](training::Parameter& p, const std::vector<float>& gradient) {
    adam.apply(gradient.data(), std::ssize(gradient), p.value.data(), p.mean.data(),
               p.square.data());
  };
  const std::vector<double> output = training::column_sums(w.slope.data(), b.rows, d);
  std::vector<float> gradient(size(d));
  for (std::int64_t i = 0; i < d; ++i) {
    const double tied = config.subtract_decoder_bias ? bias_slope[size(i)] : 0;
    gradient[size(i)] = static_cast<float>(output[size(i)] - tied);
  }
  apply(decoder_bias, gradient);
  if (!input_bias.value.empty()) {
    gradient.resize(size(d_in));
    for (std::int64_t i = 0; i < d_in; ++i) {
      gradient[size(i)] = static_cast<float>(-bias_slope[size(i)]);
    }
    apply(input_bias, gradient);
  }
  if (config.skip) apply(skip, skip_slope);
}

}  // namespace lamina
