#include "lamina/probes/residual_erasure.h"

#include <algorithm>
#include <cmath>

#include "effects/output_change.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

void raise(double& to, double value) {
  if (!std::isnan(to) && !(value <= to)) to = value;
}

// Means over the tokens of all prompts of the stream at every layer.
void find_means(Forward& forward, std::span<const Prompt> prompts, const ErasureOptions& options,
                Erasure& out) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t d = config.d_model, streams = config.n_layers + 1;
  std::vector<double> sums(size(streams * d), 0.0);
  const auto add = [&](std::int64_t stream, std::span<const float> rows) {
    double* sum = sums.data() + stream * d;
    for (std::size_t row = 0; row < rows.size(); row += size(d)) {
      for (std::int64_t i = 0; i < d; ++i) sum[i] += rows[row + size(i)];
    }
  };
  Hooks hooks;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    hooks.read({SiteKind::resid_pre, l}, [&add, l](SiteView& view) { add(l, view.values); });
  }
  for (std::size_t at = 0; at < prompts.size();) {
    Batch batch;
    do {
      batch.add(prompts[at].ids);
      ++at;
    } while (at < prompts.size() &&
             batch.tokens() + static_cast<std::int64_t>(prompts[at].ids.size()) <=
                 options.batch_tokens);
    add(config.n_layers, forward.run(batch, hooks));
    out.mean_tokens += batch.tokens();
  }
  out.mean.resize(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    out.mean[i] = static_cast<float>(sums[i] / static_cast<double>(out.mean_tokens));
  }
}

class PromptErasure {
 public:
  PromptErasure(Forward& forward, const Prompt& prompt, const Erasure& results,
                const ErasureOptions& options, ErasureMap& map)
      : forward_(forward),
        results_(results),
        options_(options),
        map_(map),
        d_(forward.model().config().d_model),
        n_(static_cast<std::int64_t>(prompt.ids.size())) {
    Batch batch;
    batch.add(prompt.ids);
    forward_.run(batch, {}, {.keep = &state_});
    if (options.scope == ErasureScope::answer) {
      const bool answer = prompt.given > 0 && prompt.given < n_;
      for (std::int64_t p = answer ? prompt.given - 1 : n_ - 1; p < (answer ? n_ - 1 : n_); ++p) {
        map_.reads.push_back(p);
      }
    }
    map_.effect.assign(size((results.n_layers + 1) * n_), 0.0);
  }

  void run(const std::function<void()>& step) {
    OutputChange change(forward_, state_, options_.memory);
    for (std::int32_t l = 0; l < results_.n_layers; ++l) {
      std::vector<Continuation> which;
      std::int64_t rows = 0;
      for (std::int64_t t = 0; t < n_; ++t) {
        if (reads(t).empty()) continue;
        if (!which.empty() && rows + n_ - t > options_.batch_tokens) {
          erase(l, which, change);
          which.clear();
          rows = 0;
        }
        which.push_back({0, t});
        rows += n_ - t;
      }
      if (!which.empty()) erase(l, which, change);
      step();
    }
    // Behind the last layer a token has only its own answer.
    if (options_.scope == ErasureScope::later || map_.reads.empty()) return;
    std::vector<float> rows;
    for (std::size_t i = 0; i < map_.reads.size(); ++i) {
      rows.insert(rows.end(), mean(results_.n_layers), mean(results_.n_layers) + d_);
    }
    std::vector<double> values(map_.reads.size());
    change.residual(rows, map_.reads, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      map_.effect[size(results_.n_layers * n_ + map_.reads[i])] = values[i];
    }
  }

 private:
  const float* mean(std::int64_t stream) const { return results_.mean.data() + stream * d_; }

  // Positions whose answers token t can change and that are read.
  std::vector<std::int64_t> reads(std::int64_t t) const {
    std::vector<std::int64_t> out;
    if (options_.scope == ErasureScope::later) {
      for (std::int64_t p = t + 1; p < n_; ++p) out.push_back(p);
    } else {
      for (const std::int64_t p : map_.reads) {
        if (p >= t) out.push_back(p);
      }
    }
    return out;
  }

  // One pass in which every continuation has its first token erased in what enters layer l.
  void erase(std::int32_t l, std::span<const Continuation> which, OutputChange& change) {
    Hooks hooks;
    hooks.write({SiteKind::resid_pre, l}, [&](SiteView& view) {
      for (std::size_t i = 0; i < which.size(); ++i) {
        std::copy_n(mean(l), d_, view.values.begin() + view.batch.offsets[i] * d_);
      }
    });
    forward_.resume(state_, l, which, hooks);
    std::vector<std::int64_t> rows, tokens, erased;
    std::int64_t begin = 0;
    for (const Continuation& c : which) {
      for (const std::int64_t p : reads(c.first)) {
        rows.push_back(begin + p - c.first);
        tokens.push_back(p);
        erased.push_back(c.first);
      }
      begin += n_ - c.first;
    }
    std::vector<double> values(rows.size());
    change.last_pass(rows, tokens, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      raise(map_.effect[size(l * n_ + erased[i])], values[i]);
    }
  }

  Forward& forward_;
  const Erasure& results_;
  const ErasureOptions& options_;
  ErasureMap& map_;
  std::int64_t d_, n_;
  RunState state_;
};

}  // namespace

std::string_view erasure_scope_name(ErasureScope scope) {
  return scope == ErasureScope::answer ? "answer" : "later";
}

ErasureScope parse_erasure_scope(std::string_view name) {
  if (name == "answer") return ErasureScope::answer;
  if (name == "later") return ErasureScope::later;
  fail_usage("erasure can be read at the answer or at later tokens, not at '{}'", name);
}

Erasure measure_erasure(Forward& forward, std::span<const Prompt> prompts,
                        const ErasureOptions& options) {
  const ModelConfig& config = forward.model().config();
  if (config.head != Head::language || !config.causal) {
    fail_usage("residual erasure needs a causal language model, this {} model is none",
               config.family);
  }
  if (prompts.empty()) fail("there are no prompts to erase in");
  Erasure out;
  out.n_layers = config.n_layers;
  find_means(forward, prompts, options, out);
  const std::int64_t count = std::min(options.prompts, static_cast<std::int64_t>(prompts.size()));
  std::int64_t done = 0;
  for (std::int64_t p = 0; p < count; ++p) {
    ErasureMap map;
    map.prompt = p;
    PromptErasure(forward, prompts[size(p)], out, options, map).run([&] {
      if (options.progress) options.progress(++done, count * config.n_layers);
    });
    out.maps.push_back(std::move(map));
  }
  return out;
}

}  // namespace lamina
