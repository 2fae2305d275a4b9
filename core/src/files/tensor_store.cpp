#include "lamina/core/tensor_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lamina/core/checked.h"
#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

namespace lamina {
namespace {

std::uint64_t regular_file_size(int descriptor, const std::string& name) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    fail("{}: cannot read the file's size: {}", name, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) fail("{}: not a regular file", name);
  return static_cast<std::uint64_t>(status.st_size);
}

}  // namespace

std::uint64_t TensorInfo::elements() const {
  std::uint64_t product = 1;
  for (std::uint64_t extent : shape) product = checked_mul(product, extent, name);
  return product;
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // Opening a pipe for reading would wait for a writer; O_NONBLOCK lets the type be checked first.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail("{}: cannot open: {}", path.string(), std::strerror(errno));
  try {
    const std::uint64_t size = regular_file_size(descriptor_, path.string());
    if (size == 0) fail("{}: the file is empty", path.string());
    void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (start == MAP_FAILED) {
      fail("{}: cannot map {} bytes: {}", path.string(), size, std::strerror(errno));
    }
    bytes_ = {static_cast<const std::byte*>(start), size};
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  ::close(descriptor_);
}

void MappedFile::require_unchanged_size() const {
  const std::uint64_t size = regular_file_size(descriptor_, path_.string());
  if (size != bytes_.size()) {
    fail("{}: the file changed while it was open: {} bytes when opened, {} now", path_.string(),
         bytes_.size(), size);
  }
}

TensorStore::TensorStore(std::string name, std::vector<TensorInfo> tensors,
                         std::vector<std::shared_ptr<const MappedFile>> files)
    : name_(std::move(name)), tensors_(std::move(tensors)), files_(std::move(files)) {
  index_.reserve(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto [place, inserted] = index_.emplace(tensors_[i].name, i);
    if (!inserted) {
      fail("{}: tensor {} appears twice (number {} and {})", name_, files::quote(place->first),
           place->second, i);
    }
  }
}

const TensorInfo* TensorStore::find(std::string_view tensor) const {
  const auto found = index_.find(tensor);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace lamina
