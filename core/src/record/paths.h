#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lamina::record {

namespace fs = std::filesystem;

/// NAME.part, the file being written.
inline fs::path part_path(const fs::path& path) {
  return fs::path(path.string() + ".part");
}
/// NAME.part.new, a file whose skeleton is being written: never worth resuming.
inline fs::path new_path(const fs::path& path) {
  return fs::path(path.string() + ".part.new");
}
inline fs::path lock_path(const fs::path& path) {
  return fs::path(path.string() + ".lock");
}

/// run.h5 → run.shard-0001.h5; numbers start at 1.
fs::path shard_path(const fs::path& path, std::size_t number);

/// Every file there is of a recording called `path`: itself, shards, and what a crash leaves.
std::vector<fs::path> recording_files(const fs::path& path);

/// rename() and fsync of the folder; Error with the system's reason.
void rename_durably(const fs::path& from, const fs::path& to);

/// Reserves the disk space of the first `bytes` of a file (creating it), so that a full disk shows
/// before hours of work. Does nothing where the file system cannot.
void reserve_space(const fs::path& path, std::uint64_t bytes);

/// An advisory lock on NAME.lock for as long as the object lives; Error if another process has it.
class FileLock {
 public:
  explicit FileLock(const fs::path& output);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  fs::path path_;
  int descriptor_ = -1;
};

}  // namespace lamina::record
