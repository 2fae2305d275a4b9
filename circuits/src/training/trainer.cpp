#include "lamina/circuits/trainer.h"

#include <algorithm>
#include <cmath>

#include "impl.h"
#include "lamina/core/error.h"

namespace lamina {

using training::size;

namespace {

void unit_rows(std::vector<float>& rows, std::int64_t n) {
  for (std::size_t at = 0; at < rows.size(); at += size(n)) {
    const double norm = std::sqrt(training::sum_squares(rows.data() + at, n));
    if (norm > 0) {
      for (std::int64_t i = 0; i < n; ++i) {
        rows[at + size(i)] = static_cast<float>(rows[at + size(i)] / norm);
      }
    }
  }
}

Transcoder random_transcoder(const TranscoderConfig& config, training::Random& random) {
  Transcoder t;
  t.config = config;
  const auto directions = [&](std::int64_t width) {
    std::vector<float> rows(size(config.features * width));
    for (float& v : rows) v = static_cast<float>(random.gaussian());
    unit_rows(rows, width);
    return rows;
  };
  t.decoder = directions(config.d_out);
  t.encoder = config.input == config.output ? t.decoder : directions(config.d_in);
  t.encoder_bias.resize(size(config.features));
  t.decoder_bias.resize(size(config.d_out));
  if (config.skip) t.skip.resize(size(config.d_out * config.d_in));
  return t;
}

}  // namespace

TranscoderTrainer::Impl::Impl(const TranscoderConfig& c, const TrainingOptions& o)
    : config(c), options(o), random(o.seed) {
  check_training(options, config);
  last_active.assign(size(config.features), 0.0F);
  if (config.activation == FeatureActivation::batch_topk) running.assign(1, -1.0F);
  if (options.loss == TrainingLoss::code && !config.subtract_decoder_bias) {
    input_bias.start(std::vector<float>(size(config.d_in)));
  }
  if (config.activation == FeatureActivation::jump_relu) {
    log_threshold.start(
        std::vector<float>(size(config.features), static_cast<float>(std::log(options.threshold))));
  }
}

void TranscoderTrainer::Impl::center(std::span<const float> x, std::span<const float> y) {
  if (!options.mean_biases) return;
  const auto to_mean = [](std::vector<float>& bias, std::span<const float> rows) {
    const auto n = static_cast<std::int64_t>(bias.size());
    const auto count = static_cast<std::int64_t>(rows.size()) / n;
    const std::vector<double> sums = training::column_sums(rows.data(), count, n);
    for (std::int64_t i = 0; i < n; ++i) {
      bias[size(i)] = static_cast<float>(sums[size(i)] / static_cast<double>(count));
    }
  };
  to_mean(decoder_bias.value, y);
  if (!input_bias.value.empty()) to_mean(input_bias.value, x);
}

// A value that rises along a line from 0, reaching it after `warmup` steps.
double TranscoderTrainer::Impl::at_step(double value, std::int64_t warmup) const {
  return steps >= warmup ? value
                         : value * static_cast<double>(steps + 1) / static_cast<double>(warmup + 1);
}

double TranscoderTrainer::Impl::learning_rate() const {
  const double rate = at_step(options.learning_rate, options.rate_warmup);
  const std::int64_t left = options.steps - steps;
  return options.rate_decay > 0 && left <= options.rate_decay
             ? rate * static_cast<double>(std::max<std::int64_t>(left, 0)) /
                   static_cast<double>(options.rate_decay + 1)
             : rate;
}

double TranscoderTrainer::Impl::penalty(float z) const {
  switch (options.penalty) {
    case SparsityPenalty::none:
      return 0;
    case SparsityPenalty::l1:
      return z;
    case SparsityPenalty::l0:
      return z > 0 ? 1 : 0;
    case SparsityPenalty::tanh:
      return std::tanh(options.tanh_scale * z);
  }
  return 0;
}

// ∂/∂z of the penalty as it stands in the loss: λ and the mean over rows included.
float TranscoderTrainer::Impl::penalty_slope(float z, const Batch& b) const {
  const double each = b.lambda / static_cast<double>(b.rows);
  if (options.penalty == SparsityPenalty::l1) return static_cast<float>(each);
  if (options.penalty == SparsityPenalty::tanh) {
    const double t = std::tanh(options.tanh_scale * z);
    return static_cast<float>(each * options.tanh_scale * (1 - t * t));
  }
  return 0;
}

void TranscoderTrainer::Impl::start_rows(const Batch& b) {
  training::Workspace& w = *work;
  const std::int64_t d = config.d_out;
  w.rebuilt.resize(size(b.rows * d));
  if (config.skip) {
    w.skip = internal::Operand(d, config.d_in);
    w.skip.set(skip.value.data(), d);
    internal::product(b.x, config.d_in, b.rows, w.skip, w.rebuilt.data(), d);
  } else {
    std::fill(w.rebuilt.begin(), w.rebuilt.end(), 0.0F);
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < b.rows; ++r) {
    for (std::int64_t i = 0; i < d; ++i) w.rebuilt[size(r * d + i)] += decoder_bias.value[size(i)];
  }
}

void TranscoderTrainer::Impl::finish_row(const Batch& b, std::int64_t row) {
  training::Workspace& w = *work;
  const std::int64_t d = config.d_out;
  const float *rebuilt = w.rebuilt.data() + row * d, *y = b.y + row * d;
  float* slope = w.slope.data() + row * d;
  double measure = 1;
  if (options.loss == TrainingLoss::code) {
    // A row of zeros has no direction to be rebuilt in: it is not divided by nothing.
    const double norm = std::max(std::sqrt(training::sum_squares(y, d)), 1e-8);
    measure = 1 / (norm * static_cast<double>(d));
  }
  for (std::int64_t i = 0; i < d; ++i) slope[i] = rebuilt[i] - y[i];
  w.square_error[size(row)] = training::sum_squares(slope, d);
  w.error[size(row)] = w.square_error[size(row)] * measure;
  const auto factor = static_cast<float>(2 * measure / static_cast<double>(b.rows));
  w.weight[size(row)] = factor;
  for (std::int64_t i = 0; i < d; ++i) slope[i] *= factor;
}

TrainingStep TranscoderTrainer::Impl::step(std::span<const float> x, std::span<const float> y) {
  training::Workspace& w = *work;
  const std::int64_t d_in = config.d_in, d = config.d_out, f = config.features;
  Batch b{};
  b.rows = static_cast<std::int64_t>(x.size()) / d_in;
  if (b.rows < 1 || x.size() != size(b.rows * d_in) || y.size() != size(b.rows * d)) {
    fail_usage("{}: {} values in and {} out, expected rows of {} and of {}", config.name, x.size(),
               y.size(), d_in, d);
  }
  b.x = b.xc = x.data();
  b.y = y.data();
  b.lambda = at_step(options.lambda, options.lambda_warmup);
  b.rate = learning_rate();
  for (float v : log_threshold.value) b.threshold.push_back(std::exp(v));
  for (std::int64_t j = 0; j < f; ++j) {
    if (static_cast<double>(steps) - last_active[size(j)] >=
        static_cast<double>(options.dead_window)) {
      b.dead.push_back(static_cast<std::int32_t>(j));
    }
  }
  if (subtracts()) {
    const std::vector<float>& bias =
        config.subtract_decoder_bias ? decoder_bias.value : input_bias.value;
    w.centred.resize(x.size());
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < b.rows; ++r) {
      for (std::int64_t i = 0; i < d_in; ++i) {
        w.centred[size(r * d_in + i)] = x[size(r * d_in + i)] - bias[size(i)];
      }
    }
    b.xc = w.centred.data();
  }
  if (w.encoder.n_out() != f || w.encoder.n_in() != d_in) w.encoder = internal::Operand(f, d_in);
  w.encoder.set(encoder.value.data(), f);
  w.u.resize(size(b.rows * f));
  internal::product(b.xc, d_in, b.rows, w.encoder, w.u.data(), f);
  select_features(config, encoder_bias.value, b.threshold, static_cast<float>(options.bandwidth),
                  b.rows, w.u.data(), w.selection);

