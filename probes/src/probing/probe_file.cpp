// Trained probes read back and put to new rows.

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/linear_probe.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

// The file's own description of what it holds.
Json description(const std::filesystem::path& path) {
  const MappedFile file(path);
  const SafetensorsHeader header = parse_safetensors(file.bytes(), path.string());
  const auto format = header.metadata.find("format");
  const auto probes = header.metadata.find("probes");
  if (format == header.metadata.end() || format->second != "lamina-probes" ||
      probes == header.metadata.end()) {
    fail("{}: no probes: its format is '{}', 'lamina-probes' expected", path.string(),
         format == header.metadata.end() ? "" : format->second);
  }
  Json json = Json::parse(probes->second, nullptr, false);
  if (!json.is_object()) fail("{}: the description of the probes is no JSON object", path.string());
  return json;
}

template <class T>
T field(const std::filesystem::path& path, const Json& json, const char* name) {
  try {
    return json.at(name).get<T>();
  } catch (const Json::exception&) {
    fail("{}: the description of the probes has no valid '{}'", path.string(), name);
  }
}

std::vector<float> tensor(const TensorStore& store, const std::string& name,
                          const std::vector<std::uint64_t>& shape, bool required) {
  const TensorInfo* found = store.find(name);
  if (found == nullptr) {
    if (!required) return {};
    fail("{}: it has no tensor {}", store.name(), name);
  }
  if (found->dtype != DType::f32 || found->shape != shape) {
    fail("{}: tensor {}: fp32 [{}] expected, found [{}]", store.name(), name,
         fmt::join(shape, ", "), fmt::join(found->shape, ", "));
  }
  std::vector<float> values(found->elements());
  expand_to_f32(found->dtype, found->bytes, values);
  for (float v : values) {
    if (!std::isfinite(v)) fail("{}: tensor {} holds {}", store.name(), name, v);
  }
  return values;
}

}  // namespace

StoredProbes read_probe_file(const std::filesystem::path& path) {
  const Json json = description(path);
  StoredProbes out;
  try {
    out.kind = parse_probe_kind(field<std::string>(path, json, "kind"));
    out.choice = parse_row_choice(field<std::string>(path, json, "position"), out.index);
  } catch (const UsageError& error) {
    fail("{}: {}", path.string(), error.what());
  }
  out.label = field<std::string>(path, json, "label");
  out.model_sha256 = field<std::string>(path, json, "model_sha256");
  out.classes = field<std::vector<std::string>>(path, json, "classes");
  out.skip = field<std::int64_t>(path, json, "skip");
  if (out.skip < 0 || (out.kind == ProbeKind::logistic && out.classes.size() < 2)) {
    fail("{}: the description of the probes has skip {} and {} classes", path.string(), out.skip,
         out.classes.size());
  }
  const TensorStore store = open_safetensors(path);
  const std::uint64_t outputs = out.classes.size() > 2 ? out.classes.size() : 1;
  for (const std::string& site : field<std::vector<std::string>>(path, json, "sites")) {
    const TensorInfo* weight = store.find(site + ".weight");
    if (weight == nullptr || weight->shape.size() != 2) {
      fail("{}: it has no tensor {}.weight [output, width]", path.string(), site);
    }
    const std::uint64_t width = weight->shape[1];
    StoredProbe probe;
    probe.site = site;
    probe.width = static_cast<std::int64_t>(width);
    const bool classes = out.kind == ProbeKind::logistic;
    probe.weight = tensor(store, site + ".weight", {outputs, width}, true);
    probe.bias = tensor(store, site + ".bias", {outputs}, true);
    probe.direction = tensor(store, site + ".direction", {outputs, width}, classes);
    probe.unit = tensor(store, site + ".unit", {outputs, width}, classes);
    probe.midpoint = tensor(store, site + ".midpoint", {outputs}, classes);
    probe.whitened = tensor(store, site + ".whitened", {outputs, width}, classes);
    out.sites.push_back(std::move(probe));
  }
  if (out.sites.empty()) fail("{}: it holds no probes", path.string());
  return out;
}

AppliedProbe apply_probe(const StoredProbe& probe, std::span<const float> values, ProbeKind kind) {
  const auto width = static_cast<std::size_t>(probe.width);
  const std::size_t outputs = probe.bias.size();
  if (width == 0 || values.size() % width != 0) {
    fail("{}: {} values are no rows of {}", probe.site, values.size(), width);
  }
  AppliedProbe out;
  out.site = probe.site;
  const auto rows = static_cast<std::int64_t>(values.size() / width);
  const std::size_t all = static_cast<std::size_t>(rows) * outputs;
  out.score.resize(all);
  if (!probe.unit.empty()) out.projection.resize(all);
  if (kind == ProbeKind::logistic) out.predicted.resize(static_cast<std::size_t>(rows));
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto r = static_cast<std::size_t>(i);
    const float* row = values.data() + r * width;
    std::size_t best = 0;
    for (std::size_t o = 0; o < outputs; ++o) {
      double score = 0, projection = 0;
      for (std::size_t k = 0; k < width; ++k) score += double{row[k]} * probe.weight[o * width + k];
      out.score[r * outputs + o] = score + probe.bias[o];
      if (out.score[r * outputs + o] > out.score[r * outputs + best]) best = o;
      if (out.projection.empty()) continue;
      for (std::size_t k = 0; k < width; ++k) {
        projection += double{row[k]} * probe.unit[o * width + k];
      }
      out.projection[r * outputs + o] = projection;
    }
    if (out.predicted.empty()) continue;
    out.predicted[r] = static_cast<std::int32_t>(outputs > 1 ? best : out.score[r] > 0 ? 1 : 0);
  }
  return out;
}

}  // namespace lamina
