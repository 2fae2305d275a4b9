#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "lamina/core/recording.h"
#include "record/shard.h"

namespace lamina::record {

/// One file of a recording that consists of several.
struct IndexEntry {
  fs::path file;  // relative to the index's folder
  std::int64_t first_prompt = 0, prompts = 0, first_token = 0, tokens = 0;
};

/// Writes NAME as an index: the inputs of all shards, the table /shards, and virtual datasets over
/// the shards' rows. `prompts` are those of all entries together.
void write_index(const fs::path& path, const RecordingHeader& header, std::span<const Slot> slots,
                 std::span<const Prompt> prompts, std::span<const IndexEntry> entries);

bool is_index(const h5::Object& file);
std::vector<IndexEntry> read_index(const h5::Object& file);

}  // namespace lamina::record
