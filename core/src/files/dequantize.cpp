#include "dequantize.h"

#include <array>
#include <cstring>

#include "half.h"
#include "lamina/core/error.h"

// Every inner loop runs over 16 or 32 independent elements with `__restrict` pointers: compilers
// turn them into vector code without intrinsics. `int` is wide enough for every quantised value.

namespace lamina::files {
namespace {

using Byte = std::uint8_t;

float half_at(const Byte* in) {
  std::uint16_t bits;
  std::memcpy(&bits, in, sizeof bits);
  return half_to_float(bits);
}

std::uint32_t word_at(const Byte* in) {
  std::uint32_t word;
  std::memcpy(&word, in, sizeof word);
  return word;
}

// Blocks of 32: [d:f16] [m:f16 if affine] [high bits:u32 if 5-bit] [16 bytes: low nibbles are
// elements 0…15, high nibbles 16…31]. Symmetric formats subtract half of their range.

void expand_q4_0(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in);
  const Byte* __restrict q = in + 2;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((q[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

void expand_q4_1(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in), m = half_at(in + 2);
  const Byte* __restrict q = in + 4;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(q[j] & 15) + m;
    out[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
  }
}

void expand_q5_0(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in);
  const std::uint32_t high = word_at(in + 2);
  const Byte* __restrict q = in + 6;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(((q[j] & 15) | static_cast<int>(high >> j & 1) << 4) - 16);
    out[j + 16] =
        d * static_cast<float>(((q[j] >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4) - 16);
  }
}

void expand_q5_1(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in), m = half_at(in + 2);
  const std::uint32_t high = word_at(in + 4);
  const Byte* __restrict q = in + 8;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((q[j] & 15) | static_cast<int>(high >> j & 1) << 4) + m;
    out[j + 16] =
        d * static_cast<float>((q[j] >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4) + m;
  }
}

void expand_q8_0(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in);
  const Byte* __restrict q = in + 2;
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(static_cast<std::int8_t>(q[j]));
}

// Super-blocks of 256 with a 6-bit scale and a 6-bit minimum for each of 8 sub-blocks of 32, packed
// into 12 bytes: the first four scales and minima take the low 6 bits of bytes 0…3 and 4…7, the
// last four split into nibbles of bytes 8…11 and the two bits left over above.
struct ScalesAndMinima {
  std::array<float, 8> scale, minimum;
};

ScalesAndMinima unpack_scales(const Byte* in, float d, float d_min) {
  ScalesAndMinima s;
  for (int j = 0; j < 4; ++j) {
    const int a = in[j], b = in[j + 4], c = in[j + 8];
    s.scale[j] = d * static_cast<float>(a & 63);
    s.minimum[j] = d_min * static_cast<float>(b & 63);
    s.scale[j + 4] = d * static_cast<float>((c & 15) | (a >> 6) << 4);
    s.minimum[j + 4] = d_min * static_cast<float>((c >> 4) | (b >> 6) << 4);
  }
  return s;
}

// [d:f16] [d_min:f16] [12 bytes of scales] [128 bytes: 4 groups of 32, low nibbles first]
void expand_q4_k(const Byte* __restrict in, float* __restrict out) {
  const ScalesAndMinima s = unpack_scales(in + 4, half_at(in), half_at(in + 2));
  for (int pair = 0; pair < 4; ++pair) {
    const Byte* __restrict q = in + 16 + 32 * pair;
    float* __restrict o = out + 64 * pair;
    const float low = s.scale[2 * pair], low_min = s.minimum[2 * pair];
    const float high = s.scale[2 * pair + 1], high_min = s.minimum[2 * pair + 1];
    for (int j = 0; j < 32; ++j) {
      o[j] = low * static_cast<float>(q[j] & 15) - low_min;
      o[j + 32] = high * static_cast<float>(q[j] >> 4) - high_min;
    }
  }
}

// [d:f16] [d_min:f16] [12 bytes of scales] [32 bytes: bit s is the fifth bit in sub-block s]
// [128 bytes as in q4_k]
void expand_q5_k(const Byte* __restrict in, float* __restrict out) {
  const ScalesAndMinima s = unpack_scales(in + 4, half_at(in), half_at(in + 2));
  const Byte* __restrict fifth = in + 16;
  for (int pair = 0; pair < 4; ++pair) {
    const Byte* __restrict q = in + 48 + 32 * pair;
    float* __restrict o = out + 64 * pair;
    const float low = s.scale[2 * pair], low_min = s.minimum[2 * pair];
    const float high = s.scale[2 * pair + 1], high_min = s.minimum[2 * pair + 1];
    for (int j = 0; j < 32; ++j) {
      const int bits = fifth[j] >> (2 * pair);
      o[j] = low * static_cast<float>((q[j] & 15) | (bits & 1) << 4) - low_min;
      o[j + 32] = high * static_cast<float>((q[j] >> 4) | (bits >> 1 & 1) << 4) - high_min;
    }
  }
}

// [128 bytes of low nibbles] [64 bytes of upper bit pairs] [16 × int8 scale] [d:f16], two halves of
// 128 elements, each four runs of 32; a scale covers 16 elements.
void expand_q6_k(const Byte* __restrict in, float* __restrict out) {
  const float d = half_at(in + 208);
  std::array<float, 16> scale;
  for (int j = 0; j < 16; ++j) {
    scale[j] = d * static_cast<float>(static_cast<std::int8_t>(in[192 + j]));
  }
  for (int half = 0; half < 2; ++half) {
    for (int run = 0; run < 4; ++run) {
      const Byte* __restrict low = in + 64 * half + 32 * (run & 1);
      const Byte* __restrict upper = in + 128 + 32 * half;
      float* __restrict o = out + 128 * half + 32 * run;
      const float* s = scale.data() + 8 * half + 2 * run;
      const int low_shift = run < 2 ? 0 : 4, upper_shift = 2 * run;
      for (int part = 0; part < 2; ++part) {
        const float part_scale = s[part];
        for (int j = 16 * part; j < 16 * part + 16; ++j) {
          const int q = (low[j] >> low_shift & 15) | (upper[j] >> upper_shift & 3) << 4;
          o[j] = part_scale * static_cast<float>(q - 32);
        }
      }
    }
  }
}

template <auto Expand, std::size_t Bytes, std::size_t Elements>
void expand_all(const Byte* in, std::size_t blocks, float* out) {
  for (std::size_t b = 0; b < blocks; ++b) Expand(in + b * Bytes, out + b * Elements);
}

}  // namespace

void expand_blocks(DType type, const std::uint8_t* in, std::size_t blocks, float* out) {
  switch (type) {
    case DType::q4_0:
      return expand_all<expand_q4_0, 18, 32>(in, blocks, out);
    case DType::q4_1:
      return expand_all<expand_q4_1, 20, 32>(in, blocks, out);
    case DType::q5_0:
      return expand_all<expand_q5_0, 22, 32>(in, blocks, out);
    case DType::q5_1:
      return expand_all<expand_q5_1, 24, 32>(in, blocks, out);
    case DType::q8_0:
      return expand_all<expand_q8_0, 34, 32>(in, blocks, out);
    case DType::q4_k:
      return expand_all<expand_q4_k, 144, 256>(in, blocks, out);
    case DType::q5_k:
      return expand_all<expand_q5_k, 176, 256>(in, blocks, out);
    case DType::q6_k:
      return expand_all<expand_q6_k, 210, 256>(in, blocks, out);
    default:
      fail("{} is no quantised type", dtype_name(type));
  }
}

}  // namespace lamina::files
