#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

// Random numbers that are a function of where they are used: no state, so neither threads nor the
// order of the work can change them.
namespace lamina {

/// A mixed 64-bit word (the finaliser of SplitMix64).
constexpr std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

/// One key out of two.
constexpr std::uint64_t mixed(std::uint64_t a, std::uint64_t b) {
  return mixed(mixed(a) ^ b);
}

/// A key out of a name (FNV-1a, mixed).
constexpr std::uint64_t mixed_name(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return mixed(hash);
}

/// Number `index` of the standard normal sequence `key` (Box–Muller).
inline float normal_number(std::uint64_t key, std::uint64_t index) {
  const std::uint64_t a = mixed(key, 2 * index), b = mixed(key, 2 * index + 1);
  const double u = (static_cast<double>(a >> 11) + 0.5) * 0x1.0p-53;  // in (0, 1)
  const double angle = 2.0 * std::numbers::pi * (static_cast<double>(b >> 11) * 0x1.0p-53);
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
}

}  // namespace lamina
