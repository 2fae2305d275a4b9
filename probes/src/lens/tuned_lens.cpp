#include "lamina/probes/tuned_lens.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <optional>

#include "lamina/core/error.h"
#include "lens/decode.h"
#include "lens/tuned_head.h"

namespace lamina {
namespace {

using tuned::Matrix;
using tuned::Row;

// Rows that one task takes through the head. Fixed, so that no sum depends on the threads.
constexpr std::int64_t kChunk = 32;

// SplitMix64 (Steele, Lea, Flood 2014): the order of tokens is the same with every standard
// library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  /// 0 … n − 1. The modulo's bias is n/2⁶⁴.
  std::int64_t below(std::int64_t n) {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::int64_t>((z ^ (z >> 31)) % static_cast<std::uint64_t>(n));
  }
  void shuffle(std::vector<std::int64_t>& v) {
    for (auto i = static_cast<std::int64_t>(v.size()) - 1; i > 0; --i) {
      std::swap(v[i], v[below(i + 1)]);
    }
  }

 private:
  std::uint64_t state_;
};

// task(0) … task(count − 1) on all threads; the first exception goes to the caller.
template <class Task>
void for_each_task(std::int64_t count, const Task& task) {
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
#pragma omp critical(lamina_tuned_lens)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// One site: what was observed there, the map, and Adam's moments.
struct SiteState {
  Site site;
  std::vector<float> rows;  // [T, D]
  Matrix<float> a, a_mean, a_square;
  Row<float> b, b_mean, b_square;

  void start(std::int64_t d) {
    a.setZero(d, d);
    a_mean = a_square = a;
    b.setZero(d);
    b_mean = b_square = b;
  }
};

struct AdamStep {
  float rate, beta1, beta2, epsilon, decay;
  float correction1, correction2;  // 1 − β^t

  template <class M>
  void apply(M& value, M& mean, M& square, const M& gradient) const {
    mean = beta1 * mean + (1 - beta1) * gradient;
    square.array() = beta2 * square.array() + (1 - beta2) * gradient.array().square();
    if (decay != 0) value *= 1 - rate * decay;
    value.array() -=
        rate * (mean.array() / correction1) / ((square.array() / correction2).sqrt() + epsilon);
  }
};

void check(const TunedLensOptions& o) {
  const auto at_least_one = [](const char* what, std::int64_t n) {
    if (n < 1) fail_usage("tuned lens: {} must be at least 1, got {}", what, n);
  };
  const auto inside = [](const char* what, double x, double low, double high) {
    if (x >= low && x < high) return;
    fail_usage("tuned lens: {} must be at least {} and below {}, got {}", what, low, high, x);
  };
  at_least_one("steps", o.steps);
  at_least_one("batch", o.batch);
  if (!(o.learning_rate > 0) || !std::isfinite(o.learning_rate)) {
    fail_usage("tuned lens: the learning rate must be positive, got {}", o.learning_rate);
  }
  if (!(o.epsilon > 0)) fail_usage("tuned lens: Adam's ε must be positive, got {}", o.epsilon);
  inside("β₁", o.beta1, 0, 1);
  inside("β₂", o.beta2, 0, 1);
  inside("weight decay", o.weight_decay, 0, 1 / o.learning_rate);
  inside("the held-out share", o.held_out, 0, 1);
}

}  // namespace

struct TunedLensTrainer::Impl {
  ModelConfig config;
  const Readout* readout;
  TunedLensOptions options;
  std::vector<Site> sites;           // with a map
  std::vector<SiteState> states;     // of the sites
  std::vector<float> final_rows;     // [T, D]
  std::vector<std::int64_t> prompt;  // [T]
  std::int64_t prompts = 0;
  std::int64_t steps = 0;                  // done
  std::optional<tuned::Head<float>> head;  // made at the first use
  TunedLensReport report;

  std::int64_t width() const { return config.d_model; }
  Site last() const {
    return {SiteKind::resid_post, static_cast<std::int32_t>(config.n_layers) - 1};
  }

  void check_size(std::int64_t more) const {
    const double bytes = static_cast<double>(prompt.size() + static_cast<std::size_t>(more)) *
                         static_cast<double>(width()) * 4 * static_cast<double>(states.size() + 1);
    if (bytes <= static_cast<double>(options.row_bytes)) return;
    fail(
        "tuned lens: the activations of {} tokens at {} sites need {:.0f} bytes, allowed are {}; "
        "train on fewer prompts",
        static_cast<std::int64_t>(prompt.size()) + more, states.size() + 1, bytes,
        options.row_bytes);
  }

  const tuned::Head<float>& the_head() {
    if (!head) head = tuned::make_head<float>(config, *readout);
    return *head;
  }

