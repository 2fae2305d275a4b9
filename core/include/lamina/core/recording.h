#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/config.h"
#include "lamina/core/prompts.h"
#include "lamina/core/site.h"

namespace lamina {

/// Element type of stored activations. f16 refuses values beyond ±65504 instead of storing
/// infinity.
enum class StoreType : std::uint8_t { f32, f16, bf16 };
std::string_view store_type_name(StoreType type);
StoreType parse_store_type(std::string_view name);

/// Everything that describes a recording but its rows. Written as attributes of the root group.
struct RecordingHeader {
  std::string tool_version, argv, created_utc;
  std::uint64_t seed = 0;
  std::string model_id, model_sha256, tokenizer_sha256;
  ModelConfig config;  // stored and restored: sizes, family, norm_place, causal; nothing else
  bool prepend_bos = false;
  std::string
      prompts_sha256;  // over ids, so that --resume and merge know that they continue the same run
  StoreType store = StoreType::f32;
  std::vector<Site> sites;
  std::int64_t topk = 0;                // 0: no logits stored
  std::int64_t total_prompts = 0;       // of the whole run
  std::int64_t shard_first_prompt = 0;  // this file holds prompts shard_first … + (prompts stored)
};

struct WriterOptions {
  std::uint64_t shard_bytes = std::uint64_t{4} << 30;   // a new shard begins when one is this large
  std::uint64_t flush_bytes = std::uint64_t{64} << 20;  // put on the disk this often, or every 2 s
  bool resume = false;  // continue an interrupted run with the same header
  std::size_t queue_bytes = std::size_t{256} << 20;  // bound of the writer thread's queue
  std::int64_t first_prompt = 0, last_prompt = -1;   // range of this run (--shard i/n); −1 = all
};

/// Writes a recording: bounded shards NAME.part, flushed at prompt boundaries, then complete = 1,
/// fsync and rename; a run of several shards ends with NAME itself being an index of virtual
/// datasets over them. Values are converted in append() by the caller's threads; one writer thread
/// behind a bounded queue does the HDF5 calls.
class RecordingWriter {
 public:
  RecordingWriter(const std::filesystem::path& path, const RecordingHeader& header,
                  std::span<const Prompt> prompts, const WriterOptions& options = {});
  /// Without finish(): leaves what was flushed for --resume.
  ~RecordingWriter();
  RecordingWriter(const RecordingWriter&) = delete;

  /// Index of the first prompt that still has to be recorded (> first_prompt after a resume).
  std::int64_t next_prompt() const;
  /// Appends a block; its first_prompt must be next_prompt(). Throws what the writer thread failed
  /// with, at this or a later call.
  void append(const ActivationBlock& block);
  /// Writes everything out and gives the recording its final name.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Deletes a recording, finished or interrupted: NAME, its shards, and what a crash left of them.
/// Fails if another process is writing it.
void remove_recording(const std::filesystem::path& path);

/// A recording opened for reading: one file, an index of shards, or several shard files.
/// Opening checks format, version, completeness, shapes, offsets, and that every shard is there.
class Recording {
 public:
  static Recording open(const std::filesystem::path& path);
  ~Recording();
  Recording(Recording&&) noexcept;
  Recording& operator=(Recording&&) noexcept;

  const std::filesystem::path& path() const;
  const RecordingHeader& header() const;
  const std::vector<Prompt>& prompts() const;        // ids, text, labels, targets, phases
  const std::vector<std::int64_t>& offsets() const;  // [prompt + 1]
  std::int64_t tokens() const;
  const std::vector<Site>& sites() const;
  bool has(Site site) const;

  /// Rows first … first + count − 1 of a token site as fp32, [count, row].
  void read_rows(Site site, std::int64_t first, std::int64_t count, std::span<float> out) const;
  /// One prompt's [head, query, key] of an attention site.
  std::vector<float> read_attention(Site site, std::int64_t prompt) const;
  /// Stored logit summary of token rows; empty if the recording has none.
  LogitSummary read_logits(std::int64_t first, std::int64_t count) const;
  /// A block with the given sites of prompts first … first + count − 1.
  ActivationBlock read_block(std::span<const Site> sites, std::int64_t first,
                             std::int64_t count) const;

 private:
  Recording();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Merges the finished files of `--shard 1/n … n/n` into one recording at `out` (an index of
/// virtual datasets beside them, or a copy with `copy`). Refuses files of different runs, gaps and
/// overlaps.
void merge_recordings(std::span<const std::filesystem::path> parts,
                      const std::filesystem::path& out, bool copy);

/// The first place where two recordings part, and the largest differences of every site.
struct SiteDifference {
  Site site;
  double max_abs = 0;       // largest |a − b|
  double relative = 0;      // max_abs / largest |a|
  std::int64_t token = -1;  // where the first difference beyond the tolerance stands; −1 = none
  std::int64_t column = -1;
  float a = 0, b = 0;
};
struct RecordingDifference {
  std::vector<std::string> notes;     // headers, inputs, sites in one file only
  std::vector<SiteDifference> sites;  // in firing order
  bool equal = true;
};
/// `tolerance`: relative to the site's largest magnitude; 0 = bit for bit.
RecordingDifference compare_recordings(const Recording& a, const Recording& b, double tolerance);

}  // namespace lamina
