#pragma once

#include <cstdint>
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "lamina/core/model.h"

namespace lamina::testing {

/// A folder that is removed at the end of the test.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Settings of the canonical family ("lamina") for a random model; names as in its config.json.
struct TinyConfig {
  std::string label;
  std::int64_t n_layers = 3, d_model = 24, n_heads = 4, n_kv_heads = 2, d_head = 6, d_mlp = 40;
  std::int64_t d_vocab = 61, n_ctx = 128;
  std::string norm = "rms", norm_place = "pre", positions = "rotary", rope_style = "half";
  std::string act = "silu";
  std::int64_t rotary_dim = 6, window = 0;
  bool causal = true, qk_norm = false, qkv_bias = false, out_bias = false, mlp_bias = false;
  bool gated = true, parallel = false, tied = false, head_bias = false, final_norm = true;
  double attn_softcap = 0, final_softcap = 0, embed_scale = 1;
};

/// GoogleTest prints a parameter by this.
inline void PrintTo(const TinyConfig& config, std::ostream* out) {
  *out << config.label;
}

/// Configurations that between them reach every branch of the canonical block.
std::vector<TinyConfig> varied_configs();

/// Writes config.json and model.safetensors with random weights into `folder`.
void write_tiny_model(const std::filesystem::path& folder, const TinyConfig& config,
                      std::uint64_t seed);

/// A random model of this configuration, loaded.
Model tiny_model(const TinyConfig& config, std::uint64_t seed = 1);

/// Random prompts with these lengths.
std::vector<std::vector<std::int32_t>> random_prompts(const std::vector<std::int64_t>& lengths,
                                                      std::int64_t d_vocab, std::uint64_t seed);

}  // namespace lamina::testing
