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

/// One step of a pass: a layer, whole or one of its two sublayers. A sublayer that is left out adds
/// nothing to the residual stream and its sites do not fire.
struct Step {
  std::int32_t layer = 0;
  bool attention = true;
  bool mlp = true;
  bool operator==(const Step&) const = default;
};

/// Every layer once, in order: the model as it is.
std::vector<Step> all_steps(const ModelConfig& config);

/// What one pass left behind, so that later passes can start in its middle (Forward::resume).
struct RunState {
  Batch batch;
  std::vector<std::vector<float>> resid;         // [layer + 1][tokens, d_model]; last: after all
  std::vector<std::vector<float>> keys, values;  // [layer][tokens, kv_heads · d_head], rotated keys
  std::uint64_t bytes() const;
  static std::uint64_t bytes_per_token(const ModelConfig& config);
};

/// The rows of one prompt of a RunState that are computed again: `first` … length − 1.
struct Continuation {
  std::int64_t prompt = 0;
  std::int64_t first = 0;
};

class Tape;  // lamina/core/backward.h

/// What a pass may do beyond the plain one.
struct RunOptions {
  /// Continue the sequences of this cache: prompt i continues sequences[i], or sequence i if empty.
  KvCache* cache = nullptr;
  std::span<const std::int64_t> sequences = {};
  /// Empty: all_steps().
  std::span<const Step> steps = {};
  /// [tokens, d_model] entering the first step; empty: the embedding.
  std::span<const float> start = {};
  /// Filled; only with all_steps(), from the embedding and without a cache.
  RunState* keep = nullptr;
  /// Filled for Backward; only without a cache.
  Tape* tape = nullptr;
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

  /// The same with more choices. Throws UsageError for choices that exclude each other, steps that
  /// name a layer the model lacks, and a start of another size than [tokens, d_model].
  std::span<const float> run(const Batch& batch, const Hooks& hooks, const RunOptions& options);

  /// Computes layers `layer` … L − 1 again for the named rows only; everything before them (rows
  /// and layers) is taken from `state`. The values are those of a full run with the same hooks, bit
  /// for bit, as long as the hooks change nothing in front of `layer` or of the rows. One prompt of
  /// the state may be named several times: each continuation is a prompt of the batch the hooks see
  /// (`SiteView::batch`: rows first … length − 1 of it; attention sites have all its keys).
  /// layer = L runs no layer: only what follows the last block. Returns the residual stream after
  /// the last block, [rows of the continuations, d_model]; run_logits takes rows of these.
  /// Throws UsageError for rows or layers that are not there, and for first > 0 in a model that
  /// attends in both directions.
  std::span<const float> resume(const RunState& state, std::int32_t layer,
                                std::span<const Continuation> which, const Hooks& hooks = {});

  /// What the site q, k or v (`kind`) of one head would hold if the residual stream that its layer
  /// reads were `residual` [rows, d_model]: norm, projection, bias → out [rows, d_head]. `head`
  /// counts key/value heads for k and v. The same bits as the pass gives.
  void read_head(SiteKind kind, std::int32_t layer, std::int64_t head,
                 std::span<const float> residual, std::span<float> out) const;

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
