#include "paths.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "lamina/core/error.h"

namespace lamina::cli {
namespace fs = std::filesystem;
namespace {

std::optional<fs::path> find_data_folder() {
  std::error_code ignored;
  if (const char* set = std::getenv("LAMINA_DATA"); set != nullptr && *set != '\0') {
    if (!fs::is_directory(set, ignored)) fail("LAMINA_DATA is {}, which is no folder", set);
    return fs::path(set);
  }
  const fs::path self = fs::read_symlink("/proc/self/exe", ignored);
  const fs::path installed = self.parent_path().parent_path() / "share" / "lamina";
  if (!self.empty() && fs::is_directory(installed, ignored)) return installed;
  if (fs::is_directory(LAMINA_SOURCE_DATA, ignored)) return fs::path(LAMINA_SOURCE_DATA);
  return std::nullopt;
}

// Models stand directly in the data folder, or one folder deeper ("planted/induction").
std::optional<fs::path> shipped_model(const fs::path& data, const fs::path& name) {
  std::error_code ignored;
  for (const fs::path& folder : {data / name, data / name / "model"}) {
    if (fs::is_regular_file(folder / "config.json", ignored)) return folder;
  }
  return std::nullopt;
}

}  // namespace

FileKind file_kind(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) fail("{}: no such file or folder", path.string());
  if (fs::is_directory(path, error)) return FileKind::model_folder;
  std::ifstream file(path, std::ios::binary);
  std::array<char, 9> head{};
  file.read(head.data(), head.size());
  if (file.bad() || !file.is_open())
    fail("{}: cannot be read: {}", path.string(), std::strerror(errno));
  const std::string_view bytes(head.data(), static_cast<std::size_t>(file.gcount()));
  if (bytes.starts_with("\x89HDF\r\n\x1a\n")) return FileKind::hdf5;
  if (bytes.starts_with("GGUF")) return FileKind::gguf;
  // A safetensors file begins with the length of its header, then the header's brace.
  if (bytes.size() == 9 && bytes[8] == '{' && bytes[7] == '\0') return FileKind::safetensors;
  if (path.extension() == ".json") return FileKind::tokenizer_json;
  return FileKind::other;
}

fs::path data_folder() {
  const auto found = find_data_folder();
  if (!found) {
    fail(
        "the models and prompts that ship with lamina were not found; set LAMINA_DATA to their "
        "folder");
  }
  return *found;
}

fs::path resolve_dictionaries(std::string_view typed) {
  std::error_code ignored;
  if (fs::exists(fs::path(typed), ignored)) return typed;
  const std::optional<fs::path> data = find_data_folder();
  const fs::path shipped = data ? *data / fs::path(typed) / "transcoders" : fs::path();
  return data && fs::is_directory(shipped, ignored) ? shipped : fs::path(typed);
}

std::vector<std::string> shipped_models() {
  std::vector<std::string> names;
  const auto data = find_data_folder();
  if (!data) return names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(*data, ignored)) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename();
    if (shipped_model(*data, name)) names.push_back(name);
    for (const auto& inner : fs::directory_iterator(entry.path(), ignored)) {
      if (!inner.is_directory() || inner.path().filename() == "model") continue;
      const std::string deeper = name + "/" + inner.path().filename().string();
      if (shipped_model(*data, deeper)) names.push_back(deeper);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path resolve_model(std::string_view typed) {
  const fs::path path(typed);
  std::error_code ignored;
  if (fs::exists(path, ignored)) return path;
  if (path.is_relative() && !typed.empty() && typed.front() != '.') {
    if (const auto data = find_data_folder()) {
      if (const auto found = shipped_model(*data, path)) return *found;
    }
  }
  const auto names = shipped_models();
  if (names.empty()) fail("{}: no such file or folder", typed);
  fail(
      "{}: no such file or folder, and no model that ships with lamina has that name (those are: "
      "{})",
      typed, fmt::join(names, ", "));
}

}  // namespace lamina::cli
