#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/config.h"

namespace lamina::backward {

/// Rows of a matrix with a stride.
struct RowsView {
  const float* data;
  std::int64_t stride;
};

/// Norms of weight gradients, a tensor at a time. Of a matrix only a stripe exists at once.
/// A tensor that several steps use (a layer run twice) is not supported: the last one counts.
class ParameterNorms {
 public:
  /// y = x·Wᵀ + b: x [rows, n_in], gradient at y [rows, n_out].
  void linear(const std::string& weight, const std::string& bias, std::int64_t rows, RowsView x,
              std::int64_t n_in, RowsView gradient, std::int64_t n_out, bool has_bias);
  /// y = n∘w + b: n and the gradient at y, [rows, d].
  void norm(const std::string& weight, const std::string& bias, std::int64_t rows, std::int64_t d,
            const float* normalized, const float* gradient, bool has_bias);
  /// Rows of an embedding, picked by `index` [rows]; gradient [rows, d]. Rows picked twice add.
  void rows(const std::string& tensor, std::span<const std::int32_t> index, std::int64_t d,
            const float* gradient);
  /// An unembedding that may be the embedding as well (ids, embed_gradient; empty if not).
  struct Unembed {
    std::int64_t rows, d, vocabulary;
    const float* x;         // [rows, d] what it read
    const float* gradient;  // [rows, vocabulary]
    bool has_bias;
    std::span<const std::int32_t> ids;  // [tokens]
    const float* embed_gradient;        // [tokens, d]
  };
  void unembed(const std::string& tensor, const Unembed& u);

  std::vector<ParameterNorm> in_order(const ModelConfig& config) const;
  void clear() { norms_.clear(); }

 private:
  std::map<std::string, double> norms_;
};

}  // namespace lamina::backward
