#include "lamina/core/run.h"

#include <algorithm>
#include <future>
#include <limits>

#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Bytes that one prompt's values take in a block.
std::uint64_t prompt_bytes(std::span<const Site> sites, const ModelConfig& config,
                           std::int64_t tokens) {
  std::uint64_t values = 0;
  for (Site site : sites) {
    const SiteShape shape = site_shape(site, config);
    values += static_cast<std::uint64_t>(shape.attention ? shape.heads * tokens * tokens
                                                         : shape.row() * tokens);
  }
  return values * sizeof(float);
}

// A copy by all threads: one alone does not reach the memory's speed.
void copy_values(std::span<const float> from, float* to) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 15;
  const auto n = static_cast<std::int64_t>(from.size());
#pragma omp parallel for schedule(static) if (n > 2 * kPiece)
  for (std::int64_t at = 0; at < n; at += kPiece) {
    std::copy_n(from.begin() + at, std::min(kPiece, n - at), to + at);
  }
}

// Hooks that copy the values of `sites` into the block.
Hooks collecting_hooks(std::span<const Site> sites, const ModelConfig& config,
                       ActivationBlock& block) {
  Hooks hooks;
  const Batch& batch = block.batch;
  for (Site site : sites) {
    ActivationBlock::Values& values = block.sites[ActivationBlock::site_key(site)];
    values.shape = site_shape(site, config);
    if (!values.shape.attention) {
      values.values.resize(size(batch.tokens() * values.shape.row()));
      hooks.read(site,
                 [&values](SiteView& view) { copy_values(view.values, values.values.data()); });
      continue;
    }
    values.offsets.assign(1, 0);
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t length = batch.length(p);
      values.offsets.push_back(values.offsets.back() + values.shape.heads * length * length);
    }
    values.values.resize(size(values.offsets.back()));
    hooks.read(site, [&values](SiteView& view) {
      copy_values(view.values, values.values.data() + values.offsets[size(view.prompt)]);
    });
  }
  return hooks;
}

// The id that follows each token: the next one of the prompt; after the last given token of a
// prompt without continuation, its target; −1 if there is none.
std::vector<std::int32_t> following_ids(const ActivationBlock& block) {
  std::vector<std::int32_t> following;
  for (const Prompt& prompt : block.prompts) {
    following.insert(following.end(), prompt.ids.begin() + 1, prompt.ids.end());
    const bool generated = prompt.given < static_cast<std::int64_t>(prompt.ids.size());
    following.push_back(prompt.target && !generated ? *prompt.target : -1);
  }
  return following;
}

// Logits are computed for a few rows at a time: a vocabulary can be 262,144 wide.
LogitSummary summarize_logits(Forward& forward, const ActivationBlock& block, std::int64_t k) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t vocab = config.d_out();
  if (vocab == 0) fail_usage("this {} model has no head: no logits can be kept", config.family);
  const std::int64_t tokens = block.batch.tokens();
  LogitSummary summary;
  summary.k = std::min(k, vocab);
  summary.topk_ids.resize(size(tokens * summary.k));
  summary.topk_logprobs.resize(size(tokens * summary.k));
  summary.target_logprob.resize(size(tokens));
  summary.log_z.resize(size(tokens));
  summary.entropy.resize(size(tokens));
  std::vector<std::int32_t> following = following_ids(block);
  // Only a causal language model says what comes next.
  if (!config.causal || config.head != Head::language) {
    std::fill(following.begin(), following.end(), -1);
  }

  constexpr std::int64_t kChunkValues = std::int64_t{1} << 23;  // 32 MiB of logits
  const std::int64_t chunk = std::clamp<std::int64_t>(kChunkValues / vocab, 1, 256);
  std::vector<float> logits(size(std::min(chunk, tokens) * vocab));
  std::vector<std::int64_t> rows;
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    const std::int64_t count = std::min(chunk, tokens - first);
    rows.resize(size(count));
    for (std::int64_t r = 0; r < count; ++r) rows[size(r)] = first + r;
    forward.run_logits(rows, std::span(logits).first(size(count * vocab)));
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < count; ++r) {
      const std::span<const float> row = std::span(logits).subspan(size(r * vocab), size(vocab));
      const std::int64_t token = first + r;
      const double log_sum = math::log_sum_exp(row);
      const auto norm = static_cast<float>(log_sum);
      summary.log_z[size(token)] = norm;
      summary.entropy[size(token)] = static_cast<float>(math::entropy(row, log_sum));
      const std::size_t at = size(token * summary.k), k_size = size(summary.k);
      const std::span<float> values = std::span(summary.topk_logprobs).subspan(at, k_size);
      math::top_k(row, std::span(summary.topk_ids).subspan(at, k_size), values);
      for (float& value : values) value -= norm;
      const std::int32_t next = following[size(token)];
      summary.target_logprob[size(token)] =
          next < 0 ? std::numeric_limits<float>::quiet_NaN() : row[size(next)] - norm;
    }
  }
  return summary;
}

}  // namespace

