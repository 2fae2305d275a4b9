// Cross-entropy with dictionaries in the place of what they rebuild.

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lamina/circuits/transcoder_eval.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// A batch of whole prompts and the rows whose next token is known.
struct Chunk {
  Batch batch;
  std::vector<std::int64_t> rows;
  std::vector<std::int32_t> next;
  std::vector<std::uint8_t> kept;  // [token] 1: left as it is
};

std::vector<Chunk> make_chunks(std::span<const Prompt> prompts, const SpliceOptions& options) {
  std::vector<Chunk> chunks;
  for (const Prompt& prompt : prompts) {
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    if (chunks.empty() || chunks.back().batch.tokens() + length > options.batch_tokens) {
      chunks.emplace_back();
    }
    Chunk& chunk = chunks.back();
    const std::int64_t first = chunk.batch.tokens();
    chunk.batch.add(prompt.ids);
    for (std::int64_t i = 0; i < length; ++i) {
      chunk.kept.push_back(i < options.skip);
      if (i < options.skip || (i + 1 == length && !prompt.target)) continue;
      chunk.rows.push_back(first + i);
      chunk.next.push_back(i + 1 < length ? prompt.ids[size(i + 1)] : *prompt.target);
    }
  }
  return chunks;
}

// Sum of −log p(next) over the chunk's rows of the last run.
double loss_sum(Forward& forward, const Chunk& chunk) {
  constexpr std::size_t kRows = 128;  // rows of logits at a time
  const std::int64_t v = forward.model().config().d_out();
  std::vector<float> logits;
  double sum = 0;
  for (std::size_t first = 0; first < chunk.rows.size(); first += kRows) {
    const std::size_t count = std::min(kRows, chunk.rows.size() - first);
    logits.resize(count * size(v));
    forward.run_logits(std::span(chunk.rows).subspan(first, count), logits);
    for (std::size_t r = 0; r < count; ++r) {
      const std::span<const float> row = std::span(logits).subspan(r * size(v), size(v));
      sum += math::log_sum_exp(row) - row[size(chunk.next[first + r])];
    }
  }
  return sum;
}

void check_splice(const Transcoder& t) {
  if (t.config.output.norm_weights) {
    fail_usage("{}: it rebuilds {}, and what follows a norm's weights cannot be replaced at a site",
               t.config.name, dictionary_place_name(t.config.output));
  }
}

// Hooks that put `t`'s reconstruction, or zeros, in the place it rebuilds. `x` holds what it reads.
void add_hooks(Hooks& hooks, const Model& model, const Transcoder& t, const Chunk& chunk, bool zero,
               std::vector<float>& x) {
  const TranscoderConfig& c = t.config;
  const auto read = [&model, &c, &x](std::span<const float> values) {
    x.assign(values.begin(), values.end());
    apply_place(model, c.input, x);
  };
  const bool autoencoder = c.input == c.output;
  if (!zero && !autoencoder) {
    hooks.read(c.input.site, [read](SiteView& view) { read(view.values); });
  }
  hooks.write(c.output.site, [&t, &chunk, &x, read, zero, autoencoder](SiteView& view) {
    std::vector<float> rebuilt(view.values.size());
    if (!zero) {
      if (autoencoder) read(view.values);
      t.decode(t.encode(x), x, rebuilt);
    }
    const std::size_t d = size(t.config.d_out);
    for (std::size_t r = 0; r < chunk.kept.size(); ++r) {
      if (chunk.kept[r]) continue;
      std::copy_n(rebuilt.begin() + static_cast<std::ptrdiff_t>(r * d), d,
                  view.values.begin() + static_cast<std::ptrdiff_t>(r * d));
    }
  });
}

struct Run {
  Forward& forward;
  std::vector<Chunk> chunks;
  std::int64_t tokens = 0;

  Run(Forward& f, std::span<const Prompt> prompts, const SpliceOptions& options)
      : forward(f), chunks(make_chunks(prompts, options)) {
    const ModelConfig& config = f.model().config();
    if (!config.causal || config.head != Head::language) {
      fail("model '{}' predicts no next tokens: no cross-entropy to compare", f.model().id());
    }
    for (const Chunk& chunk : chunks) tokens += static_cast<std::int64_t>(chunk.rows.size());
    if (tokens == 0) {
      fail("no token to predict: {} prompts, none with a token after the first {}", prompts.size(),
           options.skip + 1);
    }
  }
  // Mean loss with these dictionaries spliced in; none: the model as it is.
  double loss(std::span<const Transcoder* const> spliced, bool zero) {
    double sum = 0;
    for (const Chunk& chunk : chunks) {
      std::vector<std::vector<float>> inputs(spliced.size());
      Hooks hooks;
      for (std::size_t i = 0; i < spliced.size(); ++i) {
        add_hooks(hooks, forward.model(), *spliced[i], chunk, zero, inputs[i]);
      }
      forward.run(chunk.batch, hooks);
      sum += loss_sum(forward, chunk);
    }
    return sum / static_cast<double>(tokens);
  }
};

}  // namespace

std::vector<SpliceLoss> splice_losses(Forward& forward, std::span<const Prompt> prompts,
                                      std::span<const Transcoder* const> dictionaries,
                                      const SpliceOptions& options) {
  for (const Transcoder* t : dictionaries) check_splice(*t);
  Run run(forward, prompts, options);
  std::int64_t passes = 0;
  const auto done = [&] {
    ++passes;
    if (options.progress) options.progress(passes, passes * run.tokens);
  };
  const double original = run.loss({}, false);
  done();
  std::map<Site, double> zeroed;  // the same for all dictionaries of a place
  std::vector<SpliceLoss> losses;
  for (const Transcoder* const& t : dictionaries) {
    SpliceLoss& loss = losses.emplace_back();
    loss.tokens = run.tokens;
    loss.original = original;
    loss.spliced = run.loss(std::span(&t, 1), false);
    done();
    const auto [zero, fresh] = zeroed.try_emplace(t->config.output.site);
    if (fresh) zero->second = run.loss(std::span(&t, 1), true);
    loss.zero = zero->second;
    done();
  }
  return losses;
}

SpliceLoss splice_together(Forward& forward, std::span<const Prompt> prompts,
                           std::span<const Transcoder* const> dictionaries,
                           const SpliceOptions& options) {
  std::set<Site> places;
  for (const Transcoder* t : dictionaries) {
    check_splice(*t);
    if (!places.insert(t->config.output.site).second) {
      fail_usage("two dictionaries rebuild {}; they cannot be spliced in together",
                 site_name(t->config.output.site));
    }
  }
  Run run(forward, prompts, options);
  SpliceLoss loss;
  loss.tokens = run.tokens;
  loss.original = run.loss({}, false);
  loss.spliced = run.loss(dictionaries, false);
  loss.zero = run.loss(dictionaries, true);
  return loss;
}

}  // namespace lamina
