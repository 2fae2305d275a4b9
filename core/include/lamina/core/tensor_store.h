#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lamina/core/dtype.h"

namespace lamina {

/// One named tensor of a model file. `shape` is row-major, outermost dimension first (a GGUF file's
/// dimensions are reversed on reading). `bytes` views the mapped file.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> bytes;

  std::uint64_t elements() const;
};

/// A read-only memory mapping of a whole regular file; an empty file is refused.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }

  /// Throws Error if the file on disk has another size than when it was mapped. Reading a mapping
  /// beyond the end of a file that was cut short kills the process, so callers check after parsing
  /// and may check again before a long pass.
  void require_unchanged_size() const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::span<const std::byte> bytes_;
};

/// The tensors of one model: one file or several shards, with the mappings that hold their bytes.
/// Names are unique. Everything was validated when the store was made: every tensor's bytes lie
/// inside its file, do not overlap another's, and have the size that dtype and shape ask for.
/// Move-only: the index views the names held here. Pointers from find() survive a move.
class TensorStore {
 public:
  TensorStore() = default;
  TensorStore(TensorStore&&) = default;
  TensorStore& operator=(TensorStore&&) = default;
  TensorStore(const TensorStore&) = delete;
  TensorStore& operator=(const TensorStore&) = delete;
  TensorStore(std::string name, std::vector<TensorInfo> tensors,
              std::vector<std::shared_ptr<const MappedFile>> files);

  /// The file or folder, for messages.
  const std::string& name() const { return name_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// nullptr if there is no such tensor.
  const TensorInfo* find(std::string_view tensor) const;
  /// The mapped files, in shard order.
  const std::vector<std::shared_ptr<const MappedFile>>& files() const { return files_; }

 private:
  std::string name_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, std::size_t> index_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
};

}  // namespace lamina
