#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lamina/core/tensor_store.h"

namespace lamina {

/// A metadata value of a GGUF file. Integers widen to 64 bits; arrays keep one element type.
/// Nested arrays are refused.
using GgufValue =
    std::variant<bool, std::int64_t, std::uint64_t, double, std::string, std::vector<bool>,
                 std::vector<std::int64_t>, std::vector<std::uint64_t>, std::vector<double>,
                 std::vector<std::string>>;

/// The key–value section of a GGUF file, with typed look-ups that throw Error naming the file, the
/// key, the expected and the found type.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  GgufMetadata(std::string file, std::map<std::string, GgufValue, std::less<>> values)
      : file_(std::move(file)), values_(std::move(values)) {}

  const std::string& file() const { return file_; }
  const std::map<std::string, GgufValue, std::less<>>& values() const { return values_; }
  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }

  // Required values: throw if absent or of another type. Integers of either sign convert when in
  // range; double accepts integers.
  std::int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  bool boolean(std::string_view key) const;
  const std::string& text(std::string_view key) const;
  const std::vector<std::string>& texts(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;

  // Optional values: nullopt if absent; still throw on a wrong type.
  std::optional<std::int64_t> find_integer(std::string_view key) const;
  std::optional<double> find_number(std::string_view key) const;
  std::optional<bool> find_boolean(std::string_view key) const;
  std::optional<std::string> find_text(std::string_view key) const;

 private:
  std::string file_;
  std::map<std::string, GgufValue, std::less<>> values_;
};

/// The parsed content of one GGUF file.
struct GgufContent {
  std::uint32_t version = 0;
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;  // bytes are views of the file
};

/// Parses a whole GGUF v2/v3 file held in memory. Refuses (Error, naming `name`): truncation,
/// counts and lengths that cannot fit the file, duplicate keys or tensors, unknown or unsupported
/// types, misaligned or overlapping data, overflowing shapes. Format: ggml docs/gguf.md.
GgufContent parse_gguf(std::span<const std::byte> file, std::string_view name);

/// A GGUF file opened through a read-only mapping.
struct GgufFile {
  std::uint32_t version = 0;
  GgufMetadata metadata;
  TensorStore store;
};
GgufFile open_gguf(const std::filesystem::path& path);

}  // namespace lamina
