#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace lamina::kernels {

/// Floats aligned to a cache line; for matrices large enough, to a huge page.
struct FreeAligned {
  void operator()(float* p) const;
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;
/// Uninitialised. Throws Error if the memory is not there.
AlignedFloats allocate_floats(std::size_t count);

/// A buffer that grows and is used again; its contents do not survive a call of get.
class Workspace {
 public:
  float* get(std::size_t count) {
    if (count > size_) {
      data_.reset();
      data_ = allocate_floats(count);
      size_ = count;
    }
    return data_.get();
  }

 private:
  AlignedFloats data_;
  std::size_t size_ = 0;
};

}  // namespace lamina::kernels
