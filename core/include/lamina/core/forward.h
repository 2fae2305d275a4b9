#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lamina/core/batch.h"
#include "lamina/core/model.h"
#include "lamina/core/site.h"

namespace lamina {

/// The values at one site, as a hook sees them. Token sites: `values` is [tokens, shape.row()] of
/// the whole batch, row-major. Attention sites (scores, pattern): one call per prompt, `values` is
/// [heads, queries, keys]; keys include cached ones, and key j of the prompt is position j.
/// Masked scores are −infinity, masked pattern entries 0.
struct SiteView {
  Site site;
  SiteShape shape;
  const Batch& batch;
  std::span<float> values;
  std::int64_t prompt = -1;  // attention sites only
  std::int64_t queries = 0;  // attention sites only
  std::int64_t keys = 0;     // attention sites only
};

/// Called at a site, on the calling thread, with the values in place. Reading hooks must leave them
/// alone; writing hooks change them and everything downstream follows.
using HookFunction = std::function<void(SiteView&)>;

/// The hooks of one pass. Several hooks at one site run in the order they were added.
class Hooks {
 public:
  /// Reads: `function` must not change the values.
  void read(Site site, HookFunction function);
  /// Writes: changed values replace the site's.
  void write(Site site, HookFunction function);

  struct Entry {
    Site site;
    HookFunction function;
    bool writes;
  };
  std::span<const Entry> entries() const { return entries_; }
  bool empty() const { return entries_.empty(); }

 private:
  std::vector<Entry> entries_;
};

/// Keys and values of earlier tokens, one sequence per prompt of the batch it is used with.
class KvCache {
 public:
  KvCache(const ModelConfig& config, std::int64_t sequences);
  ~KvCache();
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  /// Tokens already stored for sequence i: the position of the next one.
  std::int64_t length(std::int64_t sequence) const;
  std::int64_t sequences() const;
  /// Forgets all but the first `tokens` tokens of a sequence.
  void truncate(std::int64_t sequence, std::int64_t tokens);
  /// Bytes of keys and values per token.
  std::uint64_t bytes_per_token() const;

  struct Impl;  // private: core/src/engine/kv_cache.h
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

/// Runs a model over ragged batches.
///
/// Every row's values are the same bit for bit whatever else is in the batch, whatever the number
/// of threads, whichever sites are hooked (as long as no hook writes), and whether earlier tokens
/// came from a cache.
class Forward {
 public:
  explicit Forward(const Model& model);
  ~Forward();
  Forward(Forward&&) noexcept;

  /// Runs the whole stack. Fires the hooks; throws UsageError if a hooked site does not exist in
  /// this model, Error for ids outside the vocabulary, empty prompts, and positions that the model
  /// does not have (learned positions only). With a cache, the prompts continue its sequences.
  /// Returns the residual stream after the last block, [tokens, d_model], valid until the next run.
  /// `sequences`: which sequence of the cache each prompt continues; empty = prompt i, sequence i.
  std::span<const float> run(const Batch& batch, const Hooks& hooks = {}, KvCache* cache = nullptr,
                             std::span<const std::int64_t> sequences = {});

  /// The model's own logits for token rows of the last run: out [rows, d_vocab]. Only these rows
  /// are computed. Follows what hooks wrote, the final norm's sites included.
  void run_logits(std::span<const std::int64_t> rows, std::span<float> out);

  /// Final norm of residual rows: x [rows, d_model] → out [rows, d_model] (norm weights applied).
  void final_norm(std::span<const float> x, std::span<float> out) const;

  /// Logits of normalised rows: x [rows, d_model] → out [rows, d_vocab]; bias and soft-cap applied.
  void unembed(std::span<const float> x, std::span<float> out) const;

  /// final_norm then unembed: the logits a residual row decodes to (logit lens; the model's own
  /// logits for the last layer's output).
  void logits(std::span<const float> x, std::span<float> out) const;

  const Model& model() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