const ActivationBlock::Values& ActivationBlock::at(Site site) const {
  const auto found = sites.find(site_key(site));
  if (found == sites.end()) fail("the block holds no values of {}", site_name(site));
  return found->second;
}

void run_live(Forward& forward, std::span<const Prompt> prompts, std::span<const Site> sites,
              const LiveOptions& options, const BlockConsumer& consume) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t last =
      options.last_prompt < 0 ? static_cast<std::int64_t>(prompts.size()) : options.last_prompt;
  if (options.first_prompt < 0 || options.first_prompt > last ||
      last > static_cast<std::int64_t>(prompts.size())) {
    fail_usage("prompts {} to {} were asked for, the run has {}", options.first_prompt, last,
               prompts.size());
  }
  std::int64_t next = options.first_prompt;
  std::int64_t tokens_done = 0;
  ActivationBlock block;  // one for all: its memory is touched for the first time only once
  while (next < last) {
    block.first_prompt = next;
    block.batch = Batch();
    std::uint64_t bytes = 0;
    for (; next < last; ++next) {
      const auto length = static_cast<std::int64_t>(prompts[size(next)].ids.size());
      const std::uint64_t more = prompt_bytes(sites, config, length);
      const bool full = block.batch.tokens() + length > options.batch_tokens ||
                        bytes + more > options.block_bytes;
      if (full && block.batch.prompts() > 0) break;
      block.batch.add(prompts[size(next)].ids);
      bytes += more;
    }
    block.prompts = prompts.subspan(size(block.first_prompt), size(block.batch.prompts()));
    forward.run(block.batch, collecting_hooks(sites, config, block));
    if (options.topk > 0) block.logits = summarize_logits(forward, block, options.topk);
    consume(block);
    tokens_done += block.batch.tokens();
    if (options.progress) options.progress(next - options.first_prompt, tokens_done);
  }
}

void run_recorded(const Recording& recording, std::span<const Site> sites,
                  std::uint64_t block_bytes, const BlockConsumer& consume,
                  const Progress& progress) {
  for (Site site : sites) {
    if (!recording.has(site)) {
      fail("{}: the recording does not hold {}; it was recorded without it",
           recording.path().string(), site_name(site));
    }
  }
  const auto prompts = static_cast<std::int64_t>(recording.prompts().size());
  const std::vector<std::int64_t>& offsets = recording.offsets();
  struct Range {
    std::int64_t first, count;
  };
  std::vector<Range> ranges;
  for (std::int64_t next = 0; next < prompts;) {
    const std::int64_t first = next;
    std::uint64_t bytes = 0;
    for (; next < prompts; ++next) {
      const std::uint64_t more = prompt_bytes(sites, recording.header().config,
                                              offsets[size(next + 1)] - offsets[size(next)]);
      if (next > first && bytes + more > block_bytes / 2) break;
      bytes += more;
    }
    ranges.push_back({first, next - first});
  }
  // The next block is read while this one is consumed: two of half the size.
  const auto read = [&](std::size_t i) {
    return std::async(std::launch::async, [&recording, sites, range = ranges[i]] {
      return recording.read_block(sites, range.first, range.count);
    });
  };
  std::future<ActivationBlock> coming;
  if (!ranges.empty()) coming = read(0);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const ActivationBlock block = coming.get();
    if (i + 1 < ranges.size()) coming = read(i + 1);
    consume(block);
    const std::int64_t done = ranges[i].first + ranges[i].count;
    if (progress) progress(done, offsets[size(done)]);
  }
}

}  // namespace lamina
