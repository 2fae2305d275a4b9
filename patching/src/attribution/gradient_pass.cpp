#include "lamina/patching/gradient_pass.h"

#include <algorithm>
#include <utility>

#include "lamina/core/error.h"

namespace lamina::patching {
namespace {

Chunk make_chunk(std::span<const Pair> pairs, std::size_t first, std::size_t end,
                 Direction direction) {
  Chunk chunk;
  chunk.first = first;
  chunk.pairs = pairs.subspan(first, end - first);
  Batch clean, corrupted;
  std::vector<std::int64_t> clean_rows, corrupted_rows;
  for (const Pair& pair : chunk.pairs) {
    for (std::int64_t p = 0; p < pair.tokens(); ++p) {
      clean_rows.push_back(clean.tokens() + p);
      corrupted_rows.push_back(corrupted.tokens() + pair.corrupted_position(p));
    }
    clean.add(pair.clean);
    corrupted.add(pair.corrupted);
  }
  chunk.offsets = clean.offsets;
  const bool denoise = direction == Direction::denoise;
  chunk.base = denoise ? std::move(corrupted) : clean;
  chunk.other = denoise ? std::move(clean) : std::move(corrupted);
  chunk.base_rows = denoise ? std::move(corrupted_rows) : clean_rows;
  chunk.other_rows = denoise ? std::move(clean_rows) : std::move(corrupted_rows);
  return chunk;
}

std::int64_t longer(const Pair& pair) {
  return std::max(pair.tokens(), static_cast<std::int64_t>(pair.corrupted.size()));
}

}  // namespace

std::vector<Chunk> make_chunks(std::span<const Pair> pairs, Direction direction,
                               std::int64_t batch_tokens) {
  std::vector<Chunk> chunks;
  for (std::size_t first = 0; first < pairs.size();) {
    std::size_t end = first;
    std::int64_t tokens = 0;
    while (end < pairs.size() && (end == first || tokens + longer(pairs[end]) <= batch_tokens)) {
      tokens += longer(pairs[end++]);
    }
    chunks.push_back(make_chunk(pairs, first, end, direction));
    first = end;
  }
  return chunks;
}

void record(Hooks& hooks, std::span<const Site> sites, std::int64_t prompts, Recorded& out) {
  for (const Site site : sites) {
    Values& values = out[site];
    hooks.read(site, [&values, prompts](SiteView& view) {
      const bool attention = view.shape.attention;
      values.blocks.resize(attention ? static_cast<std::size_t>(prompts) : 1);
      values.blocks[attention ? static_cast<std::size_t>(view.prompt) : 0].assign(
          view.values.begin(), view.values.end());
    });
  }
}

GradientPass::GradientPass(Forward& forward, const Metric& metric, Backward* backward)
    : forward_(forward),
      metric_(metric),
      own_(backward == nullptr ? std::optional<Backward>(std::in_place, forward.model())
                               : std::nullopt),
      backward_(backward == nullptr ? *own_ : *backward) {}

std::vector<std::int64_t> GradientPass::last_logits(const Batch& batch) {
  std::vector<std::int64_t> last;
  for (std::size_t i = 1; i < batch.offsets.size(); ++i) last.push_back(batch.offsets[i] - 1);
  logits_.resize(last.size() * static_cast<std::size_t>(forward_.model().config().d_vocab));
  forward_.run_logits(last, logits_);
  return last;
}

std::span<const float> GradientPass::logits_of(std::size_t prompt) const {
  const auto vocabulary = static_cast<std::size_t>(forward_.model().config().d_vocab);
  return std::span(logits_).subspan(prompt * vocabulary, vocabulary);
}

std::vector<double> GradientPass::metric_of(const Chunk& chunk, const Batch& batch,
                                            const Hooks& hooks, RunState* keep) {
  forward_.run(batch, hooks, {.keep = keep});
  last_logits(batch);
  std::vector<double> metric;
  for (std::size_t i = 0; i < chunk.pairs.size(); ++i) {
    metric.push_back(metric_.value(static_cast<std::int64_t>(chunk.first + i), logits_of(i)));
  }
  return metric;
}

std::vector<double> GradientPass::run(const Chunk& chunk, const Batch& batch,
                                      const Hooks& forward_hooks, const BackwardRules& rules,
                                      const Hooks& gradient_hooks, std::span<const Step> steps,
                                      std::span<const float> start) {
  forward_.run(batch, forward_hooks, {.steps = steps, .start = start, .tape = &tape_});
  const std::vector<std::int64_t> last = last_logits(batch);
  gradient_.resize(logits_.size());
  std::vector<double> metric;
  for (std::size_t i = 0; i < chunk.pairs.size(); ++i) {
    const std::span<const float> logits = logits_of(i);
    metric.push_back(
        metric_.gradient(static_cast<std::int64_t>(chunk.first + i), logits,
                         std::span(gradient_).subspan(i * logits.size(), logits.size())));
  }
  backward_.seed(tape_, last, gradient_);
  backward_.run(tape_, rules, gradient_hooks);
  return metric;
}

}  // namespace lamina::patching
