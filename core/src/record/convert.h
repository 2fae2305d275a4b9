#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lamina/core/recording.h"
#include "record/h5.h"

namespace lamina::record {

h5::Type element_type(StoreType store);

/// Values to their stored form, on all threads. Returns the index of the first value that f16
/// cannot hold (finite and beyond ±65504 after rounding), or −1. `out` has values.size() × type
/// size bytes.
std::int64_t encode(StoreType store, std::span<const float> values, std::byte* out);

/// The stored form back to fp32, on all threads.
void decode(StoreType store, const std::byte* stored, std::span<float> out);

}  // namespace lamina::record
