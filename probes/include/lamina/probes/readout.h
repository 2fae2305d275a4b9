#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "lamina/core/forward.h"

namespace lamina {

/// What turns residual rows into logits: the model's final norm and unembedding. The lenses read
/// through this interface and not through Forward, so that a head can be used without its model.
///
/// A row's result must not depend on the other rows of the call.
class Readout {
 public:
  virtual ~Readout() = default;

  virtual std::int64_t d_model() const = 0;
  virtual std::int64_t d_vocab() const = 0;

  /// Final norm: x [rows, d_model] → out [rows, d_model].
  virtual void final_norm(std::span<const float> x, std::span<float> out) const = 0;
  /// Logits of normalised rows: x [rows, d_model] → out [rows, d_vocab], bias and soft-cap applied.
  virtual void unembed(std::span<const float> x, std::span<float> out) const = 0;

  /// What the final norm multiplies by (offset included), [d_model]; ones without a final norm.
  virtual void norm_weight(std::span<float> out) const = 0;
  /// Rows first … first + count − 1 of the unembedding matrix U, [count, d_model]: U_i is the
  /// direction whose dot product with a normalised row is the logit of token i.
  virtual void unembedding_rows(std::int64_t first, std::int64_t count,
                                std::span<float> out) const = 0;
};

/// The readout of a model. `forward` must outlive it.
std::unique_ptr<Readout> model_readout(const Forward& forward);

}  // namespace lamina