  Matrix<float> gather(const std::vector<float>& rows, std::span<const std::int64_t> tokens) const {
    Matrix<float> out(static_cast<Eigen::Index>(tokens.size()), width());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::copy_n(rows.data() + tokens[i] * width(), width(),
                  out.data() + static_cast<std::int64_t>(i) * width());
    }
    return out;
  }

  // Mean loss per site over `tokens` and, if wanted, ∂(mean)/∂x to slopes[site] [tokens, D], where
  // x is what enters the final norm.
  std::vector<double> pass(std::span<const std::int64_t> tokens,
                           std::vector<Matrix<float>>* slopes) {
    const tuned::Head<float>& h = the_head();
    const auto n = static_cast<std::int64_t>(tokens.size());
    const auto site_count = static_cast<std::int64_t>(states.size());
    const std::int64_t chunks = (n + kChunk - 1) / kChunk;
    const auto rows_of = [&](std::int64_t chunk) {
      return tokens.subspan(static_cast<std::size_t>(chunk * kChunk),
                            static_cast<std::size_t>(std::min(kChunk, n - chunk * kChunk)));
    };
    std::vector<Matrix<float>> log_final(static_cast<std::size_t>(chunks));
    for_each_task(chunks, [&](std::int64_t c) {
      tuned::HeadRows<float> work;
      tuned::evaluate(h, gather(final_rows, rows_of(c)), work);
      tuned::log_softmax(work.logits);
      log_final[c] = std::move(work.logits);
    });
    if (slopes) {
      slopes->resize(states.size());
      for (Matrix<float>& m : *slopes) m.resize(n, width());
    }
    std::vector<double> sums(static_cast<std::size_t>(site_count * chunks));
    for_each_task(site_count * chunks, [&](std::int64_t task) {
      const std::int64_t s = task / chunks, c = task % chunks;
      const SiteState& state = states[s];
      Matrix<float> x = gather(state.rows, rows_of(c));
      x += (x * state.a.transpose()).eval();
      x.rowwise() += state.b;
      tuned::HeadRows<float> work;
      if (slopes) {
        Matrix<float> slope;
        sums[task] = tuned::divergence_and_slope<float>(h, log_final[c], x, work, slope);
        (*slopes)[s].middleRows(c * kChunk, slope.rows()) = slope / static_cast<float>(n);
      } else {
        tuned::evaluate(h, x, work);
        sums[task] = tuned::divergence<float>(log_final[c], work.logits);
      }
    });
    std::vector<double> means(states.size());
    for (std::int64_t task = 0; task < site_count * chunks; ++task) {
      means[task / chunks] += sums[task];
    }
    for (double& mean : means) mean /= static_cast<double>(n);
    return means;
  }

  std::vector<double> step(std::span<const std::int64_t> tokens, double learning_rate) {
    std::vector<Matrix<float>> slopes;
    std::vector<double> losses = pass(tokens, &slopes);
    for (std::size_t s = 0; s < losses.size(); ++s) {
      if (std::isfinite(losses[s])) continue;
      fail("tuned lens: the loss at {} is {} at step {} (learning rate {})", site_name(sites[s]),
           losses[s], steps + 1, learning_rate);
    }
    ++steps;
    const auto t = static_cast<double>(steps);
    const auto f = [](double x) { return static_cast<float>(x); };
    const AdamStep adam{f(learning_rate),
                        f(options.beta1),
                        f(options.beta2),
                        f(options.epsilon),
                        f(options.weight_decay),
                        f(1 - std::pow(options.beta1, t)),
                        f(1 - std::pow(options.beta2, t))};
    for_each_task(static_cast<std::int64_t>(states.size()), [&](std::int64_t s) {
      SiteState& state = states[s];
      const Matrix<float> by_a = slopes[s].transpose() * gather(state.rows, tokens);
      const Row<float> by_b = slopes[s].colwise().sum();
      adam.apply(state.a, state.a_mean, state.a_square, by_a);
      adam.apply(state.b, state.b_mean, state.b_square, by_b);
    });
    return losses;
  }

  // In chunks, so that the final log-probabilities of all tokens need not be held.
  std::vector<double> evaluate(std::span<const std::int64_t> tokens) {
    constexpr std::size_t kAtOnce = 4 * kChunk;
    std::vector<double> sums(states.size());
    for (std::size_t first = 0; first < tokens.size(); first += kAtOnce) {
      const auto part = tokens.subspan(first, std::min(kAtOnce, tokens.size() - first));
      const std::vector<double> means = pass(part, nullptr);
      for (std::size_t s = 0; s < sums.size(); ++s) {
        sums[s] += means[s] * static_cast<double>(part.size());
      }
    }
    for (double& sum : sums) sum /= static_cast<double>(tokens.size());
    return sums;
  }
};

