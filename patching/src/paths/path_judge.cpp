#include "lamina/patching/path_judge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/patching/path_runner.h"

namespace lamina {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::int32_t most_likely(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin());
}

double log_sum_of(std::span<const std::int32_t> ids, std::span<const float> logits) {
  std::vector<float> picked;
  for (const std::int32_t id : ids) picked.push_back(logits[size(id)]);
  return math::log_sum_exp(picked);
}

// A mean over what there is.
struct Mean {
  double sum = 0;
  std::int64_t count = 0;
  void add(double value) {
    if (std::isnan(value)) return;
    sum += value;
    ++count;
  }
  double value() const { return count > 0 ? sum / static_cast<double>(count) : kNan; }
};

}  // namespace

PathPrompts path_prompts(std::span<const Prompt> prompts) {
  PathPrompts all;
  for (const Prompt& prompt : prompts) {
    all.ids.push_back(prompt.id);
    all.tokens.push_back(prompt.ids);
    all.answers.emplace_back();
    if (prompt.target) all.answers.back().push_back(*prompt.target);
  }
  return all;
}

PathPrompts path_prompts(std::span<const Pair> pairs) {
  PathPrompts all;
  for (const Pair& pair : pairs) {
    all.ids.push_back(pair.id);
    all.tokens.push_back(pair.clean);
    all.answers.push_back(pair.correct);
  }
  return all;
}

struct PathJudge::Impl {
  Forward& forward;
  const PathPrompts& prompts;
  JudgeOptions options;
  const ModelConfig& config;

  struct Part {  // prompts that run in one batch
    Batch batch;
    std::int64_t first_prompt = 0, first_row = 0;
    std::vector<std::int64_t> tokens;  // of the batch, one per judged row
  };
  std::vector<Part> parts;
  std::vector<std::int64_t> offsets = {0};  // [prompt + 1], in judged rows
  std::vector<std::int32_t> next;           // [row] the token that follows; −1: none known
  std::vector<float> whole;                 // [row, d_model] leaving the whole model's last layer
  std::vector<float> whole_logits;          // [row, d_vocab], if they fit; otherwise made again
  std::int64_t block_rows = 1;              // rows whose logits are in memory at a time

