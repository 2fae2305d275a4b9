#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/config.h"
#include "lamina/core/prompts.h"
#include "lamina/core/site.h"

namespace lamina {

/// The largest logits of every token (of a classifier: ids are numbers of labels), and the
/// log-probability of what came next (NaN but for causal language models).
struct LogitSummary {
  std::int64_t k = 0;
  std::vector<std::int32_t> topk_ids;  // [token, k]; ties by smaller id
  std::vector<float> topk_logprobs;    // [token, k], nats
  std::vector<float> target_logprob;   // [token]: of the following token; at a prompt's last
                                       // token of its target, NaN without one
  // Of live passes only; a recording does not keep them (empty).
  std::vector<float> log_z;    // [token] log Σ exp(logit)
  std::vector<float> entropy;  // [token] of the distribution, nats
};

/// Activations of a few whole prompts: what a forward pass hands to probes and to the recorder, and
/// what a recording hands to probes. The same prompt has the same values either way.
struct ActivationBlock {
  /// One site's values. Token sites: [token, row]. Attention sites: per prompt [head, query, key],
  /// prompt after prompt, prompt i at values[offsets[i]] … values[offsets[i+1]].
  struct Values {
    SiteShape shape;
    std::vector<float> values;
    std::vector<std::int64_t> offsets;  // attention sites only, [prompt + 1]
  };

  std::int64_t first_prompt = 0;  // index of prompts[0] in the run
  std::span<const Prompt> prompts;
  Batch batch;
  std::unordered_map<std::uint32_t, Values> sites;  // by site_key()
  LogitSummary logits;                              // empty (k = 0) unless asked for

  static std::uint32_t site_key(Site site) {
    return static_cast<std::uint32_t>(site.layer + 1) << 8 | static_cast<std::uint32_t>(site.kind);
  }
  /// Throws Error if the block does not hold the site.
  const Values& at(Site site) const;
};

/// Receives the blocks of a run in order.
using BlockConsumer = std::function<void(const ActivationBlock&)>;

}  // namespace lamina
