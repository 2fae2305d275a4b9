#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "lamina/core/error.h"
#include "lamina/core/run.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// SplitMix64 (Steele, Lea, Flood 2014): one small stream per prompt, so that a prompt's samples
// depend neither on the batch nor on the standard library.
class Stream {
 public:
  Stream(std::uint64_t seed, std::uint64_t index) : state_(seed) {
    state_ = next() ^ (index * 0xd1342543de82ef95ULL);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

std::int32_t greedy(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Nucleus sampling (Holtzman et al. 2020): the smallest set of most likely tokens that holds top_p.
std::int32_t sample(std::span<const float> logits, const GenerateOptions& options, Stream& stream) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = logits[size(a)], y = logits[size(b)];
    return x != y ? x > y : a < b;
  });
  std::vector<double> weight(order.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double gap = static_cast<double>(logits[size(order[i])]) - logits[size(order[0])];
    weight[i] = std::exp(gap / options.temperature);
    total += weight[i];
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && kept < options.top_p * total) kept += weight[count++];
  count = std::max<std::size_t>(count, 1);
  double left = stream.uniform() * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    left -= weight[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

void check(const GenerateOptions& o) {
  if (o.max_new_tokens < 0) fail_usage("{} new tokens were asked for", o.max_new_tokens);
  if (!(o.temperature >= 0) || !std::isfinite(o.temperature)) {
    fail_usage("temperature must be 0 or more, got {}", o.temperature);
  }
  if (!(o.top_p > 0 && o.top_p <= 1)) fail_usage("top_p must be in (0, 1], got {}", o.top_p);
}

// One group of prompts that are decoded together.
class Group {
 public:
  Group(Forward& forward, std::span<Prompt> prompts, std::int64_t first,
        const GenerateOptions& options)
      : forward_(forward),
        prompts_(prompts),
        options_(options),
        cache_(forward.model().config(), static_cast<std::int64_t>(prompts.size())),
        logits_(prompts.size() * size(forward.model().config().d_vocab)) {
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      streams_.emplace_back(options.seed, static_cast<std::uint64_t>(first) + i);
      active_.push_back(static_cast<std::int64_t>(i));
    }
    if (const Tokenizer* tokenizer = forward.model().tokenizer();
        tokenizer != nullptr && options.stop_at_eos) {
      eos_ = tokenizer->eos_id();
    }
  }

  /// Generates everything; returns the number of new tokens.
  std::int64_t run() {
    std::int64_t made = 0;
    for (std::int64_t step = 0; step < options_.max_new_tokens && !active_.empty(); ++step) {
      Batch batch;
      for (std::int64_t i : active_) {
        const std::vector<std::int32_t>& ids = prompts_[size(i)].ids;
        batch.add(step == 0 ? std::span(ids) : std::span(ids).last(1));
      }
      forward_.run(batch, options_.hooks != nullptr ? *options_.hooks : Hooks{}, &cache_, active_);
      made += static_cast<std::int64_t>(active_.size());
      choose(batch);
    }
    return made;
  }

 private:
  void choose(const Batch& batch) {
    const std::int64_t vocab = forward_.model().config().d_vocab;
    std::vector<std::int64_t> rows;
    for (std::int64_t p = 0; p < batch.prompts(); ++p)
      rows.push_back(batch.offsets[size(p + 1)] - 1);
    const std::span<float> logits = std::span(logits_).first(rows.size() * size(vocab));
    forward_.run_logits(rows, logits);
    std::vector<std::int64_t> still;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::int64_t i = active_[r];
      const std::span<const float> row = logits.subspan(r * size(vocab), size(vocab));
      const std::int32_t id =
          options_.temperature == 0 ? greedy(row) : sample(row, options_, streams_[size(i)]);
      prompts_[size(i)].ids.push_back(id);
      if (!eos_ || id != *eos_) still.push_back(i);
    }
    active_ = std::move(still);
  }

  Forward& forward_;
  std::span<Prompt> prompts_;
  const GenerateOptions& options_;
  KvCache cache_;
  std::vector<Stream> streams_;
  std::vector<std::int64_t> active_;
  std::optional<std::int32_t> eos_;
  std::vector<float> logits_;
};

}  // namespace

void generate(Forward& forward, std::span<Prompt> prompts, const GenerateOptions& options) {
  check(options);
  const auto total = static_cast<std::int64_t>(prompts.size());
  const std::int64_t step = std::max<std::int64_t>(options.batch_prompts, 1);
  std::int64_t made = 0;
  for (std::int64_t first = 0; first < total; first += step) {
    const std::int64_t count = std::min(step, total - first);
    Group group(forward, prompts.subspan(size(first), size(count)), options.first_prompt + first,
                options);
    made += group.run();
    if (options.progress) options.progress(first + count, made);
  }
}

}  // namespace lamina
