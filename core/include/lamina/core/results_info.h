#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace lamina {

/// One dataset of a results file, or one of its axes.
struct ResultDataset {
  std::string name, type;                                         // "float64", "text" …
  std::vector<std::pair<std::string, std::uint64_t>> dimensions;  // name ("" if it has none), size
  std::string description, units;                                 // empty for axes
  bool axis = false;
};

/// One group under /analyses.
struct ResultAnalysis {
  std::string name;
  std::vector<std::pair<std::string, std::string>> settings;  // in name order, values as text
  std::vector<ResultDataset> datasets;                        // in name order
};

/// What a results file says of itself; no values are read.
struct ResultsInfo {
  std::vector<std::pair<std::string, std::string>> provenance;  // root attributes, in name order
  std::vector<ResultAnalysis> analyses;                         // in name order
};

/// Whether an HDF5 file is a results file of lamina (its root says so).
bool is_results_file(const std::filesystem::path& path);
/// Error for files that are none, that are damaged, or that hold more than 10,000 things in a
/// group.
ResultsInfo read_results_info(const std::filesystem::path& path);

}  // namespace lamina
