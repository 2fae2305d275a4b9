#include "lamina/internal/product.h"

#include "engine/kernels.h"

namespace lamina::internal {

struct Operand::Impl {
  kernels::PackedMatrix matrix;
};

Operand::Operand(std::int64_t n_out, std::int64_t n_in)
    : n_out_(n_out),
      n_in_(n_in),
      impl_(std::make_shared<Impl>(Impl{kernels::PackedMatrix(n_out, n_in)})) {}

void Operand::set(const float* w, std::int64_t count) {
  impl_->matrix.set_rows(0, count, w);
}

void product(const float* x, std::int64_t ldx, std::int64_t rows, const Operand& w, float* y,
             std::int64_t ldy) {
  kernels::multiply(x, ldx, rows, w.impl().matrix, nullptr, y, ldy);
}

}  // namespace lamina::internal
