#include "lamina/probes/inflection.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <numeric>
#include <tuple>

#include "lamina/core/backward.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// What enters layer 0, and what leaves every layer.
std::vector<Site> streams(const ModelConfig& config) {
  std::vector<Site> out = {{SiteKind::resid_pre, 0}};
  const bool post = config.norm_place == NormPlace::post && config.d_mlp > 0;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    out.push_back({post ? SiteKind::normalized_resid_post : SiteKind::resid_post, l});
  }
  return out;
}

InflectionLoss resolve(InflectionLoss loss, const ModelConfig& config) {
  const bool classifier = config.head == Head::classifier;
  const bool words = config.head == Head::language && config.causal;
  if (loss == InflectionLoss::automatic) {
    return classifier ? InflectionLoss::label
           : words    ? InflectionLoss::next_token
                      : InflectionLoss::none;
  }
  if (loss == InflectionLoss::next_token && !words) {
    fail_usage("this {} model is no causal language model: it has no next-token loss",
               config.family);
  }
  if (loss == InflectionLoss::label && !classifier) {
    fail_usage("this {} model is no classifier: it has no loss of labels", config.family);
  }
  return loss;
}

// The rows whose logits are in the loss, and the right answer of each.
struct Answers {
  std::vector<std::int64_t> rows;
  std::vector<std::int32_t> ids;
};

Answers answers(const Batch& batch, std::span<const Prompt> prompts, InflectionLoss loss,
                const InflectionOptions& options, const ModelConfig& config) {
  Answers out;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    const std::int64_t first = batch.offsets[p], last = batch.offsets[p + 1] - 1;
    if (loss == InflectionLoss::label) {
      out.rows.push_back(first);
      out.ids.push_back(label_of(prompts[p], options.label, config));
      continue;
    }
    for (std::int64_t t = first; t < last; ++t) {
      out.rows.push_back(t);
      out.ids.push_back(batch.ids[size(t + 1)]);
    }
    if (prompts[p].target && prompts[p].given == static_cast<std::int64_t>(prompts[p].ids.size())) {
      out.rows.push_back(last);
      out.ids.push_back(*prompts[p].target);
    }
  }
  return out;
}

// One model and what it has measured so far.
class Runner {
 public:
  Runner(Forward& forward, InflectionLoss loss, const InflectionOptions& options)
      : forward_(forward),
        config_(forward.model().config()),
        options_(options),
        loss_(loss),
        backward_(forward.model()),
        streams_(streams(config_)) {
    const std::size_t layers = size(config_.n_layers), heads = layers * size(config_.n_heads);
    run_.model_id = forward.model().id();
    run_.model_sha256 = forward.model().sha256();
    run_.head_entropy.assign(heads, 0.0);
    run_.head_entropy_normalized.assign(heads, 0.0);
    if (loss_ == InflectionLoss::none) return;
    run_.token_gradient.assign(layers + 1, 0.0);
    run_.batch_gradient.assign(layers + 1, 0.0);
    run_.layer_gradient.assign(layers, 0.0);
    backward_.want_parameter_norms(true);
  }

  /// One batch; `values`, if given, gets every stream's values [stream][tokens, d_model].
  void observe(const Batch& batch, std::span<const Prompt> prompts,
               std::vector<std::vector<float>>* values);
  InflectionRun finish();
  const std::vector<Site>& sites() const { return streams_; }

 private:
  void pattern(const SiteView& view);
  void go_back(const Batch& batch, std::span<const Prompt> prompts);

  Forward& forward_;
  const ModelConfig& config_;
  const InflectionOptions& options_;
  InflectionLoss loss_;
  Backward backward_;
  Tape tape_;
  std::vector<Site> streams_;
  InflectionRun run_;
  double queries_ = 0, open_queries_ = 0;  // of every head; with more than one visible key
  double correct_ = 0;
};

