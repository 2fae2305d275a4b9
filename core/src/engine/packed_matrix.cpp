#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine/kernels.h"
#include "engine/tile_pack.h"
#include "engine/workspace.h"
#include "lamina/core/error.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lamina::kernels {

AlignedFloats allocate_floats(std::size_t count) {
  constexpr std::size_t kHugePage = std::size_t{1} << 21;
  if (count > (std::size_t{1} << 60))
    fail("memory: {} floats are more than can be addressed", count);
  std::size_t bytes = std::max<std::size_t>(count, 1) * sizeof(float);
  const std::size_t align = bytes >= 2 * kHugePage ? kHugePage : 64;
  bytes = (bytes + 63) / 64 * 64;
  void* p = nullptr;
  if (posix_memalign(&p, align, bytes) != 0) {
    fail("memory: cannot allocate {} bytes for a matrix", bytes);
  }
#if defined(__linux__)
  // Fewer page-table walks while weights stream past; a refusal costs speed only.
  if (align == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return AlignedFloats(static_cast<float*>(p));
}

void FreeAligned::operator()(float* p) const {
  std::free(p);
}

PackedMatrix::PackedMatrix(std::int64_t n_out, std::int64_t n_in) : n_out_(n_out), n_in_(n_in) {
  // 2^31 each: their padded product of floats still fits 64 bits.
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (n_out < 0 || n_in < 0 || n_out >= kMost || n_in >= kMost) {
    fail("packed matrix: {} × {} is no valid shape", n_out, n_in);
  }
  data_ = std::shared_ptr<float[]>(allocate_floats(bytes() / sizeof(float)));
  std::memset(data_.get(), 0, bytes());
}

std::size_t PackedMatrix::bytes() const {
  const auto panels = static_cast<std::size_t>((n_out_ + kPanel - 1) / kPanel);
  return panels * static_cast<std::size_t>(kPanel) * static_cast<std::size_t>(n_in_) *
         sizeof(float);
}

const float* PackedMatrix::panel(std::int64_t index) const {
  return data_.get() + index * kPanel * n_in_;
}

void PackedMatrix::set_rows(std::int64_t first, std::int64_t count, const float* w) {
  if (first < 0 || count < 0 || first > n_out_ - count) {
    fail("packed matrix: rows {} to {} of {}", first, first + count, n_out_);
  }
  for (std::int64_t r = 0; r < count;) {
    const std::int64_t row = first + r, column = row % kPanel;
    const std::int64_t some = std::min(kPanel - column, count - r);  // rows of one panel
    transpose_to_panel(w + r * n_in_, n_in_, some, n_in_,
                       data_.get() + row / kPanel * kPanel * n_in_ + column);
    r += some;
  }
}

void PackedMatrix::copy_row(std::int64_t row, float* out) const {
  if (row < 0 || row >= n_out_) fail("packed matrix: row {} of {}", row, n_out_);
  const float* in = panel(row / kPanel) + row % kPanel;
  for (std::int64_t k = 0; k < n_in_; ++k) out[k] = in[k * kPanel];
}

}  // namespace lamina::kernels
