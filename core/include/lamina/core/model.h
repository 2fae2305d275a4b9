#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/site.h"
#include "lamina/core/tokenizer.h"

namespace lamina {

struct Weights;  // private: packed matrices (core/src/engine/weights.h)

/// A weight matrix by its canonical name: "0.q", "0.k", "0.v", "0.o", "0.gate", "0.in", "0.out".
struct MatrixInfo {
  std::string name;
  std::int64_t rows;     // outputs
  std::int64_t columns;  // inputs
};

/// A loaded model: configuration, packed weights and, if there is one, its tokenizer.
/// Immutable and cheap to share between threads.
class Model {
 public:
  /// A folder (config.json + safetensors, Hugging Face or canonical) or a GGUF file.
  /// Throws Error for anything missing, superfluous, mis-shaped or of an unsupported family.
  static Model load(const std::filesystem::path& path);
  /// The same model with a key and value head of its own for every query head: grouped ones are
  /// repeated. Every value is the same bit for bit; interventions can reach one query head's key
  /// or value alone. Shares all other weights with this model.
  Model ungrouped() const;
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  const ModelConfig& config() const { return config_; }
  /// nullptr if the model comes without one.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  /// File or folder name without its directory: the model's name in recordings.
  const std::string& id() const { return id_; }
  /// Fingerprint: SHA-256 over configuration text and weight files.
  const std::string& sha256() const;
  std::uint64_t parameters() const { return parameters_; }
  std::uint64_t weight_bytes() const;  // of the packed weights in memory

  /// What the final norm multiplies by, offset included: out [d_model]; ones without a final norm.
  void final_norm_weight(std::span<float> out) const;
  /// What the norm whose normalised site is `kind` (ln1_normalized, ln1_post_normalized, …; layer
  /// −1 for embed_ln_normalized and ln_final_normalized) multiplies by, offset included: out
  /// [d_model]. UsageError if the model has no such norm.
  void norm_weight(SiteKind kind, std::int32_t layer, std::span<float> out) const;
  /// What the same norm adds after multiplying: out [d_model]; zeros for norms without bias.
  void norm_bias(SiteKind kind, std::int32_t layer, std::span<float> out) const;
  /// Rows first … first + count − 1 of the unembedding matrix: out [count, d_model].
  void unembedding_rows(std::int64_t first, std::int64_t count, std::span<float> out) const;
  /// Rows first … first + count − 1 of the embedding matrix, the embedding's scale applied (what a
  /// token adds to the residual stream): out [count, d_model].
  void embedding_rows(std::int64_t first, std::int64_t count, std::span<float> out) const;
  /// The weight matrices of one layer, biases and norms aside. UsageError for a layer that is not
  /// there.
  std::vector<MatrixInfo> layer_matrices(std::int32_t layer) const;
  /// Rows first … first + count − 1 of one of them, as they multiply (y = W x): out [count,
  /// columns]. UsageError for a name or rows that are not there.
  void matrix_rows(std::string_view name, std::int64_t first, std::int64_t count,
                   std::span<float> out) const;
  /// What the layer adds behind the same matrix (y = W x + b): out [rows]; zeros without a bias.
  void matrix_bias(std::string_view name, std::span<float> out) const;

  const Weights& weights() const { return *weights_; }

 private:
  Model();
  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string id_;
  std::unique_ptr<const Weights> weights_;
  std::uint64_t parameters_ = 0;
  std::function<std::string()> fingerprint_;  // reads the files: made at the first call of sha256()
  mutable std::string sha256_;
};

}  // namespace lamina