  Impl(Forward& f, const PathPrompts& p, const JudgeOptions& o)
      : forward(f), prompts(p), options(o), config(f.model().config()) {
    if (prompts.count() == 0) fail("there are no prompts to judge paths by");
    if (options.metric != nullptr && options.metric->pairs() != prompts.count()) {
      fail("a metric of {} pairs for {} prompts", options.metric->pairs(), prompts.count());
    }
    // A quarter of the memory each: states between layers, the whole model's logits, a block of
    // logits twice.
    const std::uint64_t state = static_cast<std::uint64_t>(config.d_model) * sizeof(float);
    const std::uint64_t logits = static_cast<std::uint64_t>(config.d_vocab) * sizeof(float);
    const auto layers = static_cast<std::uint64_t>(config.n_layers) + 1;
    constexpr std::int64_t kBatchTokens = 1024;  // more makes no layer faster
    const std::int64_t most =
        std::min(kBatchTokens, static_cast<std::int64_t>(options.memory / 4 / (layers * state)));
    constexpr std::int64_t kBlockRows = 128;
    block_rows = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(options.memory / 4 / (2 * logits)), 1, kBlockRows);
    for (std::int64_t i = 0; i < prompts.count(); ++i) {
      const std::vector<std::int32_t>& ids = prompts.tokens[size(i)];
      const auto length = static_cast<std::int64_t>(ids.size());
      if (parts.empty() || parts.back().batch.tokens() + length > most) {
        parts.emplace_back();
        parts.back().first_prompt = i;
        parts.back().first_row = offsets.back();
      }
      Part& part = parts.back();
      const std::int64_t first = part.batch.tokens();
      part.batch.add(ids);
      for (std::int64_t t = options.last_only ? length - 1 : 0; t < length; ++t) {
        part.tokens.push_back(first + t);
        // Where tokens see what follows them, predicting it says nothing.
        next.push_back(config.causal && t + 1 < length ? ids[size(t + 1)] : -1);
      }
      offsets.push_back(offsets.back() + (options.last_only ? 1 : length));
    }
    const auto rows = static_cast<std::uint64_t>(offsets.back());
    for (const Part& part : parts) {
      const std::span<const float> out = forward.run(part.batch);
      for (const std::int64_t t : part.tokens) append_row(out, t, whole);
    }
    if (rows * logits <= options.memory / 4) {
      whole_logits.resize(rows * static_cast<std::uint64_t>(config.d_vocab));
      for (std::int64_t r = 0; r < offsets.back(); r += block_rows) {
        const std::int64_t n = std::min(block_rows, offsets.back() - r);
        forward.logits(
            states(whole, r, n),
            std::span(whole_logits).subspan(size(r * config.d_vocab), size(n * config.d_vocab)));
      }
    }
  }

  void append_row(std::span<const float> from, std::int64_t token, std::vector<float>& to) const {
    const auto row = from.subspan(size(token * config.d_model), size(config.d_model));
    to.insert(to.end(), row.begin(), row.end());
  }
  std::span<const float> states(const std::vector<float>& all, std::int64_t first,
                                std::int64_t count) const {
    return std::span(all).subspan(size(first * config.d_model), size(count * config.d_model));
  }

  // Calls row(r, whole, path) in parallel and then last(prompt, path) for every prompt, in order,
  // with the logits of the rows of one part; `out` is what leaves the path's last layer.
  template <class Row, class Last>
  void compare(const Part& part, std::span<const float> out, Row row, Last last) const {
    const std::int64_t v = config.d_vocab, count = static_cast<std::int64_t>(part.tokens.size());
    std::vector<float> picked, logits(size(std::min(block_rows, count) * v)), again;
    if (whole_logits.empty()) again.resize(logits.size());
    std::int64_t prompt = part.first_prompt;
    for (std::int64_t first = 0; first < count; first += block_rows) {
      const std::int64_t n = std::min(block_rows, count - first);
      picked.clear();
      for (std::int64_t i = 0; i < n; ++i) append_row(out, part.tokens[size(first + i)], picked);
      forward.logits(picked, std::span(logits).first(size(n * v)));
      const float* reference = again.data();
      if (whole_logits.empty()) {
        forward.logits(states(whole, part.first_row + first, n),
                       std::span(again).first(size(n * v)));
      } else {
        reference = whole_logits.data() + (part.first_row + first) * v;
      }
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < n; ++i) {
        row(part.first_row + first + i, std::span(reference + i * v, size(v)),
            std::span<const float>(logits.data() + i * v, size(v)));
      }
      for (; prompt < prompts.count() && offsets[size(prompt + 1)] <= part.first_row + first + n;
           ++prompt) {
        const std::int64_t i = offsets[size(prompt + 1)] - 1 - part.first_row - first;
        last(prompt, std::span<const float>(logits.data() + i * v, size(v)));
      }
    }
  }

  struct Rows;
  void measure(const Part& part, std::span<const float> out, std::span<const Step> path,
               Rows& rows) const;
  PathQuality summary(std::span<const Step> path, const Rows& rows) const;
  template <class Each>
  void run_all(std::span<const Step> base, std::span<const LayerPath> candidates,
               const std::function<void(double)>& progress, Each each);
};

PathJudge::PathJudge(Forward& forward, const PathPrompts& prompts, const JudgeOptions& options)
    : impl_(std::make_unique<Impl>(forward, prompts, options)) {}
PathJudge::~PathJudge() = default;

std::int64_t PathJudge::rows() const {
  return impl_->offsets.back();
}

const JudgeOptions& PathJudge::options() const {
  return impl_->options;
}

// What is measured at each judged row of one path, and at the end of each prompt.
struct PathJudge::Impl::Rows {
  std::vector<double> distance, kl, nll, agrees;  // [row]
  std::vector<double> metric, right;              // [prompt]

  explicit Rows(const Impl& s)
      : distance(size(s.offsets.back())),
        kl(distance.size()),
        nll(distance.size(), kNan),
        agrees(distance.size()),
        metric(size(s.prompts.count()), kNan),
        right(size(s.prompts.count()), kNan) {}
};

void PathJudge::Impl::measure(const Part& part, std::span<const float> out,
                              std::span<const Step> path, Rows& rows) const {
  compare(
      part, out,
      [&](std::int64_t r, std::span<const float> whole_row, std::span<const float> logits) {
        const double log_sum = math::log_sum_exp(logits);
        const double kl =
            math::kl_divergence(whole_row, math::log_sum_exp(whole_row), logits, log_sum);
        rows.kl[size(r)] = kl;
        rows.distance[size(r)] = options.distance == DistanceKind::kl
                                     ? kl
                                     : output_distance(options.distance, whole_row, logits);
        rows.agrees[size(r)] = most_likely(whole_row) == most_likely(logits) ? 1 : 0;
        if (next[size(r)] >= 0) rows.nll[size(r)] = log_sum - logits[size(next[size(r)])];
      },
      [&](std::int64_t p, std::span<const float> logits) {
        const std::int64_t first = offsets[size(p)], end = offsets[size(p + 1)];
        for (std::int64_t r = first; r < end; ++r) {
          if (!std::isnan(rows.kl[size(r)]) && !std::isnan(rows.distance[size(r)])) continue;
          const auto length = static_cast<std::int64_t>(prompts.tokens[size(p)].size());
          fail("path {}: the logits of prompt '{}', token {}, are not finite",
               layer_path_text(path, config), prompts.ids[size(p)], length - (end - r));
        }
        const std::vector<std::int32_t>& answers = prompts.answers[size(p)];
        if (!answers.empty()) {
          rows.nll[size(end - 1)] = math::log_sum_exp(logits) - log_sum_of(answers, logits);
          rows.right[size(p)] = std::ranges::count(answers, most_likely(logits)) > 0 ? 1 : 0;
        }
        if (options.metric != nullptr) rows.metric[size(p)] = options.metric->value(p, logits);
      });
}

