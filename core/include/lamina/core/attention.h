#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "lamina/core/config.h"

namespace lamina {

/// What one query of one head gives to the keys it may see: keys first_key, first_key + 1, …
struct AttentionRow {
  std::int64_t head = 0, query = 0, first_key = 0;
  std::span<const float> scores;   // scaled and capped, as at hook_attn_scores
  std::span<const float> pattern;  // after the softmax, as at hook_pattern
};

/// The keys first … end − 1 that query `query` of a prompt of `tokens` tokens may see in a layer.
struct VisibleKeys {
  std::int64_t first = 0, end = 0;
  std::int64_t count() const { return end - first; }
};
VisibleKeys visible_keys(const ModelConfig& config, std::int32_t layer, std::int64_t tokens,
                         std::int64_t query);

/// Recomputes attention from one prompt's queries and keys as they meet: q [tokens, heads, d_head],
/// k [tokens, kv_heads, d_head] after norm and rotation (hook_rot_q, hook_rot_k). Calls `row` for
/// every query, in order, of the heads that read key head `kv_head`. Bit for bit the scores and the
/// pattern of the forward pass; never holds more than a few hundred rows of them. Serial: call it
/// for many heads in parallel. `config` must be the model's, not a recording's, which lacks scale,
/// cap and windows.
void attention_rows(const ModelConfig& config, std::int32_t layer, std::int64_t kv_head,
                    std::span<const float> q, std::span<const float> k,
                    const std::function<void(const AttentionRow&)>& row);

/// Softmax in place of one query's scores over all keys from key 0 on (masked ones −infinity): the
/// bits that the forward pass gives.
void attention_softmax(std::span<float> scores);

}  // namespace lamina
