// Packed weights as signed bytes, for all Arm kernels.
#ifndef BITNET_KERNELS_NEON_UNPACK_H_
#define BITNET_KERNELS_NEON_UNPACK_H_

#include <arm_neon.h>

#include "bitlinear.h"

namespace bitnet {
namespace {

constexpr int64_t kVectorRows = 4;  // whose words fill a vector

template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};

// Calls f(0) .. f(N - 1) with constants: a loop that no compiler can leave rolled, with its sums in memory.
template <int N, int I = 0, class F>
inline void Repeat(F f) {
  if constexpr (I < N) {
    f(Constant<I>());
    Repeat<N, I + 1>(f);
  }
}

// Raw values of eight bits do not fit in a signed byte: they are taken less this.
template <int Bits>
constexpr int32_t kBias = Bits == 8 ? 128 : 0;

// Four rows of one unit: to[i] holds columns i, 4 + i, 8 + i and 12 + i of each.
template <int Bits>
inline void Unpack(const uint8_t* words, int8x16_t to[4]) {
  uint8x16_t block[Bits / 2], raw[4];
  for (int b = 0; b < Bits / 2; ++b) {
    block[b] = vld1q_u8(words + b * kBlockBytes);
  }
  const uint8x16_t code = vdupq_n_u8(3), nibble = vdupq_n_u8(15), six = vdupq_n_u8(63), sign = vdupq_n_u8(128);
  if constexpr (Bits == 2) {
    raw[0] = vandq_u8(block[0], code);
    raw[1] = vandq_u8(vshrq_n_u8(block[0], 2), code);
    raw[2] = vandq_u8(vshrq_n_u8(block[0], 4), code);
    raw[3] = vshrq_n_u8(block[0], 6);
  } else if constexpr (Bits == 4) {
    raw[0] = vandq_u8(block[0], nibble);
    raw[1] = vshrq_n_u8(block[0], 4);
    raw[2] = vandq_u8(block[1], nibble);
    raw[3] = vshrq_n_u8(block[1], 4);
  } else if constexpr (Bits == 6) {
    // The upper two bits are moved to their place, and the lower four are inserted below them.
    raw[0] = vandq_u8(vsliq_n_u8(block[0], block[2], 4), six);
    raw[1] = vandq_u8(vsriq_n_u8(vshlq_n_u8(block[2], 2), block[0], 4), six);
    raw[2] = vandq_u8(vbslq_u8(nibble, block[1], block[2]), six);
    raw[3] = vsriq_n_u8(vshrq_n_u8(block[2], 2), block[1], 4);
  } else {
    for (int i = 0; i < 4; ++i) {
      raw[i] = veorq_u8(block[i], sign);
    }
  }
  for (int i = 0; i < 4; ++i) {
    to[i] = vreinterpretq_s8_u8(raw[i]);
  }
}

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_NEON_UNPACK_H_