PathQuality PathJudge::Impl::summary(std::span<const Step> path, const Rows& rows) const {
  PathQuality q;
  Mean all_nll, all_kl, all_agreement, accuracy, metric;
  for (std::int64_t p = 0; p < prompts.count(); ++p) {
    Mean prompt_nll, prompt_kl, prompt_agreement;
    for (std::int64_t r = offsets[size(p)]; r < offsets[size(p + 1)]; ++r) {
      for (Mean* mean : {&prompt_nll, &all_nll}) mean->add(rows.nll[size(r)]);
      for (Mean* mean : {&prompt_kl, &all_kl}) mean->add(rows.kl[size(r)]);
      for (Mean* mean : {&prompt_agreement, &all_agreement}) mean->add(rows.agrees[size(r)]);
    }
    q.prompt_nll.push_back(prompt_nll.value());
    q.prompt_kl.push_back(prompt_kl.value());
    q.prompt_agreement.push_back(prompt_agreement.value());
    accuracy.add(rows.right[size(p)]);
    metric.add(rows.metric[size(p)]);
  }
  q.prompt_metric = rows.metric;
  q.layers = layers_used(path, config);
  q.distance = total_distance(options.distance, rows.distance, offsets);
  q.nll = all_nll.value();
  q.perplexity = std::exp(q.nll);
  q.kl = all_kl.value();
  q.agreement = all_agreement.value();
  q.accuracy = accuracy.value();
  q.metric = metric.value();
  return q;
}

// Runs the candidates part by part: each(c, part, out).
template <class Each>
void PathJudge::Impl::run_all(std::span<const Step> base, std::span<const LayerPath> candidates,
                              const std::function<void(double)>& progress, Each each) {
  double done = 0;
  for (const Part& part : parts) {
    PathRunner runner(forward, part.batch, std::numeric_limits<std::uint64_t>::max());
    runner.run(base, true);
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      each(c, part, runner.run(candidates[c], false));
      done += static_cast<double>(part.batch.prompts()) / static_cast<double>(prompts.count());
      if (progress) progress(done);
    }
  }
}

PathQuality PathJudge::judge(std::span<const Step> path) {
  const Impl& s = *impl_;
  if (path.empty()) fail_usage("a path needs at least one step");
  Impl::Rows rows(s);
  RunOptions run;
  run.steps = path;
  for (const Impl::Part& part : s.parts) {
    s.measure(part, s.forward.run(part.batch, {}, run), path, rows);
  }
  return s.summary(path, rows);
}

std::vector<PathQuality> PathJudge::judge_all(std::span<const Step> base,
                                              std::span<const LayerPath> candidates,
                                              const std::function<void(double)>& progress) {
  Impl& s = *impl_;
  std::vector<Impl::Rows> rows(candidates.size(), Impl::Rows(s));
  s.run_all(base, candidates, progress,
            [&](std::size_t c, const Impl::Part& part, std::span<const float> out) {
              s.measure(part, out, candidates[c], rows[c]);
            });
  std::vector<PathQuality> qualities;
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    qualities.push_back(s.summary(candidates[c], rows[c]));
  }
  return qualities;
}

std::vector<double> PathJudge::distances(std::span<const Step> base,
                                         std::span<const LayerPath> candidates,
                                         const std::function<void(double)>& progress) {
  Impl& s = *impl_;
  std::vector<std::vector<double>> rows(candidates.size(), std::vector<double>(size(this->rows())));
  s.run_all(base, candidates, progress,
            [&](std::size_t c, const Impl::Part& part, std::span<const float> out) {
              s.compare(
                  part, out,
                  [&](std::int64_t r, std::span<const float> whole, std::span<const float> path) {
                    rows[c][size(r)] = output_distance(s.options.distance, whole, path);
                  },
                  [](std::int64_t, std::span<const float>) {});
            });
  std::vector<double> totals;
  for (const std::vector<double>& of : rows) {
    totals.push_back(total_distance(s.options.distance, of, s.offsets));
  }
  return totals;
}

}  // namespace lamina
