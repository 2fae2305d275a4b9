#pragma once

#include <cstdlib>
#include <span>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/tensor_store.h"

namespace lamina::fuzz {

/// What must hold of the tensors of every file that a parser accepts: bytes inside the file, of the
/// size of dtype × shape; small ones are expanded too. Aborts otherwise.
inline void check_tensors(std::span<const TensorInfo> tensors, std::span<const std::byte> file) {
  for (const TensorInfo& tensor : tensors) {
    const std::uint64_t elements = tensor.elements();
    if (tensor.bytes.size() != storage_bytes(tensor.dtype, elements)) std::abort();
    if (tensor.bytes.data() < file.data() ||
        tensor.bytes.data() + tensor.bytes.size() > file.data() + file.size()) {
      std::abort();
    }
    const bool whole = tensor.dtype >= DType::i8 && tensor.dtype <= DType::boolean;
    if (whole || elements > 4096) continue;
    std::vector<float> values(elements);
    expand_to_f32(tensor.dtype, tensor.bytes, values);
  }
}

}  // namespace lamina::fuzz