std::vector<Site> tuned_lens_sites(const ModelConfig& config) {
  std::vector<Site> sites = default_lens_sites(config);
  sites.pop_back();
  return sites;
}

TunedLensTrainer::TunedLensTrainer(const ModelConfig& config, const Readout& readout,
                                   TunedLensOptions options)
    : impl_(std::make_unique<Impl>()) {
  check(options);
  Impl& m = *impl_;
  m.config = config;
  m.readout = &readout;
  m.options = std::move(options);
  if (config.n_layers < 1) fail("tuned lens: the model has no layers");
  if (readout.d_model() != config.d_model || readout.d_vocab() != config.d_vocab) {
    fail("tuned lens: the activations are {} wide with {} tokens, the readout {} with {}",
         config.d_model, config.d_vocab, readout.d_model(), readout.d_vocab());
  }
  const std::vector<Site> wanted =
      m.options.sites.empty() ? tuned_lens_sites(config) : m.options.sites;
  check_lens_sites(wanted, config);
  if (std::find(wanted.begin(), wanted.end(), m.last()) != wanted.end()) {
    fail_usage("tuned lens: {} is the model's own output, there is nothing to train",
               site_name(m.last()));
  }
  for (Site site : all_sites(config)) {  // firing order, without repeats
    if (std::find(wanted.begin(), wanted.end(), site) != wanted.end()) m.sites.push_back(site);
  }
  m.states.resize(m.sites.size());
  for (std::size_t s = 0; s < m.sites.size(); ++s) {
    m.states[s].site = m.sites[s];
    m.states[s].start(config.d_model);
  }
}

TunedLensTrainer::~TunedLensTrainer() = default;
TunedLensTrainer::TunedLensTrainer(TunedLensTrainer&&) noexcept = default;

std::string TunedLensTrainer::name() const {
  return "tuned_lens_training";
}

std::vector<Site> TunedLensTrainer::sites(const ModelConfig&) const {
  std::vector<Site> all = impl_->sites;
  all.push_back(impl_->last());
  return all;
}

std::unique_ptr<Probe> TunedLensTrainer::fresh() const {
  return std::make_unique<TunedLensTrainer>(impl_->config, *impl_->readout, impl_->options);
}

void TunedLensTrainer::observe(const ActivationBlock& block) {
  Impl& m = *impl_;
  LensOptions which;
  which.positions = m.options.positions;
  which.position_list = m.options.position_list;
  std::vector<std::int64_t> rows, prompt;
  for (std::size_t i = 0; i < block.prompts.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    for (std::int64_t position : selected_positions(block, at, which)) {
      rows.push_back(block.batch.offsets[i] + position);
      prompt.push_back(m.prompts + at);
    }
  }
  m.check_size(static_cast<std::int64_t>(rows.size()));
  const auto append = [&](Site site, std::vector<float>& to) {
    const ActivationBlock::Values& values = block.at(site);
    if (static_cast<std::int64_t>(values.values.size()) != block.batch.tokens() * m.width()) {
      fail("{}: {} values for {} tokens of {} each", site_name(site), values.values.size(),
           block.batch.tokens(), m.width());
    }
    for (std::int64_t row : rows) {
      const auto from = values.values.begin() + row * m.width();
      to.insert(to.end(), from, from + m.width());
    }
  };
  for (SiteState& state : m.states) append(state.site, state.rows);
  append(m.last(), m.final_rows);
  m.prompt.insert(m.prompt.end(), prompt.begin(), prompt.end());
  m.prompts += static_cast<std::int64_t>(block.prompts.size());
}

void TunedLensTrainer::merge(Probe& other) {
  Impl& m = *impl_;
  Impl& from = *dynamic_cast<TunedLensTrainer&>(other).impl_;
  if (m.sites != from.sites) fail("tuned lens: shards of different sites");
  m.check_size(static_cast<std::int64_t>(from.prompt.size()));
  const auto move_rows = [](std::vector<float>& to, std::vector<float>& rows) {
    to.insert(to.end(), rows.begin(), rows.end());
    rows = {};
  };
  for (std::size_t s = 0; s < m.states.size(); ++s) {
    move_rows(m.states[s].rows, from.states[s].rows);
  }
  move_rows(m.final_rows, from.final_rows);
  for (std::int64_t p : from.prompt) m.prompt.push_back(m.prompts + p);
  m.prompts += from.prompts;
  from.prompt.clear();
  from.prompts = 0;
}

