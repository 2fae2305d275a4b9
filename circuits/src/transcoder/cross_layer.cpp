#include "lamina/circuits/cross_layer.h"

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "transcoder/file_config.h"
#include "transcoder/layouts.h"
#include "transcoder/tensor_reading.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using namespace transcoder_files;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::int64_t count_layers(const fs::path& folder) {
  std::int64_t layers = 0;
  std::error_code ignored;
  while (fs::exists(folder / fmt::format("W_enc_{}.safetensors", layers), ignored)) ++layers;
  if (layers == 0) fail("{}: no W_enc_0.safetensors", folder.string());
  return layers;
}

Transcoder read_encoder(const fs::path& path, std::int64_t layer, const TranscoderConfig& like) {
  const TensorStore store = open_safetensors(path);
  const std::string names[] = {fmt::format("W_enc_{}", layer), fmt::format("b_enc_{}", layer),
                               fmt::format("b_dec_{}", layer), fmt::format("threshold_{}", layer)};
  const std::string_view views[] = {names[0], names[1], names[2], names[3]};
  refuse_others(store, views);
  const TensorInfo& encoder = require_tensor(store, names[0]);
  const TensorInfo* threshold = store.find(names[3]);
  Transcoder t;
  t.config = like;
  TranscoderConfig& c = t.config;
  c.name = path.stem().string();
  if (layer == 0) {
    if (encoder.shape.size() != 2 || encoder.shape[0] < 1 || encoder.shape[1] < 1 ||
        encoder.shape[0] > static_cast<std::uint64_t>(kMaxFeatures) ||
        encoder.shape[1] > static_cast<std::uint64_t>(kMaxWidth)) {
      fail("{}: tensor {}: expected a matrix of at most {} × {}, found shape {}", store.name(),
           names[0], kMaxFeatures, kMaxWidth, shape_text(encoder.shape));
    }
    c.features = static_cast<std::int64_t>(encoder.shape[0]);
    c.d_in = c.d_out = static_cast<std::int64_t>(encoder.shape[1]);
    c.activation = threshold != nullptr ? FeatureActivation::jump_relu : FeatureActivation::relu;
  }
  if ((threshold != nullptr) != (c.activation == FeatureActivation::jump_relu)) {
    fail("{}: {} tensor {}, other than layer 0", store.name(), threshold != nullptr ? "a" : "no",
         names[3]);
  }
  require_shape(store, encoder, {c.features, c.d_in});
  require_shape(store, require_tensor(store, names[1]), {c.features});
  require_shape(store, require_tensor(store, names[2]), {c.d_out});
  t.encoder = read_tensor(encoder);
  t.encoder_bias = read_tensor(*store.find(names[1]));
  t.decoder_bias = read_tensor(*store.find(names[2]));
  if (threshold != nullptr) {
    require_shape(store, *threshold, {c.features});
    t.threshold = read_tensor(*threshold);
  }
  t.check_encoder();
  if (std::any_of(t.threshold.begin(), t.threshold.end(), [](float v) { return v < 0; })) {
    fail("{}: tensor {}: expected thresholds of 0 or more, found {}", store.name(), names[3],
         *std::min_element(t.threshold.begin(), t.threshold.end()));
  }
  return t;
}

const TensorInfo& decoder_tensor(const TensorStore& store, std::int64_t layer) {
  return require_tensor(store, fmt::format("W_dec_{}", layer));
}

}  // namespace

CrossLayerTranscoder::CrossLayerTranscoder(const fs::path& folder, const std::string& model_id,
                                           const std::string& input_hook,
                                           const std::string& output_hook) {
  const std::int64_t n = count_layers(folder);
  TranscoderConfig like;
  like.model_id = model_id;
  for (std::int64_t l = 0; l < n; ++l) {
    const auto layer = static_cast<std::int32_t>(l);
    like.input = place_of(folder, "input", input_hook, layer, {});
    like.output = place_of(folder, "output", output_hook, layer, {});
    encoders_.push_back(read_encoder(folder / fmt::format("W_enc_{}.safetensors", l), l, like));
    like = encoders_.front().config;
    const fs::path path = folder / fmt::format("W_dec_{}.safetensors", l);
    decoders_.push_back(std::make_shared<const TensorStore>(open_safetensors(path)));
    require_shape(*decoders_.back(), decoder_tensor(*decoders_.back(), l),
                  {like.features, n - l, like.d_out});
  }
  std::error_code ignored;
  if (fs::exists(folder / fmt::format("W_dec_{}.safetensors", n), ignored)) {
    fail("{}: W_dec_{}.safetensors without W_enc_{}.safetensors", folder.string(), n, n);
  }
}

