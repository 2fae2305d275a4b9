#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "verbs/transcoder.h"

namespace lamina::cli {
namespace {

std::vector<float> transposed(const std::vector<float>& x, std::int64_t rows, std::int64_t n) {
  std::vector<float> out(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < n; ++i) {
      out[static_cast<std::size_t>(i * rows + r)] = x[static_cast<std::size_t>(r * n + i)];
    }
  }
  return out;
}

std::string architecture_of(const TranscoderConfig& c) {
  const bool sae = c.input == c.output;
  switch (c.activation) {
    case FeatureActivation::relu:
      return sae ? "standard" : (c.skip ? "skip_transcoder" : "transcoder");
    case FeatureActivation::topk:
      return sae ? "topk" : (c.skip ? "topk_skip_transcoder" : "topk_transcoder");
    default:
      return sae ? "jumprelu" : (c.skip ? "jumprelu_skip_transcoder" : "jumprelu_transcoder");
  }
}

}  // namespace

void write_dictionary(const std::filesystem::path& folder, const Transcoder& t) {
  t.check();
  const TranscoderConfig& c = t.config;
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) fail("{}: cannot be created: {}", folder.string(), failed.message());
  const auto n = [](std::int64_t v) { return static_cast<std::uint64_t>(v); };
  const std::vector<float> encoder = transposed(t.encoder, c.features, c.d_in);
  std::vector<F32Tensor> tensors = {{"W_enc", {n(c.d_in), n(c.features)}, encoder},
                                    {"b_enc", {n(c.features)}, t.encoder_bias},
                                    {"W_dec", {n(c.features), n(c.d_out)}, t.decoder},
                                    {"b_dec", {n(c.d_out)}, t.decoder_bias}};
  if (!t.threshold.empty()) tensors.push_back({"threshold", {n(c.features)}, t.threshold});
  if (c.skip) tensors.push_back({"W_skip", {n(c.d_out), n(c.d_in)}, t.skip});
  write_safetensors(folder / "sae_weights.safetensors", tensors);
  nlohmann::ordered_json json = {{"architecture", architecture_of(c)},
                                 {"d_in", c.d_in},
                                 {"d_sae", c.features},
                                 {"d_out", c.d_out},
                                 {"dtype", "float32"},
                                 {"apply_b_dec_to_input", c.subtract_decoder_bias},
                                 {"normalize_activations", "none"}};
  if (c.activation == FeatureActivation::topk) json["k"] = c.k;
  json["metadata"] = {{"model_name", c.model_id},
                      {"hook_name", dictionary_place_name(c.input)},
                      {"hook_name_out", dictionary_place_name(c.output)},
                      {"activation", feature_activation_name(c.activation)}};
  const std::filesystem::path path = folder / "cfg.json";
  std::ofstream file(path);
  file << json.dump(2) << '\n';
  file.close();
  if (!file) fail("{}: cannot be written", path.string());
}

}  // namespace lamina::cli
