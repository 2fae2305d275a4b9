#pragma once

#include <cstdint>
#include <memory>

namespace lamina::internal {

/// A matrix W [n_out, n_in] laid out for products x·Wᵀ on the engine's kernels.
class Operand {
 public:
  Operand() = default;
  Operand(std::int64_t n_out, std::int64_t n_in);
  std::int64_t n_out() const { return n_out_; }
  std::int64_t n_in() const { return n_in_; }
  /// Fills the first `count` outputs from row-major w [count, n_in]; the others stay.
  void set(const float* w, std::int64_t count);

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::int64_t n_out_ = 0, n_in_ = 0;
  std::shared_ptr<Impl> impl_;
};

/// y[r, :] = x[r, :]·Wᵀ: x [rows, n_in] with row stride ldx, y [rows, n_out] with row stride ldy.
/// Every value is one chain of fused multiply-adds over the inner index (chains of 1024, added in
/// order), whatever the number of threads and the instruction set. Runs on one thread inside a
/// parallel region.
void product(const float* x, std::int64_t ldx, std::int64_t rows, const Operand& w, float* y,
             std::int64_t ldy);

}  // namespace lamina::internal
