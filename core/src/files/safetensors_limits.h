#pragma once

#include <cstddef>
#include <cstdint>

namespace lamina::files {

// What parse_safetensors accepts, and so what write_safetensors may write.
constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes; the reference implementation's limit
constexpr std::size_t kMaxRank = 64;

}  // namespace lamina::files
