#include "record/shard.h"

#include "record/convert.h"

namespace lamina::record {
namespace {

constexpr auto kFlushTime = std::chrono::seconds(2);

constexpr std::uint64_t kInputBytes = 17;  // of one token: id, position, phase, index

std::vector<std::int64_t> offsets_of(std::span<const Prompt> prompts) {
  std::vector<std::int64_t> offsets = {0};
  for (const Prompt& prompt : prompts) {
    offsets.push_back(offsets.back() + static_cast<std::int64_t>(prompt.ids.size()));
  }
  return offsets;
}

std::span<const Prompt> prompts_of(const ShardRange& range, std::span<const Prompt> run) {
  return run.subspan(static_cast<std::size_t>(range.first),
                     static_cast<std::size_t>(range.last - range.first));
}

}  // namespace

ShardWriter ShardWriter::create(const ShardRange& range, const RecordingHeader& header,
                                std::span<const Slot> slots, std::span<const Prompt> run) {
  const fs::path fresh = new_path(range.path);
  try {
    // Once roughly, before HDF5 has the file: where HDF5 1.10 cannot write its own structure it
    // cannot close the file either. And once exactly.
    std::uint64_t rough = 0;
    for (const Prompt& prompt : prompts_of(range, run)) {
      const auto length = static_cast<std::int64_t>(prompt.ids.size());
      rough = checked_add(rough, prompt_bytes(header, slots, length), fresh.string());
      rough += prompt.ids.size() * kInputBytes + prompt.text.size();
    }
    reserve_space(fresh, rough);
    h5::Object file = h5::create_file(fresh.string());
    write_skeleton(file, header, slots, prompts_of(range, run), range.first, make_real_rows);
    h5::flush(file);
    h5::close_file(file);
    reserve_space(fresh, fs::file_size(fresh));
  } catch (...) {
    std::error_code ignored;
    fs::remove(fresh, ignored);
    throw;
  }
  rename_durably(fresh, part_path(range.path));
  return resume(range, header, slots, run);
}

ShardWriter ShardWriter::resume(const ShardRange& range, const RecordingHeader& header,
                                std::span<const Slot> slots, std::span<const Prompt> run) {
  h5::Lock lock;
  ShardWriter shard(range, h5::open_file(part_path(range.path).string(), true));
  const RecordingHeader stored = read_header(shard.file_);
  if (const std::string difference = run_difference(stored, header); !difference.empty()) {
    fail("{}: cannot go on with this file for another run: {}", shard.file_.where, difference);
  }
  const std::span<const Prompt> prompts = prompts_of(range, run);
  expect_inputs(shard.file_, read_inputs(shard.file_), prompts);
  const std::vector<std::int64_t> offsets = offsets_of(prompts);
  for (const Slot& slot : slots) {
    shard.types_.push_back(slot.type);
    shard.rows_.push_back(open_rows(shard.file_, slot, header, offsets));
  }
  shard.committed_ = h5::read_integer_attribute(shard.file_, "committed_prompts");
  if (shard.committed_ < 0 || shard.committed_ > range.last - range.first) {
    fail("{}: attribute committed_prompts is {}, 0 to {} expected", shard.file_.where,
         shard.committed_, range.last - range.first);
  }
  return shard;
}

void ShardWriter::write(std::size_t slot, std::uint64_t first, std::uint64_t count,
                        const std::byte* values) {
  h5::write_rows(rows_[slot], types_[slot], first, count, values);
  pending_bytes_ += count * h5::type_size(types_[slot]);
}

void ShardWriter::written(std::int64_t prompts, std::uint64_t flush_bytes) {
  const auto now = std::chrono::steady_clock::now();
  if (prompts == committed_) return;
  if (pending_bytes_ < flush_bytes && now - last_flush_ < kFlushTime) return;
  h5::flush(file_);
  // Only now that the values are on the disk may the file say so. The attribute itself needs no
  // fsync: lost in a power cut, it costs some prompts, never their truth.
  h5::update_attribute(file_, "committed_prompts", prompts);
  h5::Lock lock;
  h5::check(H5Fflush(file_.id(), H5F_SCOPE_LOCAL), file_.where, "write to the file");
  committed_ = prompts;
  pending_bytes_ = 0;
  last_flush_ = std::chrono::steady_clock::now();
}

void ShardWriter::finish() {
  written(range_.last - range_.first, 0);
  rows_.clear();
  h5::update_attribute(file_, "complete", 1);
  h5::flush(file_);
  h5::close_file(file_);
  rename_durably(part_path(range_.path), range_.path);
  range_.complete = true;
}

std::vector<ShardRange> plan_shards(const RecordingHeader& header, std::span<const Slot> slots,
                                    std::span<const Prompt> run, std::int64_t first,
                                    std::int64_t last, std::uint64_t shard_bytes) {
  std::vector<ShardRange> shards;
  std::uint64_t filled = 0;
  for (std::int64_t p = first; p < last; ++p) {
    const auto length = static_cast<std::int64_t>(run[static_cast<std::size_t>(p)].ids.size());
    const std::uint64_t bytes = prompt_bytes(header, slots, length);
    if (shards.empty() || bytes > shard_bytes - std::min(filled, shard_bytes)) {
      shards.push_back({{}, p, p, false});
      filled = 0;
    }
    shards.back().last = p + 1;
    filled = checked_add(filled, bytes, "bytes of a shard");
  }
  return shards;
}

void expect_inputs(const h5::Object& file, const Inputs& inputs, std::span<const Prompt> prompts) {
  if (inputs.prompts.size() != prompts.size()) {
    fail("{}: {} prompts expected in this file, found {}", file.where, prompts.size(),
         inputs.prompts.size());
  }
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Prompt& a = inputs.prompts[i];
    const Prompt& b = prompts[i];
    const char* what = a.ids != b.ids         ? "token ids"
                       : a.id != b.id         ? "id"
                       : a.text != b.text     ? "text"
                       : a.given != b.given   ? "number of given tokens"
                       : a.target != b.target ? "target"
                       : a.labels != b.labels ? "labels"
                                              : nullptr;
    if (what != nullptr) {
      fail("{}: prompt {} ('{}') of the file has another {} than this run's", file.where, i, b.id,
           what);
    }
  }
}

}  // namespace lamina::record
