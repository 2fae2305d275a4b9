#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "lamina/core/checked.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/internal/file_text.h"
#include "safetensors_limits.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using files::quote;

/// A file that appears under its name only when complete: NAME.part until commit().
class PartFile {
 public:
  explicit PartFile(fs::path path) : path_(std::move(path)), part_(path_) {
    part_ += ".part";
    descriptor_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail("{}: cannot create: {}", part_.string(), std::strerror(errno));
  }
  ~PartFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(part_.c_str());
  }
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        fail("{}: cannot write, {} bytes left: {}", part_.string(), bytes.size(),
             std::strerror(errno));
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  void commit() {
    if (::fsync(descriptor_) != 0) {
      fail("{}: cannot flush to disk: {}", part_.string(), std::strerror(errno));
    }
    const int closed = ::close(std::exchange(descriptor_, -1));
    if (closed != 0) fail("{}: cannot close: {}", part_.string(), std::strerror(errno));
    if (::rename(part_.c_str(), path_.c_str()) != 0) {
      fail("{}: cannot rename to {}: {}", part_.string(), path_.string(), std::strerror(errno));
    }
    committed_ = true;
    // The rename itself is durable once the folder is flushed; not every file system can do that.
    const fs::path folder = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
    const int folder_descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_descriptor >= 0) {
      ::fsync(folder_descriptor);
      ::close(folder_descriptor);
    }
  }

 private:
  fs::path path_, part_;
  int descriptor_ = -1;
  bool committed_ = false;
};

std::string header_text(const fs::path& path, std::span<const F32Tensor> tensors,
                        const std::map<std::string, std::string>& metadata) {
  const std::string name = path.string();
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const auto& [key, value] : metadata) {
    if (!files::valid_utf8(key) || !files::valid_utf8(value)) {
      fail("{}: metadata key {} or its value is no UTF-8 text", name, quote(key));
    }
    header["__metadata__"][key] = value;
  }
  std::set<std::string_view> names;
  std::uint64_t begin = 0;
  for (const F32Tensor& tensor : tensors) {
    const std::string shown = quote(tensor.name);
    if (tensor.name == "__metadata__" || !files::valid_utf8(tensor.name)) {
      fail("{}: {} cannot be the name of a tensor", name, shown);
    }
    if (!names.insert(tensor.name).second) fail("{}: tensor {} appears twice", name, shown);
    if (tensor.shape.size() > files::kMaxRank) {
      fail("{}: tensor {} has {} dimensions, at most {} are allowed", name, shown,
           tensor.shape.size(), files::kMaxRank);
    }
    const std::string what = fmt::format("{}: tensor {}: shape", name, shown);
    std::uint64_t elements = 1;
    for (std::uint64_t extent : tensor.shape) elements = checked_mul(elements, extent, what);
    if (elements != tensor.values.size()) {
      fail("{}: tensor {}: shape [{}] has {} values, got {}", name, shown,
           fmt::join(tensor.shape, ", "), elements, tensor.values.size());
    }
    const std::uint64_t end = checked_add(begin, tensor.values.size_bytes(), what);
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are 8-byte aligned
  if (text.size() > files::kMaxHeader) {
    fail("{}: header of {} bytes, at most {} are allowed", name, text.size(), files::kMaxHeader);
  }
  return text;
}

}  // namespace

void write_safetensors(const fs::path& path, std::span<const F32Tensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string text = header_text(path, tensors, metadata);
  const std::uint64_t size = text.size();
  PartFile file(path);
  file.write(std::as_bytes(std::span(&size, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const F32Tensor& tensor : tensors) file.write(std::as_bytes(tensor.values));
  file.commit();
}

}  // namespace lamina
