#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lamina::tokenizer {

/// Hash table from two 32-bit keys to a small value; open addressing, no removal. The pair
/// (0xFFFFFFFF, 0xFFFFFFFF) is not a key.
template <class Value>
class PairMap {
 public:
  explicit PairMap(std::size_t expected = 0)
      : slots_(std::bit_ceil(std::max<std::size_t>(16, expected * 2))) {}

  const Value* find(std::uint32_t a, std::uint32_t b) const {
    const Slot& slot = slots_[index(slots_, key(a, b))];
    return slot.key == kEmpty ? nullptr : &slot.value;
  }

  /// Stores `value`, replacing an older one.
  void set(std::uint32_t a, std::uint32_t b, Value value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[index(slots_, key(a, b))];
    if (slot.key == kEmpty) ++size_;
    slot = {key(a, b), value};
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kEmpty;
    Value value{};
  };

  static std::uint64_t key(std::uint32_t a, std::uint32_t b) { return std::uint64_t{a} << 32 | b; }

  /// The slot that holds `wanted`, or the empty one where it belongs.
  static std::size_t index(const std::vector<Slot>& slots, std::uint64_t wanted) {
    std::uint64_t hash = wanted * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    std::size_t at = hash & (slots.size() - 1);
    while (slots[at].key != kEmpty && slots[at].key != wanted) at = (at + 1) & (slots.size() - 1);
    return at;
  }

  void grow() {
    std::vector<Slot> larger(slots_.size() * 2);
    for (const Slot& slot : slots_) {
      if (slot.key != kEmpty) larger[index(larger, slot.key)] = slot;
    }
    slots_ = std::move(larger);
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

}  // namespace lamina::tokenizer
