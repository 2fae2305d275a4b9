#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "lamina/core/forward.h"

namespace lamina {

/// One patched run of a prompt of a RunState: rows `first` … are computed again from `layer` on.
struct PatchedRun {
  std::int64_t id = 0;      // the caller's
  std::int64_t prompt = 0;  // of the state
  std::int32_t layer = 0;   // n_layers: no layer; group 0 writes the last resid_post's last row
  std::int64_t first = 0;
  std::int32_t group = 0;  // runs of different groups never share a batch
};

/// Groups of runs that make a pass slower for all its rows: they are kept apart.
inline constexpr std::int32_t kAttentionRuns = 1, kResultRuns = 2, kFinalNormRuns = 3;
std::int32_t runs_of_site(SiteKind kind);

/// What the runs of one batch overwrite.
class WriteList {
 public:
  /// In row `position` of a token site: values[0 …] go to offset, offset + 1, …
  void set(Site site, std::int64_t position, std::int64_t offset, std::span<const float> values);
  /// In one head's row of an attention site: query `position`, keys from `offset` on.
  void set_attention(Site site, std::int64_t head, std::int64_t position, std::int64_t offset,
                     std::span<const float> values);

 private:
  friend class PatchedRuns;
  struct Entry {
    std::int64_t run, position, head, offset;
    std::size_t from, count;  // in pool_
  };
  void clear();
  void apply(SiteView& view, const std::vector<Entry>& entries,
             std::span<const Continuation> which) const;

  std::int64_t run_ = 0;  // index in the batch of the run whose writes are being listed
  std::vector<float> pool_;
  std::map<Site, std::vector<Entry>> entries_;  // in the order of the runs
};

/// Carries out patched runs, as many in one batch as the memory allows.
class PatchedRuns {
 public:
  /// Lists what one run overwrites. Rows before `first` must not be written.
  using Writes = std::function<void(const PatchedRun&, WriteList&)>;
  /// Takes the logits [d_vocab] of a run's last row.
  using Consume = std::function<void(const PatchedRun&, std::span<const float>)>;
  /// Adds further hooks to a batch, in front of the writes; prompt i of the pass is batch[i].
  using Extra = std::function<void(std::span<const PatchedRun> batch, Hooks&)>;
  /// Sees the batch when its layers are done, with the residual stream after the last block.
  using Finish = std::function<void(std::span<const PatchedRun> batch, std::span<const float>)>;

  /// `memory`: bytes a batch may take. `state` must outlive this.
  PatchedRuns(Forward& forward, const RunState& state, std::uint64_t memory);

  Writes writes;
  Consume consume;  // empty: no logits are computed
  Extra extra;
  Finish finish;

  /// Sorts the runs by where they start and carries them out.
  void run(std::vector<PatchedRun> runs);

  /// Bytes that one row takes while a layer is computed (residual stream, a norm's input and
  /// output, what a sublayer adds, q, k, v, z, the MLP's hidden rows, every head's result).
  static std::uint64_t bytes_per_row(const ModelConfig& config, bool results);

 private:
  void run_batch(std::span<const PatchedRun> batch);
  void final_rows(std::span<const PatchedRun> batch);
  void give_logits(std::span<const PatchedRun> batch, std::span<const std::int64_t> rows);

  Forward& forward_;
  const RunState& state_;
  const ModelConfig& config_;
  std::uint64_t memory_;
  WriteList list_;
  std::vector<float> logits_;
};

/// Calls use(prompt, logits [d_vocab]) for the last row of every prompt of the pass just run, as
/// many at once as `memory` allows.
void each_last_row(Forward& forward, const Batch& batch, std::uint64_t memory,
                   const std::function<void(std::int64_t, std::span<const float>)>& use);

/// Consecutive groups [first, end) whose bytes stay within `budget`; one too large stands alone.
std::vector<std::pair<std::size_t, std::size_t>> groups_within(std::span<const std::uint64_t> bytes,
                                                               std::uint64_t budget);

}  // namespace lamina
