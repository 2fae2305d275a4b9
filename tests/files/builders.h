#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/error.h"

namespace lamina::test {

/// Little-endian bytes of a number.
template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// Reads every byte, for AddressSanitizer and the memory map to object to.
inline void read_all(std::span<const std::byte> bytes) {
  static volatile unsigned sink = 0;
  for (std::byte b : bytes) sink = sink + static_cast<unsigned>(b);
}

/// A safetensors file of this header text and data.
inline std::string safetensors_file(std::string_view header, std::string_view data = {}) {
  return raw<std::uint64_t>(header.size()) + std::string(header) + std::string(data);
}

/// The message of the lamina::Error that `action` throws; a test failure if it throws none.
inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

/// GGUF bytes, piece by piece. Value types: 0 u8, 1 i8, 2 u16, 3 i16, 4 u32, 5 i32, 6 f32, 7 bool,
/// 8 string, 9 array, 10 u64, 11 i64, 12 f64. Counts and padding can be overridden to break a file.
struct GgufBytes {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::vector<std::string> keys, tensors;
  std::uint64_t alignment = 32;  // for the padding before `data`
  std::string data;
  std::uint64_t extra_keys = 0, extra_tensors = 0;  // claimed beyond those present

  static std::string text(std::string_view s) {
    return raw<std::uint64_t>(s.size()) + std::string(s);
  }
  GgufBytes& key(std::string_view name, std::uint32_t type, std::string_view payload) {
    keys.push_back(text(name) + raw(type) + std::string(payload));
    return *this;
  }
  GgufBytes& array(std::string_view name, std::uint32_t type, std::uint64_t count,
                   std::string_view payload) {
    return key(name, 9, raw(type) + raw(count) + std::string(payload));
  }
  /// `dims` in the file's order: contiguous dimension first.
  GgufBytes& tensor(std::string_view name, std::vector<std::uint64_t> dims, std::uint32_t type,
                    std::uint64_t offset) {
    std::string entry = text(name) + raw(static_cast<std::uint32_t>(dims.size()));
    for (std::uint64_t extent : dims) entry += raw(extent);
    tensors.push_back(entry + raw(type) + raw(offset));
    return *this;
  }
  GgufBytes& with_data(std::string bytes) {
    data = std::move(bytes);
    return *this;
  }
  std::string file() const {
    std::string out = magic + raw(version) + raw<std::uint64_t>(tensors.size() + extra_tensors) +
                      raw<std::uint64_t>(keys.size() + extra_keys);
    for (const std::string& entry : keys) out += entry;
    for (const std::string& entry : tensors) out += entry;
    if (!data.empty()) out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

/// A folder of its own that disappears with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lamina-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path write(std::string_view name, std::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lamina::test
