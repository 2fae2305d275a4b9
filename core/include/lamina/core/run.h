#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/forward.h"
#include "lamina/core/recording.h"

namespace lamina {

/// Called with prompts and tokens done so far.
using Progress = std::function<void(std::int64_t prompts, std::int64_t tokens)>;

struct LiveOptions {
  std::int64_t batch_tokens = 1024;  // whole prompts are packed up to this many tokens
  std::uint64_t block_bytes = std::uint64_t{256} << 20;  // and up to this many bytes of activations
  std::int64_t topk = 0;          // logit summary with this many entries; 0 = none
  std::int64_t first_prompt = 0;  // start here (resume, shards)
  std::int64_t last_prompt = -1;  // one past the end; −1 = all
  Progress progress;
};

/// Runs `prompts` through the model in order and hands each block, with the values of `sites`, to
/// `consume`.
void run_live(Forward& forward, std::span<const Prompt> prompts, std::span<const Site> sites,
              const LiveOptions& options, const BlockConsumer& consume);

/// The same blocks from a recording (block boundaries may differ, values do not).
void run_recorded(const Recording& recording, std::span<const Site> sites,
                  std::uint64_t block_bytes, const BlockConsumer& consume,
                  const Progress& progress = {});

/// Generation settings. temperature 0 = greedy (ties: smaller id).
struct GenerateOptions {
  std::int64_t max_new_tokens = 0;
  double temperature = 0.0;
  double top_p = 1.0;
  std::uint64_t seed = 0;         // each prompt draws from its own stream: (seed, prompt index)
  std::int64_t first_prompt = 0;  // index of prompts[0] in the run (shards)
  bool stop_at_eos = true;
  std::int64_t batch_prompts = 16;
  /// Fire in every pass, over the tokens that are new to it; writing hooks change what is
  /// generated.
  const Hooks* hooks = nullptr;
  Progress progress;
};

/// Continues every prompt with a KV cache; the generated ids are appended to `ids` (`given` stays).
void generate(Forward& forward, std::span<Prompt> prompts, const GenerateOptions& options);

}  // namespace lamina
