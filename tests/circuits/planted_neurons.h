#pragma once

#include <string>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"

namespace lamina::testing {

/// The neurons of every ReLU MLP of a planted model (folder) as features: transcoders without
/// error.
inline std::vector<Transcoder> planted_neurons(const std::string& folder) {
  const TensorStore file = open_safetensors(folder + "/model.safetensors");
  const auto floats = [&](int layer, const char* name) {
    const TensorInfo* t = file.find(fmt::format("blocks.{}.mlp.{}", layer, name));
    std::vector<float> out(t->elements());
    expand_to_f32(t->dtype, t->bytes, out);
    return out;
  };
  std::vector<Transcoder> all;
  for (std::int32_t l = 0; file.find(fmt::format("blocks.{}.mlp.W_in", l)) != nullptr; ++l) {
    Transcoder t;
    const std::vector<float> in = floats(l, "W_in");  // [D, M]
    t.encoder_bias = floats(l, "b_in");
    t.decoder = floats(l, "W_out");  // [M, D]
    t.decoder_bias = floats(l, "b_out");
    const std::size_t d = t.decoder_bias.size(), m = t.encoder_bias.size();
    t.encoder.resize(in.size());
    for (std::size_t i = 0; i < d; ++i)
      for (std::size_t f = 0; f < m; ++f) t.encoder[f * d + i] = in[i * m + f];
    t.config = {.name = "neurons",
                .model_id = "",
                .input = {{SiteKind::resid_mid, l}, false},
                .output = {{SiteKind::mlp_out, l}, false},
                .d_in = static_cast<std::int64_t>(d),
                .d_out = static_cast<std::int64_t>(d),
                .features = static_cast<std::int64_t>(m),
                .activation = FeatureActivation::relu,
                .k = 0,
                .subtract_decoder_bias = false,
                .skip = false};
    all.push_back(std::move(t));
  }
  return all;
}

}  // namespace lamina::testing
