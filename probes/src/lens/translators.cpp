// Tuned-lens translators as safetensors files.

#include <algorithm>
#include <set>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/lens.h"

namespace lamina {
namespace {

std::vector<float> read_tensor(const TensorStore& store, const std::string& name,
                               const std::vector<std::uint64_t>& shape) {
  const TensorInfo* tensor = store.find(name);
  if (!tensor) fail("{}: {} is missing", store.name(), name);
  if (tensor->shape != shape) {
    fail("{}: {}: expected shape [{}], found [{}]", store.name(), name, fmt::join(shape, ", "),
         fmt::join(tensor->shape, ", "));
  }
  std::vector<float> values(static_cast<std::size_t>(tensor->elements()));
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

}  // namespace

const LensTranslators::Map* LensTranslators::find(Site site) const {
  const auto at =
      std::find_if(maps.begin(), maps.end(), [&](const Map& map) { return map.site == site; });
  return at == maps.end() ? nullptr : &*at;
}

LensTranslators read_translators(const std::filesystem::path& path, const ModelConfig& config) {
  const TensorStore store = open_safetensors(path);
  LensTranslators translators;
  translators.d_model = config.d_model;
  const auto d = static_cast<std::uint64_t>(config.d_model);
  std::set<std::string> sites;
  for (const TensorInfo& tensor : store.tensors()) {
    const std::size_t dot = tensor.name.rfind('.');
    const std::string suffix = dot == std::string::npos ? "" : tensor.name.substr(dot);
    if (suffix != ".weight" && suffix != ".bias") {
      fail("{}: unexpected tensor {} (expected SITE.weight and SITE.bias)", store.name(),
           tensor.name);
    }
    sites.insert(tensor.name.substr(0, dot));
  }
  for (const std::string& name : sites) {
    LensTranslators::Map map;
    map.site = parse_site(name, config);
    if (translators.find(map.site)) fail("{}: two maps for {}", store.name(), site_name(map.site));
    map.weight = read_tensor(store, name + ".weight", {d, d});
    map.bias = read_tensor(store, name + ".bias", {d});
    translators.maps.push_back(std::move(map));
  }
  return translators;
}

void write_translators(const std::filesystem::path& path, const LensTranslators& translators,
                       const std::map<std::string, std::string>& metadata) {
  const auto d = static_cast<std::uint64_t>(translators.d_model);
  std::vector<F32Tensor> tensors;
  for (const LensTranslators::Map& map : translators.maps) {
    tensors.push_back({site_name(map.site) + ".weight", {d, d}, map.weight});
    tensors.push_back({site_name(map.site) + ".bias", {d}, map.bias});
  }
  std::map<std::string, std::string> all = metadata;
  all["format"] = "lamina-translators";
  write_safetensors(path, tensors, all);
}

}  // namespace lamina
