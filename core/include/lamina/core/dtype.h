#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace lamina {

/// Element types of the tensors in a model file. The quantised ones are GGML's block formats.
enum class DType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  i8,
  u8,
  i16,
  i32,
  i64,
  boolean,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,
};

/// Name as users write it: "f32", "q4_k" …
std::string_view dtype_name(DType type);

/// Elements of one storage block (1 for plain types, 32 or 256 for the quantised ones).
std::size_t block_elements(DType type);

/// Bytes of one storage block.
std::size_t block_bytes(DType type);

/// Bytes of `elements` values. Throws Error if `elements` is no whole number of blocks or the
/// product overflows.
std::uint64_t storage_bytes(DType type, std::uint64_t elements);

/// Expands `out.size()` values of `type` from `bytes` to fp32.
/// `bytes` must hold exactly storage_bytes(type, out.size()) bytes; throws Error otherwise and for
/// integer and boolean types. Block formats: ggml's public format description (ggml-quants).
void expand_to_f32(DType type, std::span<const std::byte> bytes, std::span<float> out);

/// IEEE half and bfloat16 conversions, round to nearest even. f16 overflow gives infinity.
std::uint16_t f32_to_f16(float value);
float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_bf16(float value);
float bf16_to_f32(std::uint16_t bits);

}  // namespace lamina
