#include "record/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "files/half.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace lamina::record {
namespace {

constexpr std::int64_t kPiece = 1 << 16;  // values of one thread's turn

// Runs body(first, count) over pieces of `size` values.
template <class Body>
void in_pieces(std::int64_t size, const Body& body) {
  const std::int64_t pieces = (size + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (pieces > 4)
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t first = piece * kPiece;
    body(first, std::min(kPiece, size - first));
  }
}

// Loops over halves; the processor's own conversion rounds the same way (to nearest, ties to even).
void to_halves(const float* in, std::int64_t count, std::uint16_t* out) {
  std::int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) out[i] = files::float_to_half(in[i]);
}

void to_floats(const std::uint16_t* in, std::int64_t count, float* out) {
  std::int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
#endif
  for (; i < count; ++i) out[i] = files::half_to_float(in[i]);
}

}  // namespace

h5::Type element_type(StoreType store) {
  switch (store) {
    case StoreType::f16:
      return h5::Type::f16;
    case StoreType::bf16:
      return h5::Type::bf16;
    default:
      return h5::Type::f32;
  }
}

std::int64_t encode(StoreType store, std::span<const float> values, std::byte* out) {
  const auto size = static_cast<std::int64_t>(values.size());
  const float* in = values.data();
  if (store == StoreType::f32) {
    in_pieces(size, [&](std::int64_t first, std::int64_t count) {
      std::memcpy(out + 4 * first, in + first, 4 * static_cast<std::size_t>(count));
    });
    return -1;
  }
  auto* halves = reinterpret_cast<std::uint16_t*>(out);
  if (store == StoreType::bf16) {
    in_pieces(size, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t i = first; i < first + count; ++i) {
        halves[i] = files::float_to_bfloat(in[i]);
      }
    });
    return -1;
  }
  // An infinity in the model (masked scores) stays one; a finite value must not become one.
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kFirstTooLarge = 65520.0f;  // rounds to 2^16
  const std::int64_t pieces = (size + kPiece - 1) / kPiece;
  std::int64_t bad_piece = pieces;
#pragma omp parallel for schedule(static) reduction(min : bad_piece) if (pieces > 4)
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t first = piece * kPiece;
    const std::int64_t last = std::min(size, first + kPiece);
    int bad = 0;
    for (std::int64_t i = first; i < last; ++i) {
      const float magnitude = std::fabs(in[i]);
      bad |=
          static_cast<int>(magnitude >= kFirstTooLarge) & static_cast<int>(magnitude < kInfinity);
    }
    to_halves(in + first, last - first, halves + first);
    if (bad != 0) bad_piece = std::min(bad_piece, piece);
  }
  if (bad_piece == pieces) return -1;
  std::int64_t i = bad_piece * kPiece;
  while (!(std::fabs(in[i]) >= kFirstTooLarge && std::fabs(in[i]) < kInfinity)) ++i;
  return i;
}

void decode(StoreType store, const std::byte* stored, std::span<float> out) {
  const auto size = static_cast<std::int64_t>(out.size());
  float* to = out.data();
  if (store == StoreType::f32) {
    in_pieces(size, [&](std::int64_t first, std::int64_t count) {
      std::memcpy(to + first, stored + 4 * first, 4 * static_cast<std::size_t>(count));
    });
    return;
  }
  const auto* halves = reinterpret_cast<const std::uint16_t*>(stored);
  in_pieces(size, [&](std::int64_t first, std::int64_t count) {
    if (store == StoreType::f16) {
      to_floats(halves + first, count, to + first);
    } else {
      for (std::int64_t i = first; i < first + count; ++i) {
        to[i] = files::bfloat_to_float(halves[i]);
      }
    }
  });
}

}  // namespace lamina::record