  start_rows(b);
  w.slope.resize(size(b.rows * d));
  w.weight.resize(size(b.rows));
  w.active.assign(size(b.rows), 0);
  for (auto* sums : {&w.square_error, &w.error, &w.penalty, &w.auxiliary}) {
    sums->assign(size(b.rows), 0.0);
  }
  if (w.selection.dense) {
    forward_dense(b);
  } else {
    forward_sparse(b);
  }
  w.aux.offsets.assign(size(b.rows + 1), 0);
  w.aux.feature.clear();
  if (options.dead == DeadFeatures::auxk && !b.dead.empty()) auxiliary(b);

  TrainingStep report;
  const auto n = static_cast<double>(b.rows);
  double square_error = 0, square = 0;
  for (std::int64_t r = 0; r < b.rows; ++r) {
    report.error += w.error[size(r)] / n;
    report.penalty += b.lambda * w.penalty[size(r)] / n;
    report.auxiliary += options.auxk_weight * w.auxiliary[size(r)] / n;
    report.l0 += static_cast<double>(w.active[size(r)]) / n;
    square_error += w.square_error[size(r)];
    square += training::sum_squares(b.y + r * d, d);
  }
  for (double sum : training::column_sums(b.y, b.rows, d)) square -= sum * sum / n;
  report.explained_variance = square > 0 ? 1 - square_error / square : 0;
  report.loss = report.error + report.penalty + report.auxiliary;
  report.dead = static_cast<double>(b.dead.size()) / static_cast<double>(f);
  report.learning_rate = b.rate;
  report.lambda = b.lambda;
  if (!std::isfinite(report.loss)) {
    fail("{}: the loss is {} at step {} (learning rate {})", config.name, report.loss, steps + 1,
         b.rate);
  }
  if (!running.empty() && w.selection.least > 0) {
    const auto keep = static_cast<float>(options.threshold_average);
    running[0] =
        running[0] < 0 ? w.selection.least : keep * running[0] + (1 - keep) * w.selection.least;
  }
  update(b);
  ++steps;
  if (options.dead == DeadFeatures::resample && steps % options.dead_window == 0) resample(b);
  return report;
}

