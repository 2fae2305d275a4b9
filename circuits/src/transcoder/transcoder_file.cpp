#include "lamina/circuits/transcoder_file.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "transcoder/file_config.h"
#include "transcoder/layouts.h"

namespace lamina {
namespace transcoder_files {

namespace fs = std::filesystem;

DictionaryPlace place_of(const fs::path& file, std::string_view what, const std::string& hook,
                         std::int32_t layer, const DictionaryReadOptions& options) {
  if (hook.empty()) {
    fail("{}: it names no {} hook; give it (--{}-hook)", file.string(), what, what);
  }
  DictionaryPlace place;
  try {
    place = parse_dictionary_place(hook, layer);
  } catch (const UsageError& error) {
    fail("{}: {} hook {}", file.string(), what, error.what());
  }
  if (options.norm_weights && site_name(place.site).ends_with("hook_normalized")) {
    place.norm_weights = *options.norm_weights;
  }
  return place;
}

std::string read_small_text(const fs::path& path) {
  constexpr std::uint64_t kMax = 1 << 20;
  const MappedFile file(path);
  if (file.bytes().size() > kMax) {
    fail("{}: {} bytes, at most {} are allowed", path.string(), file.bytes().size(), kMax);
  }
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void write_text(const fs::path& path, std::string_view text) {
  fs::path part = path;
  part += ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  if (!out) fail("{}: cannot write {} bytes", part.string(), text.size());
  std::error_code error;
  fs::rename(part, path, error);
  if (error) fail("{}: cannot rename to {}: {}", part.string(), path.string(), error.message());
}

namespace {

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// N of "layer_N.safetensors"; −1 for other names.
std::int32_t layer_of(const fs::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view kBegin = "layer_", kEnd = ".safetensors";
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd)) return -1;
  const char* first = name.data() + kBegin.size();
  const char* last = name.data() + name.size() - kEnd.size();
  std::int32_t layer = -1;
  const auto [end, error] = std::from_chars(first, last, layer);
  return error == std::errc() && end == last && layer >= 0 && layer < 1 << 20 ? layer : -1;
}

// The file in `folder` that a configuration means by `text`: a plain name, a relative path, or a
// hub address, of which the last part is looked for. Nothing outside the folder.
fs::path listed_file(const fs::path& folder, const fs::path& config_path, const std::string& text) {
  std::string name = text;
  if (name.starts_with("hf://")) {
    name = name.substr(0, name.find('?'));
    name = name.substr(name.rfind('/') + 1);
  }
  const fs::path relative(name);
  const bool inside = !name.empty() && name.find('\0') == name.npos && relative.is_relative() &&
                      std::none_of(relative.begin(), relative.end(),
                                   [](const fs::path& part) { return part == ".."; });
  if (!inside) {
    fail("{}: transcoder {}: expected a file in the same folder", config_path.string(),
         files::quote(text));
  }
  if (relative.extension() != ".safetensors") {
    fail("{}: transcoder {}: expected a .safetensors file, found {}", config_path.string(),
         files::quote(text), files::quote(relative.extension().string()));
  }
  if (!is_file(folder / relative)) {
    fail("{}: transcoder {}: no file {}", config_path.string(), files::quote(text),
         (folder / relative).string());
  }
  return folder / relative;
}

std::vector<std::pair<std::int32_t, fs::path>> layer_files(const fs::path& folder) {
  std::vector<std::pair<std::int32_t, fs::path>> found;
  for (const auto& item : fs::directory_iterator(folder)) {
    const std::int32_t layer = layer_of(item.path());
    if (layer >= 0) found.emplace_back(layer, item.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> saelens_subfolders(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const auto& item : fs::directory_iterator(folder)) {
    if (is_file(item.path() / "cfg.json")) found.push_back(item.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace
}  // namespace transcoder_files

std::string_view dictionary_format_name(DictionaryFormat format) {
  switch (format) {
    case DictionaryFormat::saelens:
      return "SAELens";
    case DictionaryFormat::circuit_tracer:
      return "circuit-tracer";
    case DictionaryFormat::cross_layer:
      return "circuit-tracer cross-layer";
  }
  return "";
}

TranscoderSet TranscoderSet::open(const std::filesystem::path& path,
                                  const DictionaryReadOptions& options) {
  using namespace transcoder_files;
  TranscoderSet set;
  std::error_code ignored;
  if (!fs::exists(path, ignored)) fail("{}: no such file or folder", path.string());
  if (is_file(path)) {
    if (path.filename() == "sae_weights.safetensors" || path.filename() == "cfg.json") {
      return open(path.has_parent_path() ? path.parent_path() : fs::path("."), options);
    }
    if (path.extension() != ".safetensors") {
      fail("{}: expected a .safetensors file or a folder", path.string());
    }
    const std::int32_t layer = layer_of(path);
    // A configuration beside the file says what it reads.
    std::optional<CircuitTracerConfig> config;
    for (const char* name : {"config.yaml", "config.json"}) {
      const fs::path beside = path.parent_path() / name;
      if (!config && is_file(beside)) {
        config = parse_circuit_tracer_config(read_small_text(beside), beside.string());
      }
    }
    set.entries_.push_back(
        open_circuit_tracer_file(path, layer, config ? &*config : nullptr, options));
    return set;
  }
  if (is_file(path / "cfg.json")) {
    set.entries_.push_back(open_saelens(path, options));
    return set;
  }
  std::optional<CircuitTracerConfig> config;
  fs::path config_path = path / "config.yaml";
  if (!is_file(config_path)) config_path = path / "config.json";
  if (is_file(config_path)) {
    config = parse_circuit_tracer_config(read_small_text(config_path), config_path.string());
  }
  const bool cross = is_file(path / "W_enc_0.safetensors");
  if (config && cross != (config->model_kind == "cross_layer_transcoder")) {
    fail("{}: model_kind {}, but the folder has {} W_enc_0.safetensors", config_path.string(),
         config->model_kind, cross ? "a" : "no");
  }
  if (cross) {
    const std::string in =
        options.input_hook.empty() && config ? config->feature_input_hook : options.input_hook;
    const std::string out =
        options.output_hook.empty() && config ? config->feature_output_hook : options.output_hook;
    set.cross_layer_ = std::make_shared<const CrossLayerTranscoder>(
        path, config ? config->model_name : "", in, out);
    return set;
  }
  std::vector<std::pair<std::int32_t, fs::path>> found;
  if (config && !config->transcoders.empty()) {
    for (std::size_t l = 0; l < config->transcoders.size(); ++l) {
      found.emplace_back(static_cast<std::int32_t>(l),
                         listed_file(path, config_path, config->transcoders[l]));
    }
  } else {
    found = layer_files(path);
  }
  for (const auto& [layer, file] : found) {
    set.entries_.push_back(
        open_circuit_tracer_file(file, layer, config ? &*config : nullptr, options));
  }
  if (found.empty()) {
    for (const fs::path& folder : saelens_subfolders(path)) {
      set.entries_.push_back(open_saelens(folder, options));
    }
    std::stable_sort(set.entries_.begin(), set.entries_.end(), [](const Entry& a, const Entry& b) {
      return a.config.input.site.layer < b.config.input.site.layer;
    });
  }
  if (set.entries_.empty()) {
    fail(
        "{}: expected cfg.json (SAELens), layer_*.safetensors or W_enc_0.safetensors "
        "(circuit-tracer), found none of them",
        path.string());
  }
  return set;
}

Transcoder TranscoderSet::load(std::size_t i) const {
  const Entry& entry = entries_.at(i);
  return entry.load(entry.config);
}

void TranscoderSet::bind(const Model& model, bool other_model) {
  const bool sandwich = model.config().norm_place == NormPlace::sandwich;
  for (Entry& entry : entries_) {
    if (sandwich && entry.origin.output_hook.ends_with("mlp.hook_out")) {
      fail(
          "{}: output hook {} is in front of the norm behind the MLP of model '{}', which no site "
          "holds; hook_mlp_out is behind it",
          entry.origin.path.string(), entry.origin.output_hook, model.id());
    }
    bind_dictionary(entry.config, model, other_model);
  }
  if (cross_layer_) {
    auto bound = std::make_shared<CrossLayerTranscoder>(*cross_layer_);
    bound->bind(model, other_model);
    cross_layer_ = std::move(bound);
  }
}

}  // namespace lamina