// Σ over the queries of the entropy of each head's pattern.
void Runner::pattern(const SiteView& view) {
  const std::int64_t layer = view.site.layer, q = view.queries, k = view.keys;
  const std::int64_t window = config_.layers[size(layer)].window;
#pragma omp parallel for
  for (std::int64_t h = 0; h < config_.n_heads; ++h) {
    double sum = 0, normalized = 0;
    for (std::int64_t t = 0; t < q; ++t) {
      const float* row = view.values.data() + (h * q + t) * k;
      double entropy = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const double a = row[i];
        if (a > 0) entropy -= a * std::log(a);
      }
      std::int64_t visible = config_.causal ? t + 1 : k;
      if (window > 0) visible = std::min(visible, window);
      sum += entropy;
      if (visible > 1) normalized += entropy / std::log(static_cast<double>(visible));
    }
    run_.head_entropy[size(layer * config_.n_heads + h)] += sum;
    run_.head_entropy_normalized[size(layer * config_.n_heads + h)] += normalized;
  }
}

void Runner::observe(const Batch& batch, std::span<const Prompt> prompts,
                     std::vector<std::vector<float>>* values) {
  Hooks hooks;
  for (std::int32_t l = 0; l < config_.n_layers; ++l) {
    hooks.read({SiteKind::pattern, l}, [this](SiteView& view) { pattern(view); });
  }
  if (values != nullptr) {
    values->resize(streams_.size());
    for (std::size_t s = 0; s < streams_.size(); ++s) {
      hooks.read(streams_[s], [to = &(*values)[s]](SiteView& view) {
        to->assign(view.values.begin(), view.values.end());
      });
    }
  }
  const bool back = loss_ != InflectionLoss::none;
  forward_.run(batch, hooks, {.tape = back ? &tape_ : nullptr});
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    queries_ += static_cast<double>(batch.length(p));
    // The first token of a causal model sees itself only, a window of one nobody else.
    open_queries_ += static_cast<double>(config_.causal        ? batch.length(p) - 1
                                         : batch.length(p) > 1 ? batch.length(p)
                                                               : 0);
  }
  run_.tokens += batch.tokens();
  if (back) go_back(batch, prompts);
}

void Runner::go_back(const Batch& batch, std::span<const Prompt> prompts) {
  const Answers wanted = answers(batch, prompts, loss_, options_, config_);
  if (wanted.rows.empty()) return;
  const auto count = static_cast<std::int64_t>(wanted.rows.size());
  const std::int64_t width = config_.d_out();
  // The loss is the mean over the batch's answers; its gradient at the logits is (p − 1)/count.
  constexpr std::int64_t kValues = std::int64_t{1} << 23;
  const std::int64_t some = std::clamp<std::int64_t>(kValues / width, 1, count);
  std::vector<float> gradient(size(some * width));
  std::vector<double> losses(size(count));
  std::vector<char> right(size(count));
  for (std::int64_t first = 0; first < count; first += some) {
    const std::int64_t rows = std::min(some, count - first);
    const auto which = std::span(wanted.rows).subspan(size(first), size(rows));
    const auto part = std::span(gradient).first(size(rows * width));
    forward_.run_logits(which, part);
#pragma omp parallel for
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::span<float> row = part.subspan(size(r * width), size(width));
      const auto answer = size(wanted.ids[size(first + r)]);
      const double log_sum = math::log_sum_exp(row);
      losses[size(first + r)] = log_sum - row[answer];
      right[size(first + r)] =
          std::max_element(row.begin(), row.end()) - row.begin() == wanted.ids[size(first + r)];
      for (float& g : row) {
        g = static_cast<float>(std::exp(g - log_sum) / static_cast<double>(count));
      }
      row[answer] =
          static_cast<float>(std::expm1(-losses[size(first + r)]) / static_cast<double>(count));
    }
    backward_.seed(tape_, which, part);
  }
  run_.loss += std::accumulate(losses.begin(), losses.end(), 0.0);
  correct_ += static_cast<double>(std::count(right.begin(), right.end(), 1));
  run_.predicted += count;
  ++run_.batches;

  Hooks hooks;
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    hooks.read(streams_[s], [this, s, count](SiteView& view) {
      const std::int64_t d = config_.d_model;
      double squares = 0, norms = 0;
      for (std::int64_t t = 0; t < view.batch.tokens(); ++t) {
        double row = 0;
        for (std::int64_t i = t * d; i < (t + 1) * d; ++i) {
          row += static_cast<double>(view.values[size(i)]) * view.values[size(i)];
        }
        squares += row;
        norms += std::sqrt(row);
      }
      run_.batch_gradient[s] += std::sqrt(squares);
      run_.token_gradient[s] += norms * static_cast<double>(count);  // of the sum, not the mean
    });
  }
  backward_.run(tape_, {}, hooks);
  const std::vector<ParameterNorm>& norms = backward_.parameter_norms();
  std::vector<double> squares(size(config_.n_layers));
  if (run_.parameters.empty()) {
    for (const ParameterNorm& norm : norms) {
      run_.parameters.push_back(norm.tensor);
      run_.parameter_layer.push_back(norm.layer);
    }
    run_.parameter_gradient.assign(norms.size(), 0.0);
  }
  for (std::size_t i = 0; i < norms.size(); ++i) {
    run_.parameter_gradient[i] += norms[i].norm;
    if (norms[i].layer >= 0) squares[size(norms[i].layer)] += norms[i].norm * norms[i].norm;
  }
  for (std::size_t l = 0; l < squares.size(); ++l) run_.layer_gradient[l] += std::sqrt(squares[l]);
}

