#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/strict_json.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using files::quote;

constexpr std::uint64_t kMaxIndex = 64 << 20;  // bytes; indexes of the largest models take ~10 MB

/// tensor → file name within the folder, from "weight_map".
std::map<std::string, std::string, std::less<>> read_index(const fs::path& path) {
  const MappedFile file(path);
  const std::string name = path.string();
  if (file.bytes().size() > kMaxIndex) {
    fail("{}: index of {} bytes, at most {} are allowed", name, file.bytes().size(), kMaxIndex);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  const nlohmann::json index = files::parse_strict_json(text, name);
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object()) {
    fail("{}: no object \"weight_map\" in the index", name);
  }
  if (found->empty()) fail("{}: \"weight_map\" names 0 tensors, expected at least 1", name);
  std::map<std::string, std::string, std::less<>> weight_map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string()) {
      fail("{}: tensor {} maps to {}, expected a file name", name, quote(tensor),
           shard.type_name());
    }
    const auto& shard_name = shard.get_ref<const std::string&>();
    if (shard_name.empty() || shard_name == "." || shard_name == ".." ||
        shard_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      fail("{}: tensor {} maps to {}: expected a plain file name in the index's own folder", name,
           quote(tensor), quote(shard_name));
    }
    weight_map.emplace(tensor, shard_name);
  }
  return weight_map;
}

TensorStore open_single(const fs::path& path) {
  auto file = std::make_shared<const MappedFile>(path);
  SafetensorsHeader header = parse_safetensors(file->bytes(), path.string());
  file->require_unchanged_size();
  return {path.string(), std::move(header.tensors), {std::move(file)}};
}

TensorStore open_index(const fs::path& folder, const fs::path& index_path) {
  const auto weight_map = read_index(index_path);
  std::map<std::string, std::size_t, std::less<>> shards;  // file name → tensors the index expects
  for (const auto& [tensor, shard] : weight_map) ++shards[shard];

  std::vector<TensorInfo> tensors;
  std::vector<std::shared_ptr<const MappedFile>> mapped;
  for (const auto& [shard, expected] : shards) {
    const fs::path path = folder / shard;
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      fail("{}: shard {} is missing in the folder; {} tensors map to it", index_path.string(),
           quote(shard), expected);
    }
    auto file = std::make_shared<const MappedFile>(path);
    SafetensorsHeader header = parse_safetensors(file->bytes(), path.string());
    file->require_unchanged_size();
    mapped.push_back(std::move(file));
    // Every tensor of the shard must be the index's; names are unique within a shard, so equal
    // counts then mean that both hold the same set.
    for (TensorInfo& tensor : header.tensors) {
      const auto entry = weight_map.find(tensor.name);
      if (entry == weight_map.end()) {
        fail("{}: shard {} holds tensor {}, which the index does not name", index_path.string(),
             quote(shard), quote(tensor.name));
      }
      if (entry->second != shard) {
        fail("{}: shard {} holds tensor {}, which the index places in {}", index_path.string(),
             quote(shard), quote(tensor.name), quote(entry->second));
      }
    }
    if (header.tensors.size() != expected) {
      std::set<std::string_view> held;
      for (const TensorInfo& tensor : header.tensors) held.insert(tensor.name);
      for (const auto& [tensor, place] : weight_map) {
        if (place == shard && !held.contains(tensor)) {
          fail("{}: tensor {} is not in shard {}, which holds {} of the {} tensors placed there",
               index_path.string(), quote(tensor), quote(shard), header.tensors.size(), expected);
        }
      }
    }
    std::move(header.tensors.begin(), header.tensors.end(), std::back_inserter(tensors));
  }
  return {folder.string(), std::move(tensors), std::move(mapped)};
}

}  // namespace

TensorStore open_safetensors(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return open_single(path);
  const fs::path single = path / "model.safetensors";
  const fs::path index = path / "model.safetensors.index.json";
  if (fs::exists(single, error)) return open_single(single);
  if (fs::exists(index, error)) return open_index(path, index);
  fail("{}: the folder holds neither model.safetensors nor model.safetensors.index.json",
       path.string());
}

}  // namespace lamina
