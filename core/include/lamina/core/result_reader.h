#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

/// Reads one analysis of a results file (ResultFile) again: settings and numeric datasets. Throws
/// Error that names the file for files of other kinds, missing names, other types, and datasets
/// whose storage cannot hold what they claim.
class ResultReader {
 public:
  ResultReader(const std::filesystem::path& path, std::string_view analysis);
  ~ResultReader();
  ResultReader(const ResultReader&) = delete;

  std::string text_setting(const char* name) const;
  std::int64_t integer_setting(const char* name) const;
  /// An fp32 dataset, row-major, whose extent is put into `shape`.
  std::vector<float> floats(const std::string& dataset, std::vector<std::int64_t>& shape) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