void TranscoderTrainer::Impl::resample(const Batch& b) {
  const training::Workspace& w = *work;
  const std::int64_t d_in = config.d_in, d = config.d_out;
  std::vector<std::int64_t> dead;
  double norms = 0;
  for (std::int64_t j = 0; j < config.features; ++j) {
    if (static_cast<double>(steps) - last_active[size(j)] >=
        static_cast<double>(options.dead_window)) {
      dead.push_back(j);
    } else {
      norms += std::sqrt(training::sum_squares(encoder.value.data() + j * d_in, d_in));
    }
  }
  const auto living = static_cast<double>(config.features) - static_cast<double>(dead.size());
  const double norm = living > 0 ? options.resample_encoder * norms / living : 1;
  std::vector<double> means = training::column_sums(b.xc, b.rows, d_in);
  for (double& m : means) m /= static_cast<double>(b.rows);
  std::vector<double> chance(size(b.rows));
  double total = 0;
  for (std::int64_t r = 0; r < b.rows; ++r) {
    chance[size(r)] = total += w.square_error[size(r)] * w.square_error[size(r)];
  }
  for (std::int64_t j : dead) {
    const auto found = std::upper_bound(chance.begin(), chance.end(), random.uniform() * total);
    const std::int64_t r = std::min<std::int64_t>(found - chance.begin(), b.rows - 1);
    std::vector<float> in(size(d_in)), out(size(d));
    for (std::int64_t i = 0; i < d_in; ++i) {
      in[size(i)] = static_cast<float>(b.xc[r * d_in + i] - means[size(i)]);
    }
    for (std::int64_t i = 0; i < d; ++i) out[size(i)] = -w.slope[size(r * d + i)];
    unit_rows(in, d_in);
    unit_rows(out, d);
    double bias = 0;
    for (std::int64_t i = 0; i < d_in; ++i) {
      in[size(i)] = static_cast<float>(in[size(i)] * norm);
      bias -= in[size(i)] * means[size(i)];
    }
    const auto put = [j](training::Parameter& p, const std::vector<float>& values) {
      const std::int64_t n = std::ssize(values);
      std::copy(values.begin(), values.end(), p.value.begin() + j * n);
      std::fill_n(p.mean.begin() + j * n, n, 0.0F);
      std::fill_n(p.square.begin() + j * n, n, 0.0F);
    };
    put(encoder, in);
    put(decoder, out);
    put(encoder_bias, {static_cast<float>(bias)});
    if (!log_threshold.value.empty()) {
      put(log_threshold, {static_cast<float>(std::log(options.threshold))});
    }
    last_active[size(j)] = static_cast<float>(steps);
  }
}