const TunedLensReport& TunedLensTrainer::train(const StepProgress& progress) {
  Impl& m = *impl_;
  if (m.prompts < 2) {
    fail("tuned lens: training needs at least 2 prompts (one is held out), got {}", m.prompts);
  }
  TunedLensReport& r = m.report;
  r = {};
  Random random(m.options.seed);
  std::vector<std::int64_t> order(static_cast<std::size_t>(m.prompts));
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  r.held_out_prompts = std::clamp<std::int64_t>(
      std::llround(m.options.held_out * static_cast<double>(m.prompts)), 1, m.prompts - 1);
  r.prompts = m.prompts - r.held_out_prompts;
  std::vector<bool> held(static_cast<std::size_t>(m.prompts));
  for (std::int64_t i = 0; i < r.held_out_prompts; ++i) held[order[i]] = true;
  std::vector<std::int64_t> trained, kept;  // tokens
  for (std::int64_t t = 0; t < tokens(); ++t) (held[m.prompt[t]] ? kept : trained).push_back(t);
  r.tokens = static_cast<std::int64_t>(trained.size());
  r.held_out_tokens = static_cast<std::int64_t>(kept.size());

  for (SiteState& state : m.states) state.start(m.width());
  m.steps = 0;
  r.plain = m.evaluate(kept);
  const std::int64_t batch = std::min(m.options.batch, r.tokens);
  std::int64_t next = r.tokens;  // beyond the end: shuffle first
  for (std::int64_t i = 0; i < m.options.steps; ++i) {
    if (next + batch > r.tokens) {  // an epoch's incomplete last batch is left out
      random.shuffle(trained);
      next = 0;
    }
    const double left = 1 - static_cast<double>(i) / static_cast<double>(m.options.steps);
    const std::vector<double> losses = m.step(
        std::span(trained).subspan(static_cast<std::size_t>(next), static_cast<std::size_t>(batch)),
        m.options.learning_rate * (m.options.linear_decay ? left : 1));
    next += batch;
    r.loss.insert(r.loss.end(), losses.begin(), losses.end());
    if (progress) {
      progress(i + 1, std::accumulate(losses.begin(), losses.end(), 0.0) /
                          static_cast<double>(losses.size()));
    }
  }
  r.tuned = m.evaluate(kept);
  return r;
}

const TunedLensReport& TunedLensTrainer::report() const {
  return impl_->report;
}

LensTranslators TunedLensTrainer::translators() const {
  LensTranslators out;
  out.d_model = impl_->width();
  for (const SiteState& state : impl_->states) {
    out.maps.push_back({state.site,
                        {state.a.data(), state.a.data() + state.a.size()},
                        {state.b.data(), state.b.data() + state.b.size()}});
  }
  return out;
}

const TunedLensOptions& TunedLensTrainer::options() const {
  return impl_->options;
}

std::span<const Site> TunedLensTrainer::trained_sites() const {
  return impl_->sites;
}

std::int64_t TunedLensTrainer::tokens() const {
  return static_cast<std::int64_t>(impl_->prompt.size());
}

std::vector<double> TunedLensTrainer::step(std::span<const std::int64_t> tokens,
                                           double learning_rate) {
  return impl_->step(tokens, learning_rate);
}

std::vector<double> TunedLensTrainer::evaluate(std::span<const std::int64_t> tokens) {
  return impl_->evaluate(tokens);
}

void TunedLensTrainer::write(ResultFile& file) const {
  const Impl& m = *impl_;
  const TunedLensReport& r = m.report;
  if (r.loss.empty()) fail("tuned lens: there are no results before train()");
  std::vector<std::string> layers;
  for (Site site : m.sites) layers.push_back(lens_label(site));
  std::vector<std::int64_t> steps(static_cast<std::size_t>(m.options.steps));
  std::iota(steps.begin(), steps.end(), 1);
  file.setting("steps", m.options.steps);
  file.setting("batch", m.options.batch);
  file.setting("learning_rate", m.options.learning_rate);
  file.setting("held_out_prompts", r.held_out_prompts);
  file.axis("layer", layers);
  file.axis("step", steps);
  const std::vector<std::string> by_layer = {"layer"}, by_step = {"step", "layer"};
  file.dataset("held_out_plain", by_layer, r.plain,
               "mean KL(p_final || p_layer) over held-out tokens, logit lens", "nats");
  file.dataset("held_out_tuned", by_layer, r.tuned,
               "mean KL(p_final || p_layer) over held-out tokens, tuned lens", "nats");
  file.dataset("loss", by_step, r.loss, "mean KL(p_final || p_layer) over the tokens of a step",
               "nats");
}

}  // namespace lamina