const Transcoder& CrossLayerTranscoder::encoder(std::int64_t layer) const {
  return encoders_.at(size(layer));
}

void CrossLayerTranscoder::decoder_rows(std::int64_t layer, std::int64_t target,
                                        std::span<const std::int32_t> features,
                                        std::span<float> out) const {
  const std::int64_t d = d_model(), reach = layers() - layer;
  if (layer < 0 || layer >= layers() || target < layer || target >= layers()) {
    fail_usage("decoder rows of layer {} at layer {}: expected 0 ≤ layer ≤ target < {}", layer,
               target, layers());
  }
  if (out.size() != features.size() * size(d)) {
    fail_usage("decoder rows: {} values for {} features of {}", out.size(), features.size(), d);
  }
  const TensorStore& store = *decoders_[size(layer)];
  const TensorInfo& tensor = decoder_tensor(store, layer);
  for (std::size_t i = 0; i < features.size(); ++i) {
    const std::int64_t j = features[i];
    if (j < 0 || j >= this->features()) {
      fail_usage("decoder rows: feature {}, expected 0 to {}", j, this->features() - 1);
    }
    const std::span<float> row = out.subspan(i * size(d), size(d));
    read_values(tensor, static_cast<std::uint64_t>((j * reach + target - layer) * d), row);
    for (float v : row) {
      if (!std::isfinite(v))
        fail("{}: {} holds {}, expected finite values", store.name(), tensor.name, v);
    }
  }
}

void CrossLayerTranscoder::decode(std::int64_t target, std::span<const SparseRows> z,
                                  std::span<float> y) const {
  const std::int64_t d = d_model();
  if (target < 0 || target >= layers() || static_cast<std::int64_t>(z.size()) <= target) {
    fail_usage("layer {} from features of {} layers, expected layers 0 to {} of {}", target,
               z.size(), target, layers());
  }
  const std::int64_t rows = z[size(target)].rows();
  if (y.size() != size(rows * d)) {
    fail_usage("{} values to fill, expected {} rows of {}", y.size(), rows, d);
  }
  const std::vector<float>& bias = encoders_[size(target)].decoder_bias;
  for (std::int64_t r = 0; r < rows; ++r) std::copy(bias.begin(), bias.end(), y.data() + r * d);
  std::vector<std::int32_t> used;
  std::vector<float> vectors;
  for (std::int64_t l = 0; l <= target; ++l) {
    const SparseRows& from = z[size(l)];
    if (from.rows() != rows) {
      fail_usage("layer {} has {} rows of features, layer {} has {}", l, from.rows(), target, rows);
    }
    // Each row of the file is read once, however many tokens it fires at.
    used = from.feature;
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    vectors.resize(used.size() * size(d));
    decoder_rows(l, target, used, vectors);
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < rows; ++r) {
      float* out = y.data() + r * d;
      for (std::int64_t e = from.offsets[size(r)]; e < from.offsets[size(r + 1)]; ++e) {
        const auto at = std::lower_bound(used.begin(), used.end(), from.feature[size(e)]);
        const float* w = vectors.data() + (at - used.begin()) * d;
        const float v = from.value[size(e)];
        for (std::int64_t i = 0; i < d; ++i) out[i] += v * w[i];
      }
    }
  }
}

void CrossLayerTranscoder::bind(const Model& model, bool other_model) {
  if (layers() != model.config().n_layers) {
    fail("cross-layer transcoder: it has {} layers, model '{}' has {}", layers(), model.id(),
         model.config().n_layers);
  }
  for (Transcoder& t : encoders_) bind_dictionary(t.config, model, other_model);
}

}  // namespace lamina
