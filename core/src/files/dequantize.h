#pragma once

#include <cstddef>
#include <cstdint>

#include "lamina/core/dtype.h"

namespace lamina::files {

/// Expands `blocks` storage blocks of a quantised `type` from `in` to fp32 at `out`. The caller has
/// checked both sizes; `in` need not be aligned. Layouts: ggml's block formats; the order of the
/// operations is the gguf Python package's, so results agree to the bit.
void expand_blocks(DType type, const std::uint8_t* in, std::size_t blocks, float* out);

}  // namespace lamina::files
