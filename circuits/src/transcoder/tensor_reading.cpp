#include "transcoder/tensor_reading.h"

#include <algorithm>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

namespace lamina::transcoder_files {

const TensorInfo& require_tensor(const TensorStore& store, std::string_view name) {
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) fail("{}: no tensor {}", store.name(), name);
  return *tensor;
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void require_shape(const TensorStore& store, const TensorInfo& tensor,
                   std::initializer_list<std::int64_t> shape) {
  const std::vector<std::uint64_t> expected(shape.begin(), shape.end());
  if (tensor.shape != expected) {
    fail("{}: tensor {}: expected shape {}, found {}", store.name(), tensor.name,
         shape_text(expected), shape_text(tensor.shape));
  }
  switch (tensor.dtype) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return;
    default:
      fail("{}: tensor {}: expected f64, f32, f16 or bf16, found {}", store.name(), tensor.name,
           dtype_name(tensor.dtype));
  }
}

void refuse_others(const TensorStore& store, std::span<const std::string_view> names) {
  for (const TensorInfo& tensor : store.tensors()) {
    if (std::find(names.begin(), names.end(), tensor.name) == names.end()) {
      fail("{}: tensor {} is none that this layout has ({})", store.name(),
           files::quote(tensor.name), fmt::join(names, ", "));
    }
  }
}

std::vector<float> read_tensor(const TensorInfo& tensor) {
  std::vector<float> out(tensor.elements());
  expand_to_f32(tensor.dtype, tensor.bytes, out);
  return out;
}

void read_values(const TensorInfo& tensor, std::uint64_t first, std::span<float> out) {
  const std::size_t bytes = block_bytes(tensor.dtype);
  expand_to_f32(tensor.dtype, tensor.bytes.subspan(first * bytes, out.size() * bytes), out);
}

std::vector<float> read_transposed(const TensorInfo& tensor) {
  const std::uint64_t rows = tensor.shape.at(0), columns = tensor.shape.at(1);
  constexpr std::uint64_t kRows = 32;
  std::vector<float> out(rows * columns), part(std::min(rows, kRows) * columns);
  for (std::uint64_t first = 0; first < rows; first += kRows) {
    const std::uint64_t count = std::min(kRows, rows - first);
    read_values(tensor, first * columns, std::span(part).first(count * columns));
    for (std::uint64_t c = 0; c < columns; ++c) {
      for (std::uint64_t r = 0; r < count; ++r) out[c * rows + first + r] = part[r * columns + c];
    }
  }
  return out;
}

}  // namespace lamina::transcoder_files
