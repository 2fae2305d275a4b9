#pragma once

#include <chrono>
#include <filesystem>
#include <span>
#include <vector>

#include "record/layout.h"
#include "record/paths.h"

namespace lamina::record {

/// The prompts of one file of a recording.
struct ShardRange {
  fs::path path;           // its final name
  std::int64_t first = 0;  // prompts first … last − 1 of the run
  std::int64_t last = 0;
  bool complete = false;
};

/// One file being filled. Its whole skeleton is written before it gets the name PATH.part, and from
/// then on only raw values and two fixed-size attributes change, so a process that dies at any
/// moment leaves a file that opens; `committed_prompts` says how much of it is whole.
class ShardWriter {
 public:
  /// Creates PATH.part, or opens it to go on after `committed()` prompts.
  static ShardWriter create(const ShardRange& range, const RecordingHeader& header,
                            std::span<const Slot> slots, std::span<const Prompt> run);
  static ShardWriter resume(const ShardRange& range, const RecordingHeader& header,
                            std::span<const Slot> slots, std::span<const Prompt> run);

  const ShardRange& range() const { return range_; }
  /// Prompts of this file that are safely stored.
  std::int64_t committed() const { return committed_; }

  /// Rows first … first + count − 1 of a slot (elements for attention slots), in stored form.
  void write(std::size_t slot, std::uint64_t first, std::uint64_t count, const std::byte* values);
  /// The file's first `prompts` prompts are written. Flushes them to the disk and says so in the
  /// file, unless the last time was a moment and fewer than `flush_bytes` ago.
  void written(std::int64_t prompts, std::uint64_t flush_bytes);
  /// Everything is written: complete = 1, and the final name.
  void finish();

 private:
  ShardWriter(ShardRange range, h5::Object file)
      : range_(std::move(range)), file_(std::move(file)) {}

  ShardRange range_;
  h5::Object file_;
  std::vector<h5::Type> types_;
  std::vector<h5::Object> rows_;
  std::int64_t committed_ = 0;
  std::uint64_t pending_bytes_ = 0;
  std::chrono::steady_clock::time_point last_flush_ = std::chrono::steady_clock::now();
};

/// Splits prompts first … last − 1 into ranges of at most `shard_bytes` (but at least one prompt);
/// paths are left empty.
std::vector<ShardRange> plan_shards(const RecordingHeader& header, std::span<const Slot> slots,
                                    std::span<const Prompt> run, std::int64_t first,
                                    std::int64_t last, std::uint64_t shard_bytes);

/// Fails unless `file` holds exactly these prompts of the run.
void expect_inputs(const h5::Object& file, const Inputs& inputs, std::span<const Prompt> prompts);

}  // namespace lamina::record
