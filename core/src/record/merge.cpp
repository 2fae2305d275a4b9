#include <algorithm>

#include "record/index.h"
#include "record/paths.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// The files that really hold rows: the shards of an index, or the file itself.
std::vector<fs::path> row_files(const fs::path& path) {
  h5::Lock lock;
  const h5::Object file = h5::open_file(path.string(), false);
  if (!record::is_index(file)) return {path};
  std::vector<fs::path> out;
  for (const record::IndexEntry& entry : record::read_index(file)) {
    out.push_back(path.parent_path() / entry.file);
  }
  return out;
}

// What only the files can say: a header read back lacks the facts that the sentences depend on.
void take_semantics(const fs::path& path, std::vector<record::Slot>& slots) {
  h5::Lock lock;
  const h5::Object file = h5::open_file(path.string(), false);
  for (record::Slot& slot : slots) {
    slot.semantics = h5::read_text_attribute(h5::open_dataset(file, slot.path), "semantics");
  }
}

}  // namespace

void merge_recordings(std::span<const fs::path> parts, const fs::path& out, bool copy) {
  if (parts.empty()) fail("{}: nothing to merge", out.string());
  if (fs::exists(out)) fail("{}: the file exists; a merge never overwrites one", out.string());
  const record::FileLock lock(out);
  std::vector<Recording> recordings;
  for (const fs::path& part : parts) recordings.push_back(Recording::open(part));
  std::sort(recordings.begin(), recordings.end(), [](const Recording& a, const Recording& b) {
    return a.header().shard_first_prompt < b.header().shard_first_prompt;
  });

  RecordingHeader header = recordings[0].header();
  std::int64_t next = 0;
  for (std::size_t i = 0; i < recordings.size(); ++i) {
    const Recording& part = recordings[i];
    const RecordingHeader& own = part.header();
    if (const auto difference = record::run_difference(header, own); !difference.empty()) {
      fail("{}: it is of another run than {}: {}", part.path().string(),
           recordings[0].path().string(), difference);
    }
    if (own.shard_first_prompt != next) {
      fail("{}: it begins with prompt {}, {} expected: {}", part.path().string(),
           own.shard_first_prompt, next,
           own.shard_first_prompt > next
               ? fmt::format("prompts {} to {} are in no file", next, own.shard_first_prompt - 1)
               : fmt::format("{} has prompts up to {} already", recordings[i - 1].path().string(),
                             next - 1));
    }
    next += static_cast<std::int64_t>(part.prompts().size());
  }
  if (next != header.total_prompts) {
    fail("{}: prompts {} to {} are in none of the {} files", out.string(), next,
         header.total_prompts - 1, parts.size());
  }

  std::vector<record::Slot> slots = record::make_slots(header);
  std::vector<Prompt> prompts;
  std::vector<fs::path> files;
  for (const Recording& part : recordings) {
    prompts.insert(prompts.end(), part.prompts().begin(), part.prompts().end());
    for (fs::path& file : row_files(part.path())) files.push_back(std::move(file));
  }
  take_semantics(files[0], slots);

  std::vector<record::IndexEntry> entries;
  std::vector<Recording> shards;
  std::int64_t token = 0;
  for (const fs::path& file : files) {
    shards.push_back(Recording::open(file));
    const Recording& shard = shards.back();
    const fs::path folder = fs::absolute(out).parent_path();
    entries.push_back({fs::proximate(fs::absolute(file), folder), shard.header().shard_first_prompt,
                       static_cast<std::int64_t>(shard.prompts().size()), token, shard.tokens()});
    token += shard.tokens();
  }
  if (!copy) {
    record::write_index(out, header, slots, prompts, entries);
    return;
  }

  // Raw rows, piece by piece, into one file.
  constexpr std::uint64_t kPiece = 16 << 20;
  record::ShardWriter writer =
      record::ShardWriter::create({out, 0, header.total_prompts, false}, header, slots, prompts);
  std::vector<std::uint64_t> done(slots.size(), 0);
  std::vector<std::byte> buffer;
  for (const fs::path& path : files) {
    h5::Lock hold;
    const h5::Object file = h5::open_file(path.string(), false);
    for (std::size_t s = 0; s < slots.size(); ++s) {
      const h5::Object dataset = h5::open_dataset(file, slots[s].path);
      const std::uint64_t rows = h5::dataset_dims(dataset).at(0);
      const std::uint64_t step = std::max<std::uint64_t>(1, kPiece / slots[s].row_bytes());
      for (std::uint64_t row = 0; row < rows; row += step) {
        const std::uint64_t count = std::min(step, rows - row);
        buffer.resize(count * slots[s].row_bytes());
        h5::read_rows(dataset, slots[s].type, row, count, buffer.data());
        writer.write(s, done[s], count, buffer.data());
        done[s] += count;
      }
    }
  }
  writer.finish();
}

}  // namespace lamina
