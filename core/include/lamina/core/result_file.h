#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

/// A results file: one group /analyses/<name> per analysis, datasets with named dimensions and
/// dimension scales (h5py's .dims, xarray's h5netcdf engine), settings and provenance as
/// attributes. Written under a temporary name; close() gives it its final one.
class ResultFile {
 public:
  /// Provenance goes to the root's attributes (tool_version, argv, created_utc, model_id, …).
  ResultFile(const std::filesystem::path& path,
             const std::map<std::string, std::string>& provenance);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;

  /// Starts (or returns to) the group that following calls write to.
  void group(std::string_view analysis);
  /// Attributes of the current group: the settings that made the results.
  void setting(std::string_view name, const std::string& value);
  void setting(std::string_view name, double value);
  void setting(std::string_view name, std::int64_t value);

  /// A coordinate: a dimension scale named `dimension` with one value per entry.
  void axis(std::string_view dimension, std::span<const std::string> values);
  void axis(std::string_view dimension, std::span<const std::int64_t> values);
  void axis(std::string_view dimension, std::span<const double> values);

  /// A dataset whose shape is that of its dimensions, each an axis of the current group.
  /// `description` says what it is, `units` e.g. "nats".
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const float> values, std::string_view description, std::string_view units);
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const double> values, std::string_view description,
               std::string_view units);
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const std::int32_t> values, std::string_view description,
               std::string_view units);
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const std::int64_t> values, std::string_view description,
               std::string_view units);
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const std::uint8_t> values, std::string_view description,
               std::string_view units);
  void dataset(std::string_view name, std::span<const std::string> dimensions,
               std::span<const std::string> values, std::string_view description,
               std::string_view units);

  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
