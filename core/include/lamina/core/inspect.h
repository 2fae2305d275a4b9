#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lamina/core/config.h"

namespace lamina {

/// What a model is, read from its files without loading the weights.
struct ModelSummary {
  ModelConfig config;
  std::uint64_t parameters = 0;
  std::uint64_t memory_bytes = 0;  // the weights once loaded, as fp32
  std::uint64_t file_bytes = 0;
  std::vector<std::filesystem::path> files;  // that hold weights
};

/// Opens and checks a model as Model::load does (configuration, names and shapes of every tensor),
/// but reads no weights. Throws the same errors.
ModelSummary inspect_model(const std::filesystem::path& path);

}  // namespace lamina