InflectionRun Runner::finish() {
  const std::size_t layers = size(config_.n_layers), heads = size(config_.n_heads);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  run_.entropy.assign(layers, 0.0);
  run_.entropy_normalized.assign(layers, 0.0);
  for (std::size_t l = 0; l < layers; ++l) {
    // A window of one key leaves no choice anywhere.
    const double open = config_.layers[l].window == 1 ? 0 : open_queries_;
    for (std::size_t h = l * heads; h < (l + 1) * heads; ++h) {
      run_.head_entropy[h] /= queries_;
      run_.head_entropy_normalized[h] = open > 0 ? run_.head_entropy_normalized[h] / open : kNaN;
      run_.entropy[l] += run_.head_entropy[h] / static_cast<double>(heads);
      run_.entropy_normalized[l] += run_.head_entropy_normalized[h] / static_cast<double>(heads);
    }
  }
  if (loss_ == InflectionLoss::none) return std::move(run_);
  if (run_.predicted == 0) {
    fail("the prompts leave nothing to predict; a next-token loss needs two tokens or a target");
  }
  const auto batches = static_cast<double>(run_.batches);
  run_.loss /= static_cast<double>(run_.predicted);
  run_.accuracy = correct_ / static_cast<double>(run_.predicted);
  for (double& g : run_.token_gradient) g /= static_cast<double>(run_.tokens);
  for (auto* all : {&run_.batch_gradient, &run_.parameter_gradient, &run_.layer_gradient}) {
    for (double& g : *all) g /= batches;
  }
  const std::vector<double>& gradient =
      options_.batch_gradient ? run_.batch_gradient : run_.token_gradient;
  std::vector<double> minus_entropy(layers), minus_log(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    if (!(gradient[l + 1] > 0)) {
      fail("{}: the gradient behind layer {} is {}; the score needs a positive one", run_.model_id,
           l, gradient[l + 1]);
    }
    minus_entropy[l] = -run_.entropy[l];
    minus_log[l] = -std::log(gradient[l + 1]);
  }
  run_.low_entropy = min_max(minus_entropy);
  run_.low_gradient = min_max(minus_log);
  run_.score.resize(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    run_.score[l] =
        options_.weight * run_.low_entropy[l] + (1.0 - options_.weight) * run_.low_gradient[l];
  }
  run_.candidates = local_maxima(run_.score);
  std::tie(run_.band_first, run_.band_last) = peak_band(run_.score, options_.band);
  return std::move(run_);
}

void check_options(const InflectionOptions& o) {
  const auto share = [](double value, const char* name) {
    if (!(value >= 0 && value <= 1)) fail_usage("{} is {}; expected 0 to 1", name, value);
  };
  share(o.weight, "the weight of the entropy");
  share(o.band, "the band's share of the peak");
  share(o.variance, "the variance of the basis");
  if (o.skip < 0) fail_usage("skip is {}; expected 0 or more", o.skip);
  if (o.components < 1) fail_usage("components is {}; expected 1 or more", o.components);
  if (o.batch_tokens < 1) fail_usage("batch_tokens is {}; expected 1 or more", o.batch_tokens);
}

