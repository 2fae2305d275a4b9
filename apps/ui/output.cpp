#include "ui/output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "lamina/core/error.h"

namespace lamina::cli {

void check_writable(const std::filesystem::path& path, bool force) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    fail("{}: is a folder, expected a file name", path.string());
  if (std::filesystem::exists(path, ignored) && !force) {
    fail("{}: exists already; --force overwrites it", path.string());
  }
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (!std::filesystem::is_directory(folder, ignored)) {
    fail("{}: its folder {} does not exist", path.string(), folder.string());
  }
}

Output::Output(const std::filesystem::path& path, bool force) {
  if (path.empty() || path == "-") return;
  check_writable(path, force);
  path_ = path;
  part_ = path.string() + ".part";
  file_ = std::fopen(part_.c_str(), "wb");
  if (file_ == nullptr) fail("{}: cannot be created: {}", part_.string(), std::strerror(errno));
}

Output::~Output() {
  if (part_.empty() || file_ == nullptr) return;
  std::fclose(file_);  // not closed by close(): incomplete
  std::error_code ignored;
  std::filesystem::remove(part_, ignored);
}

void Output::failed() const {
  if (part_.empty() && errno == EPIPE) throw OutputClosed();
  fail("{}: writing failed: {}", part_.empty() ? "standard output" : part_.string(),
       std::strerror(errno));
}

void Output::write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size()) failed();
}

void Output::close() {
  if (std::fflush(file_) != 0) failed();
  if (part_.empty()) return;
  if (fsync(fileno(file_)) != 0) failed();
  const int closed = std::fclose(std::exchange(file_, nullptr));
  if (closed != 0) failed();
  std::filesystem::rename(part_, path_);
  part_.clear();
}

}  // namespace lamina::cli