TranscoderTrainer::TranscoderTrainer(const TranscoderConfig& config, const TrainingOptions& options)
    : impl_(std::make_unique<Impl>(config, options)) {
  Transcoder t = random_transcoder(config, impl_->random);
  impl_->encoder.start(std::move(t.encoder));
  impl_->encoder_bias.start(std::move(t.encoder_bias));
  impl_->decoder.start(std::move(t.decoder));
  impl_->decoder_bias.start(std::move(t.decoder_bias));
  impl_->skip.start(std::move(t.skip));
}

TranscoderTrainer::TranscoderTrainer(Transcoder initial, const TrainingOptions& options)
    : impl_(std::make_unique<Impl>(initial.config, options)) {
  Impl& m = *impl_;
  if (!m.log_threshold.value.empty() && initial.threshold.empty()) {
    initial.threshold.assign(size(m.config.features), static_cast<float>(options.threshold));
  }
  if (!m.running.empty() && initial.threshold.empty()) {
    initial.threshold.assign(size(m.config.features), 0.0F);
  }
  initial.check();
  if (!m.log_threshold.value.empty()) {
    for (float& v : initial.threshold) v = std::log(v);
    m.log_threshold.start(std::move(initial.threshold));
  }
  if (options.unit_decoder) unit_rows(initial.decoder, m.config.d_out);
  m.encoder.start(std::move(initial.encoder));
  m.encoder_bias.start(std::move(initial.encoder_bias));
  m.decoder.start(std::move(initial.decoder));
  m.decoder_bias.start(std::move(initial.decoder_bias));
  m.skip.start(std::move(initial.skip));
}

TranscoderTrainer::~TranscoderTrainer() = default;
TranscoderTrainer::TranscoderTrainer(TranscoderTrainer&&) noexcept = default;
TranscoderTrainer& TranscoderTrainer::operator=(TranscoderTrainer&&) noexcept = default;

void TranscoderTrainer::center(std::span<const float> x, std::span<const float> y) {
  impl_->center(x, y);
}

TrainingStep TranscoderTrainer::step(std::span<const float> x, std::span<const float> y) {
  return impl_->step(x, y);
}

std::int64_t TranscoderTrainer::steps() const {
  return impl_->steps;
}

Transcoder TranscoderTrainer::transcoder() const {
  const Impl& m = *impl_;
  Transcoder t;
  t.config = m.config;
  t.encoder = m.encoder.value;
  t.encoder_bias = m.encoder_bias.value;
  t.decoder = m.decoder.value;
  t.decoder_bias = m.decoder_bias.value;
  t.skip = m.skip.value;
  if (!m.input_bias.value.empty()) {  // W (x − c) + b = W x + (b − W c)
    for (std::int64_t j = 0; j < m.config.features; ++j) {
      double sum = 0;
      for (std::int64_t i = 0; i < m.config.d_in; ++i) {
        sum += double{t.encoder[size(j * m.config.d_in + i)]} * m.input_bias.value[size(i)];
      }
      t.encoder_bias[size(j)] = static_cast<float>(t.encoder_bias[size(j)] - sum);
    }
  }
  for (float v : m.log_threshold.value) t.threshold.push_back(std::exp(v));
  if (!m.running.empty()) t.threshold.assign(size(m.config.features), std::max(m.running[0], 0.0F));
  return t;
}

void TranscoderTrainer::state(const EachArray& each) {
  Impl& m = *impl_;
  const auto parameter = [&](const std::string& name, training::Parameter& p) {
    if (p.value.empty()) return;
    each(name, p.value);
    each(name + ".mean", p.mean);
    each(name + ".square", p.square);
  };
  parameter("W_enc", m.encoder);
  parameter("b_enc", m.encoder_bias);
  parameter("W_dec", m.decoder);
  parameter("b_dec", m.decoder_bias);
  parameter("b_in", m.input_bias);
  parameter("log_threshold", m.log_threshold);
  parameter("W_skip", m.skip);
  each("last_active", m.last_active);
  if (!m.running.empty()) each("running_threshold", m.running);
}

std::uint64_t TranscoderTrainer::random_state() const {
  return impl_->random.state();
}

void TranscoderTrainer::restore(std::int64_t steps, std::uint64_t random_state) {
  impl_->steps = steps;
  impl_->random.restore(random_state);
}

void TranscoderTrainer::share_workspace(TranscoderTrainer& other) {
  impl_->work = other.impl_->work;
}

}  // namespace lamina
