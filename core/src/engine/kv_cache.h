#pragma once

#include <cstdint>
#include <vector>

#include "lamina/core/forward.h"

namespace lamina {

/// Keys (after rotation) and values of every layer and sequence, [token, kv_heads · d_head] each.
struct KvCache::Impl {
  struct Sequence {
    std::vector<std::vector<float>> keys, values;  // per layer
    std::int64_t length = 0;                       // tokens that every layer holds
  };
  std::int64_t layers = 0;
  std::int64_t row = 0;  // kv_heads · d_head
  std::vector<Sequence> sequences;
};

}  // namespace lamina
