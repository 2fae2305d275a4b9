#include "record/paths.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "lamina/core/error.h"

namespace lamina::record {

fs::path shard_path(const fs::path& path, std::size_t number) {
  fs::path stem = path;
  if (stem.extension() == ".h5") stem.replace_extension();
  return fs::path(fmt::format("{}.shard-{:04}.h5", stem.string(), number));
}

std::vector<fs::path> recording_files(const fs::path& path) {
  std::vector<fs::path> found;
  const auto take = [&](const fs::path& file) {
    if (fs::exists(fs::symlink_status(file))) found.push_back(file);
  };
  const auto take_all = [&](const fs::path& name) {
    take(name);
    for (const char* suffix : {".part", ".part.new", ".part.damaged"}) {
      take(fs::path(name.string() + suffix));
    }
  };
  take_all(path);
  take(fs::path(path.string() + ".index.part"));
  for (std::size_t number = 1;; ++number) {
    const std::size_t before = found.size();
    take_all(shard_path(path, number));
    if (found.size() == before) return found;
  }
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    fail("{}: cannot rename it to {}: {}", from.string(), to.string(), std::strerror(errno));
  }
  fs::path folder = to.parent_path();
  if (folder.empty()) folder = ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

void reserve_space(const fs::path& path, std::uint64_t bytes) {
#ifdef __linux__
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("{}: cannot create the file: {}", path.string(), std::strerror(errno));
  int error = 0;
  if (bytes > 0 && ::fallocate(descriptor, 0, 0, static_cast<off_t>(bytes)) != 0) {
    error = errno;
  }
  ::close(descriptor);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    fail("{}: cannot reserve {} bytes: {}", path.string(), bytes, std::strerror(error));
  }
#else
  (void)path, (void)bytes;
#endif
}

FileLock::FileLock(const fs::path& output) : path_(lock_path(output)) {
  for (;;) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
      fail("{}: cannot create the lock file: {}", path_.string(), std::strerror(errno));
    }
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      if (error == EWOULDBLOCK || error == EINTR) {
        ::close(descriptor_);
        if (error == EINTR) continue;
        fail("{}: another process is writing this recording (it holds {})", output.string(),
             path_.string());
      }
      return;  // a file system without locks: go on without
    }
    // The holder before us may have removed the file between our open and our lock.
    struct stat ours {
    }, there{};
    if (::fstat(descriptor_, &ours) == 0 && ::stat(path_.c_str(), &there) == 0 &&
        ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) {
      return;
    }
    ::close(descriptor_);
  }
}

FileLock::~FileLock() {
  if (descriptor_ < 0) return;
  ::unlink(path_.c_str());
  ::close(descriptor_);
}

}  // namespace lamina::record
