#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "family/family.h"
#include "family/gguf_reader.h"
#include "family/registry.h"
#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/core/safetensors.h"
#include "lamina/internal/strict_json.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
constexpr std::uintmax_t kLargestConfig = 16u << 20;

std::string read_text(const fs::path& path) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) fail("{}: {}", path.string(), error.message());
  if (size > kLargestConfig) {
    fail("{}: {} bytes; expected at most {}", path.string(), size, kLargestConfig);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad() || text.size() != size) {
    fail("{}: read {} bytes; expected {}", path.string(), text.size(), size);
  }
  return text;
}

OpenedModel open_folder(const fs::path& path) {
  const fs::path config_path = path / "config.json";
  if (!fs::exists(config_path)) {
    fail("{}: no config.json; expected a model folder or a GGUF file", path.string());
  }
  OpenedModel model;
  model.config_text = read_text(config_path);
  model.config = parse_config(model.config_text, config_path.string());
  const FolderFamily& family = folder_family(model.config_text, config_path.string());
  TensorStore store = open_safetensors(path);
  model.files = store.files();
  model.has_tokenizer = fs::exists(path / "tokenizer.json");
  model.weights = bind_tensors(std::move(store), model.config, *family.tensors);
  return model;
}

// The keys that describe the model, not its tokenizer: part of the fingerprint.
std::string metadata_text(const GgufMetadata& metadata, std::string_view architecture) {
  std::ostringstream out;
  out << "general.architecture=" << architecture << '\n';
  const std::string prefix = std::string(architecture) + ".";
  for (const auto& [key, value] : metadata.values()) {
    if (key.rfind(prefix, 0) != 0) continue;
    out << key << '=';
    std::visit(
        [&](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, std::string>) {
            out << v;
          } else if constexpr (std::is_arithmetic_v<T>) {
            out << fmt::format("{}", v);
          } else {
            for (const auto& element : v) out << fmt::format("{} ", element);
          }
        },
        value);
    out << '\n';
  }
  return out.str();
}

OpenedModel open_gguf_model(const fs::path& path) {
  GgufFile file = open_gguf(path);
  const std::string architecture = file.metadata.text("general.architecture");
  for (const GgufFamily& family : gguf_families()) {
    if (family.architecture != architecture) continue;
    OpenedModel model;
    GgufReader reader(file, architecture);
    model.config = family.read(reader);
    reader.finish();
    validate(model.config, path.string());
    model.config_text = metadata_text(file.metadata, architecture);
    model.files = file.store.files();
    model.has_tokenizer = file.metadata.has("tokenizer.ggml.model");
    model.weights = bind_tensors(std::move(file.store), model.config, *family.tensors);
    return model;
  }
  std::string known;
  for (const GgufFamily& family : gguf_families()) {
    known.append(known.empty() ? "" : ", ").append(family.architecture);
  }
  fail("{}: general.architecture is \"{}\"; known: {}", path.string(), architecture, known);
}

}  // namespace

const FolderFamily& folder_family(std::string_view config_text, std::string_view source) {
  const nlohmann::json json = files::parse_strict_json(config_text, source);
  ConfigReader reader(json, std::string(source));
  const std::string type = reader.text("model_type");
  std::string known;
  for (const FolderFamily& family : folder_families()) {
    if (family.model_type == type) return family;
    known.append(known.empty() ? "" : ", ").append(family.model_type);
  }
  fail("{}: model_type is \"{}\"; known: {}", source, type, known);
}

ModelConfig parse_config(std::string_view config_text, std::string_view source) {
  const FolderFamily& family = folder_family(config_text, source);
  const nlohmann::json json = files::parse_strict_json(config_text, source);
  ConfigReader reader(json, std::string(source));
  ModelConfig config = family.read(reader);
  reader.finish();
  validate(config, source);
  return config;
}

OpenedModel open_model(const std::filesystem::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) fail("{}: no such file or folder", path.string());
  return fs::is_directory(status) ? open_folder(path) : open_gguf_model(path);
}

}  // namespace lamina
