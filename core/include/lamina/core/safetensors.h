#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/tensor_store.h"

namespace lamina {

/// The parsed header of one safetensors file.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // in the order of their data
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

/// Parses a whole safetensors file held in memory; the tensors' bytes are views of `file`.
/// Refuses (Error, naming `name`): truncation, header over 100 MB, duplicate keys, unknown dtypes,
/// overflowing shapes, ranges that leave holes, overlap or do not match dtype × shape.
/// Format: huggingface/safetensors README.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name);

/// Opens one .safetensors file, or a folder with model.safetensors or
/// model.safetensors.index.json and its shards. An index may name only files in its own folder, and
/// must agree with the shards in both directions.
TensorStore open_safetensors(const std::filesystem::path& path);

/// One tensor to write: fp32 only.
struct F32Tensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  std::span<const float> values;
};

/// Writes an fp32 safetensors file (temporary name, fsync, rename).
void write_safetensors(const std::filesystem::path& path, std::span<const F32Tensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace lamina
