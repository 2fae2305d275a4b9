#include "lamina/core/dtype.h"

#include <array>
#include <bit>
#include <cstring>

#include "dequantize.h"
#include "half.h"
#include "lamina/core/checked.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

static_assert(std::endian::native == std::endian::little, "model files are read as little-endian");

struct DTypeFacts {
  std::string_view name;
  std::size_t elements;  // of one block
  std::size_t bytes;     // of one block
};

constexpr std::array<DTypeFacts, 18> kFacts = {{
    {"f64", 1, 8},
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"i8", 1, 1},
    {"u8", 1, 1},
    {"i16", 1, 2},
    {"i32", 1, 4},
    {"i64", 1, 8},
    {"boolean", 1, 1},
    {"q4_0", 32, 18},
    {"q4_1", 32, 20},
    {"q5_0", 32, 22},
    {"q5_1", 32, 24},
    {"q8_0", 32, 34},
    {"q4_k", 256, 144},
    {"q5_k", 256, 176},
    {"q6_k", 256, 210},
}};
static_assert(kFacts[static_cast<std::size_t>(DType::boolean)].name == "boolean");
static_assert(kFacts.size() == static_cast<std::size_t>(DType::q6_k) + 1);

const DTypeFacts& facts(DType type) {
  const auto index = static_cast<std::size_t>(type);
  if (index >= kFacts.size()) fail("element type number {} is not one of {}", index, kFacts.size());
  return kFacts[index];
}

// Values of type T may start at any byte.
template <class T, class Convert>
void expand_plain(const std::byte* __restrict in, float* __restrict out, std::size_t count,
                  Convert convert) {
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, in + i * sizeof(T), sizeof(T));
    out[i] = convert(value);
  }
}

}  // namespace

std::string_view dtype_name(DType type) {
  return facts(type).name;
}
std::size_t block_elements(DType type) {
  return facts(type).elements;
}
std::size_t block_bytes(DType type) {
  return facts(type).bytes;
}

std::uint64_t storage_bytes(DType type, std::uint64_t elements) {
  const DTypeFacts& f = facts(type);
  if (elements % f.elements != 0) {
    fail("{} {} values are no whole number of blocks of {}", elements, f.name, f.elements);
  }
  return checked_mul(elements / f.elements, f.bytes, f.name);
}

void expand_to_f32(DType type, std::span<const std::byte> bytes, std::span<float> out) {
  const std::uint64_t expected = storage_bytes(type, out.size());
  if (bytes.size() != expected) {
    fail("{} {} values take {} bytes, got {}", out.size(), dtype_name(type), expected,
         bytes.size());
  }
  if (out.empty()) return;
  switch (type) {
    case DType::f64:
      return expand_plain<double>(bytes.data(), out.data(), out.size(),
                                  [](double v) { return static_cast<float>(v); });
    case DType::f32:
      std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case DType::f16:
      return expand_plain<std::uint16_t>(bytes.data(), out.data(), out.size(),
                                         files::half_to_float);
    case DType::bf16:
      return expand_plain<std::uint16_t>(bytes.data(), out.data(), out.size(),
                                         files::bfloat_to_float);
    case DType::i8:
    case DType::u8:
    case DType::i16:
    case DType::i32:
    case DType::i64:
    case DType::boolean:
      fail("{} values cannot be expanded to f32: a floating-point type is needed",
           dtype_name(type));
    default:
      files::expand_blocks(type, reinterpret_cast<const std::uint8_t*>(bytes.data()),
                           out.size() / block_elements(type), out.data());
  }
}

std::uint16_t f32_to_f16(float value) {
  return files::float_to_half(value);
}
float f16_to_f32(std::uint16_t bits) {
  return files::half_to_float(bits);
}
std::uint16_t f32_to_bf16(float value) {
  return files::float_to_bfloat(value);
}
float bf16_to_f32(std::uint16_t bits) {
  return files::bfloat_to_float(bits);
}

}  // namespace lamina
