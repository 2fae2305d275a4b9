#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/tensor_store.h"

namespace lamina {

/// A cross-layer transcoder: a feature of layer l reads that layer and writes to the MLP outputs of
/// layers l … L − 1,
///   y_m = b_dec_m + Σ_{l ≤ m} Σ_i z_{l,i} W_dec_l[i, m − l].
/// Encoders are expanded in memory; decoder rows (L times as many) are read from the mapped files
/// when they are needed. Source: circuit-tracer (CrossLayerTranscoder).
class CrossLayerTranscoder {
 public:
  /// A folder with W_enc_{l}.safetensors and W_dec_{l}.safetensors for l = 0 … L − 1. Throws Error
  /// naming the file for layers that are missing, shapes that do not fit, values not finite.
  /// `input_hook`, `output_hook`: without "blocks.l.".
  CrossLayerTranscoder(const std::filesystem::path& folder, const std::string& model_id,
                       const std::string& input_hook, const std::string& output_hook);

  std::int64_t layers() const { return static_cast<std::int64_t>(encoders_.size()); }
  std::int64_t features() const { return encoders_.front().config.features; }
  std::int64_t d_model() const { return encoders_.front().config.d_out; }
  /// The encoder of a layer with b_dec: a Transcoder whose `decoder` is empty. encode() and
  /// pre_activations() work; decode() and check() do not.
  const Transcoder& encoder(std::int64_t layer) const;
  /// W_dec_layer[features, target − layer] → out [features, d_model], target ≥ layer.
  void decoder_rows(std::int64_t layer, std::int64_t target, std::span<const std::int32_t> features,
                    std::span<float> out) const;
  /// y [N, d_model] of layer `target` from the active features of layers 0 … target.
  void decode(std::int64_t target, std::span<const SparseRows> z, std::span<float> y) const;
  /// bind_dictionary() for every layer, and the number of layers.
  void bind(const Model& model, bool other_model = false);

 private:
  std::vector<Transcoder> encoders_;
  std::vector<std::shared_ptr<const TensorStore>> decoders_;
};

}  // namespace lamina
