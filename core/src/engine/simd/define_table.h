// Included last by each instruction set's file: fills in its table. Defines LAMINA_SIMD_TABLE.

#include "engine/simd/rows.h"
#include "engine/simd/table.h"
#include "engine/simd/tile.h"

namespace lamina::kernels {

namespace LAMINA_SIMD_NS {
void row_tanh(const float* x, std::int64_t n, float* y) {
  map(x, n, y, [](F v) { return tanh(v); });
}
void row_erf(const float* x, std::int64_t n, float* y) {
  map(x, n, y, [](F v) { return erf(v); });
}
}  // namespace LAMINA_SIMD_NS

const KernelTable LAMINA_SIMD_TABLE = {
    LAMINA_SIMD_NAME,
    LAMINA_SIMD_NS::kTileRows,
    &LAMINA_SIMD_NS::tile,
    &LAMINA_SIMD_NS::row_sum,
    &LAMINA_SIMD_NS::row_sum_squares,
    &LAMINA_SIMD_NS::row_normalize,
    &LAMINA_SIMD_NS::row_exp,
    &LAMINA_SIMD_NS::row_softcap,
    &LAMINA_SIMD_NS::row_scale,
    &LAMINA_SIMD_NS::row_softmax,
    &LAMINA_SIMD_NS::row_activate,
    &LAMINA_SIMD_NS::row_activate_gated,
    &LAMINA_SIMD_NS::row_sum_exp,
    &LAMINA_SIMD_NS::row_entropy,
    &LAMINA_SIMD_NS::row_kl,
    &LAMINA_SIMD_NS::row_tanh,
    &LAMINA_SIMD_NS::row_erf,
};

}  // namespace lamina::kernels
