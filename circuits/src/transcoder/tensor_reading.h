#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/tensor_store.h"

// Tensors of dictionary files, with their shapes checked before anything is allocated.

namespace lamina::transcoder_files {

/// The tensor, or an Error naming the file.
const TensorInfo& require_tensor(const TensorStore& store, std::string_view name);
/// Error with both shapes unless the tensor has this one; for types that hold no real numbers.
void require_shape(const TensorStore& store, const TensorInfo& tensor,
                   std::initializer_list<std::int64_t> shape);
/// "[3, 4]".
std::string shape_text(std::span<const std::uint64_t> shape);
/// Error naming the file for a tensor whose name is none of these.
void refuse_others(const TensorStore& store, std::span<const std::string_view> names);

/// All values as fp32, row-major.
std::vector<float> read_tensor(const TensorInfo& tensor);
/// Values first … first + out.size() − 1.
void read_values(const TensorInfo& tensor, std::uint64_t first, std::span<float> out);
/// A [rows, columns] tensor as [columns, rows].
std::vector<float> read_transposed(const TensorInfo& tensor);

}  // namespace lamina::transcoder_files
