// The state of a training run as one safetensors file: arrays as fp32, counters and settings as
// metadata. What is read was written by another process: everything is checked.

#include <charconv>
#include <cstring>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "rows.h"
#include "run_impl.h"

namespace lamina {

using training::size;

namespace {

constexpr const char* kFormat = "lamina-training-1";
constexpr std::int64_t kStepFloats = sizeof(TrainingStep) / sizeof(float);  // doubles, bit for bit

using Metadata = std::map<std::string, std::string>;

std::uint64_t number(const std::string& name, const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) fail("{}: the checkpoint has no '{}'", name, key);
  const std::string& text = found->second;
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail("{}: '{}' is '{}', expected a number", name, key, text);
  }
  return value;
}

std::vector<float> values_of(const TensorInfo& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace

void TrainingRun::Impl::save() {
  std::vector<F32Tensor> tensors;
  Metadata metadata;
  const auto add = [&](const std::string& name, std::span<const float> values) {
    tensors.push_back({name, {values.size()}, values});
  };
  for (std::size_t i = 0; i < trainers.size(); ++i) {
    trainers[i].state([&](const std::string& name, std::vector<float>& values) {
      add(fmt::format("{}.{}", i, name), values);
    });
    metadata[fmt::format("random.{}", i)] = std::to_string(trainers[i].random_state());
  }
  const training::ShuffleBuffer::State rows = buffer.state();
  for (std::size_t c = 0; c < rows.columns.size(); ++c) {
    add(fmt::format("buffer.{}", c), rows.columns[c]);
  }
  std::vector<float> curve_bits(curve.size() * size(kStepFloats));
  std::memcpy(curve_bits.data(), curve.data(), curve.size() * sizeof(TrainingStep));
  add("curve", curve_bits);
  metadata["format"] = kFormat;
  metadata["steps"] = std::to_string(steps());
  metadata["position"] = std::to_string(position);
  metadata["buffer.random"] = std::to_string(rows.random);
  metadata["buffer.taking"] = rows.taking ? "1" : "0";
  metadata["flushing"] = flushing ? "1" : "0";
  for (const auto& [key, value] : identity) metadata["identity." + key] = value;
  write_safetensors(checkpoint_path, tensors, metadata);
}

void TrainingRun::Impl::load(const std::filesystem::path& path) {
  const std::string name = path.string();
  const MappedFile file(path);
  const SafetensorsHeader header = parse_safetensors(file.bytes(), name);
  const Metadata& metadata = header.metadata;
  const auto format = metadata.find("format");
  if (format == metadata.end() || format->second != kFormat) {
    fail("{}: it is no checkpoint of a training run", name);
  }
  for (const auto& [key, value] : identity) {
    const auto found = metadata.find("identity." + key);
    const std::string saved = found == metadata.end() ? "(nothing)" : found->second;
    if (saved != value) {
      fail("{}: the interrupted run has {} {}, this one {}", name, key, saved, value);
    }
  }
  std::map<std::string, const TensorInfo*> tensors;
  for (const TensorInfo& t : header.tensors) {
    if (t.dtype != DType::f32) fail("{}: tensor '{}' is not of 32-bit floats", name, t.name);
    tensors[t.name] = &t;
  }
  const auto find = [&](const std::string& tensor) -> const TensorInfo& {
    const auto found = tensors.find(tensor);
    if (found == tensors.end()) fail("{}: the checkpoint has no tensor '{}'", name, tensor);
    return *found->second;
  };
  const std::uint64_t done = number(name, metadata, "steps");
  const std::uint64_t tokens = number(name, metadata, "position");
  if (done > static_cast<std::uint64_t>(options.steps) || tokens > (std::uint64_t{1} << 62)) {
    fail("{}: {} steps over {} tokens were done, expected at most {} steps", name, done, tokens,
         options.steps);
  }
  for (std::size_t i = 0; i < trainers.size(); ++i) {
    trainers[i].state([&](const std::string& array, std::vector<float>& values) {
      const std::string tensor = fmt::format("{}.{}", i, array);
      std::vector<float> saved = values_of(find(tensor));
      if (saved.size() != values.size()) {
        fail("{}: tensor '{}' has {} values, expected {}", name, tensor, saved.size(),
             values.size());
      }
      values = std::move(saved);
    });
    trainers[i].restore(static_cast<std::int64_t>(done),
                        number(name, metadata, fmt::format("random.{}", i)));
  }
  training::ShuffleBuffer::State rows;
  rows.random = number(name, metadata, "buffer.random");
  rows.taking = number(name, metadata, "buffer.taking") != 0;
  std::size_t count = 0;
  for (std::size_t c = 0; c < places.size(); ++c) {
    const std::string tensor = fmt::format("buffer.{}", c);
    rows.columns.push_back(values_of(find(tensor)));
    const std::size_t width = size(site_shape(places[c].site, model.config()).row());
    const std::size_t here = rows.columns.back().size() / width;
    if (c == 0) count = here;
    if (here * width != rows.columns.back().size() || here != count ||
        here > size(options.buffer_rows)) {
      fail("{}: tensor '{}' has {} values, expected {} rows of {}, at most {} rows", name, tensor,
           rows.columns.back().size(), count, width, options.buffer_rows);
    }
  }
  buffer.restore(rows);
  const std::vector<float> bits = values_of(find("curve"));
  if (bits.size() != done * trainers.size() * size(kStepFloats)) {
    fail("{}: the curve has {} values, expected {} for {} steps of {} dictionaries", name,
         bits.size(), done * trainers.size() * size(kStepFloats), done, trainers.size());
  }
  curve.resize(size(static_cast<std::int64_t>(done)) * trainers.size());
  std::memcpy(static_cast<void*>(curve.data()), bits.data(), curve.size() * sizeof(TrainingStep));
  position = static_cast<std::int64_t>(tokens);
  flushing = number(name, metadata, "flushing") != 0;
}

}  // namespace lamina
