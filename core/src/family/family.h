#pragma once

// A family is a table: configuration keys → ModelConfig, tensor names → canonical tensors with the
// shapes they must have. Nothing outside core/src/family knows a file's own names.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/tensor_store.h"

namespace lamina {

// Canonical tensors, fp32, row-major. Matrices stand as [out, in] (y = W x), whatever the file has.
//   embed [V, D]  type_embed [n_types, D]  pos_embed [n_ctx, D]  embed_norm.w/.b [D]
//   head [D, D]  head.b [D]  (head_dense)
//   unembed [d_out, D] (absent if tied)  unembed.b [d_out]
//   ln_final.w, ln_final.b [D]
//   L.ln1.w/.b  L.ln2.w/.b  L.ln1_post.w/.b  L.ln2_post.w/.b [D]
//   L.q [H·dh, D]  L.k, L.v [K·dh, D]  L.o [D, H·dh]  and their biases L.q.b …
//   L.q_norm, L.k_norm [dh]
//   L.gate, L.in [M, D]  L.out [D, M]  and biases L.gate.b …  L.mlp_ln.w/.b [M] (solu_ln)
// with L the layer number: "0.q", "11.mlp_ln.w".
struct CanonicalTensor {
  std::string name;
  std::int64_t rows;  // 1 for vectors
  std::int64_t cols;
};

/// The canonical tensors a configuration needs, in loading order.
std::vector<CanonicalTensor> canonical_tensors(const ModelConfig& config);

/// Gives the canonical tensors of an opened model.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Rows first … first + count − 1 of a canonical tensor, expanded to fp32 and brought to
  /// canonical orientation. `out` has count × cols values.
  virtual void read_rows(std::string_view canonical, std::int64_t first, std::int64_t count,
                         std::span<float> out) const = 0;
};

/// A model's files, opened and checked: every canonical tensor is there with the expected shape,
/// and the file holds no tensor the family does not know.
struct OpenedModel {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
  std::string config_text;  // config.json, or the GGUF keys that were used: part of the fingerprint
  std::vector<std::shared_ptr<const MappedFile>> files;
  bool has_tokenizer = false;  // tokenizer.json, or the GGUF file's tokenizer.ggml keys
};

/// A folder with config.json and safetensors files (Hugging Face names, or the canonical family
/// "lamina" with TransformerLens names), or a GGUF file. Error for an unknown family lists the
/// known.
OpenedModel open_model(const std::filesystem::path& path);

}  // namespace lamina
