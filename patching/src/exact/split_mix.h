#pragma once

#include <cstdint>

namespace lamina::patching {

/// SplitMix64 (Steele, Lea, Flood 2014): the same draws with every standard library.
class SplitMix {
 public:
  explicit SplitMix(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In 0 … n − 1. The modulo's bias is below n / 2^64.
  std::uint64_t below(std::uint64_t n) { return next() % n; }

 private:
  std::uint64_t state_;
};

/// The stream of the i-th of several independent draws.
inline SplitMix stream(std::uint64_t seed, std::uint64_t i) {
  return SplitMix(SplitMix(seed ^ (0xd1342543de82ef95u * (i + 1))).next());
}

}  // namespace lamina::patching