// work(i) side by side; the first exception is thrown again afterwards.
template <class Work>
void each_stream(std::size_t count, const Work& work) {
  std::vector<std::exception_ptr> failures(count);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < count; ++i) {
    try {
      work(i);
    } catch (...) {  // no exception may leave the parallel region
      failures[i] = std::current_exception();
    }
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

void check_pair(const Model& a, const Model& b) {
  const auto same = [&](const char* name, std::int64_t x, std::int64_t y) {
    if (x != y) {
      fail_usage("'{}' has {} {}, '{}' has {}: they cannot be compared layer by layer", a.id(),
                 name, x, b.id(), y);
    }
  };
  same("n_layers", a.config().n_layers, b.config().n_layers);
  same("d_model", a.config().d_model, b.config().d_model);
  same("d_vocab", a.config().d_vocab, b.config().d_vocab);
  same("n_heads", a.config().n_heads, b.config().n_heads);
  same("d_out", a.config().d_out(), b.config().d_out());
}

}  // namespace

InflectionResults measure_inflection(std::span<Forward* const> models,
                                     std::span<const Prompt> prompts,
                                     const InflectionOptions& options) {
  check_options(options);
  if (models.empty() || models.size() > 2) {
    fail_usage("one or two models are expected, {} were given", models.size());
  }
  const ModelConfig& config = models.front()->model().config();
  if (models.size() == 2) check_pair(models[0]->model(), models[1]->model());
  InflectionResults out;
  out.loss = resolve(options.loss, config);
  if (out.loss == InflectionLoss::label) {  // before minutes of work
    for (const Prompt& prompt : prompts) label_of(prompt, options.label, config);
  }
  out.n_layers = config.n_layers;
  out.n_heads = config.n_heads;
  std::vector<std::unique_ptr<Runner>> runners;
  for (Forward* forward : models) {
    if (resolve(options.loss, forward->model().config()) != out.loss) {
      fail_usage("the two models have different losses; choose none");
    }
    runners.push_back(std::make_unique<Runner>(*forward, out.loss, options));
  }
  const bool pair = models.size() == 2;
  std::vector<SharedCka> similarity;
  for (std::int64_t s = 0; pair && s <= config.n_layers; ++s) {
    similarity.emplace_back(config.d_model);
  }
  std::vector<std::vector<float>> values[2];
  std::int64_t done = 0;
  for (std::size_t next = 0; next < prompts.size();) {
    const std::size_t first = next;
    Batch batch;
    for (; next < prompts.size(); ++next) {
      const auto length = static_cast<std::int64_t>(prompts[next].ids.size());
      if (next > first && batch.tokens() + length > options.batch_tokens) break;
      batch.add(prompts[next].ids);
    }
    const auto part = prompts.subspan(first, next - first);
    for (std::size_t m = 0; m < runners.size(); ++m) {
      runners[m]->observe(batch, part, pair ? &values[m] : nullptr);
    }
    // One stream a thread: Eigen's own products then run on one, and give the same bits.
    each_stream(similarity.size(), [&](std::size_t at) {
      if (options.skip == 0) return similarity[at].add(values[0][at], values[1][at]);
      const std::int64_t d = config.d_model;
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        const std::int64_t skipped = std::min(options.skip, batch.length(p));
        const std::size_t begin = size((batch.offsets[size(p)] + skipped) * d);
        const std::size_t count = size((batch.length(p) - skipped) * d);
        similarity[at].add(std::span(values[0][at]).subspan(begin, count),
                           std::span(values[1][at]).subspan(begin, count));
      }
    });
    done += batch.tokens();
    if (options.progress) options.progress(static_cast<std::int64_t>(next), done);
  }
  for (const auto& runner : runners) out.runs.push_back(runner->finish());
  std::vector<SharedCka::Result> results(similarity.size());
  each_stream(similarity.size(), [&](std::size_t at) {
    results[at] = similarity[at].result(options.components, options.variance);
  });
  for (std::size_t s = 0; s < results.size(); ++s) {
    out.delta_cka.push_back(1.0 - results[s].cka);
    out.full_delta_cka.push_back(1.0 - results[s].full_cka);
    out.components.push_back(results[s].components);
    out.kept_variance.push_back(results[s].kept_variance);
  }
  return out;
}

}  // namespace lamina
