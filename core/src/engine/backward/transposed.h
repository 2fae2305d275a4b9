#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "engine/kernels.h"
#include "engine/weights.h"
#include "lamina/core/site.h"

namespace lamina::backward {

/// W [n_out, n_in] packed so that `multiply` gives g·W: [n_in, n_out].
kernels::PackedMatrix transpose(const kernels::PackedMatrix& w);
/// Columns first … first + count − 1 of the transpose: the part that belongs to some outputs of W.
kernels::PackedMatrix transpose(const kernels::PackedMatrix& w, std::int64_t first,
                                std::int64_t count);

/// Transposed weights of a model, made when first needed and kept: the backward pass doubles the
/// memory of what it passes through.
class Transposed {
 public:
  explicit Transposed(const Weights& weights) : weights_(weights) {}
  const kernels::PackedMatrix& of(const Linear& linear);
  /// The part of W_Q, W_K or W_V (`kind` q, k, v) that belongs to one head.
  const kernels::PackedMatrix& of_head(SiteKind kind, std::int32_t layer, std::int64_t head,
                                       std::int64_t d_head);

 private:
  const Weights& weights_;
  std::map<const Linear*, kernels::PackedMatrix> whole_;
  std::map<std::tuple<SiteKind, std::int32_t, std::int64_t>, kernels::PackedMatrix> heads_;
};

}  // namespace lamina::backward
