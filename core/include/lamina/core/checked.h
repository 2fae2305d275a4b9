#pragma once

#include <cstdint>
#include <string_view>

#include "lamina/core/error.h"

namespace lamina {

/// a·b and a+b of sizes that come from files: Error naming `what` instead of wrapping around.
inline std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) fail("{}: {} × {} overflows 64 bits", what, a, b);
  return product;
}
inline std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) fail("{}: {} + {} overflows 64 bits", what, a, b);
  return sum;
}

}  // namespace lamina
