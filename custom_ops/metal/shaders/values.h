// Values that are float or half in memory, and what several kernels do with them.
#ifndef BITNET_METAL_SHADERS_VALUES_H_
#define BITNET_METAL_SHADERS_VALUES_H_

#include "constants.h"

inline float load_value(device const uchar* values, ulong index) {
  if (kHalf) {
    return float(((device const half*)values)[index]);
  }
  return ((device const float*)values)[index];
}

inline void store_value(device uchar* values, ulong index, float value) {
  if (kHalf) {
    ((device half*)values)[index] = half(value);
  } else {
    ((device float*)values)[index] = value;
  }
}

// By its bits: compilers that assume finite values drop isfinite().
inline bool is_finite(float x) { return (as_type<uint>(x) & 0x7F800000u) != 0x7F800000u; }

inline float not_a_number() { return as_type<float>(0x7FC00000u); }

// The end of `lanes16` (docs/operator.md): lane i of each half of a SIMD group holds the sum of lane i % 16.
inline float fold16(float sum) {
  sum = sum + simd_shuffle_xor(sum, 8);
  sum = sum + simd_shuffle_xor(sum, 4);
  sum = sum + simd_shuffle_xor(sum, 2);
  return sum + simd_shuffle_xor(sum, 1);
}

// `lanes16` of x - shift, or of its squares, over one row. Every lane of the SIMD group calls it; both its
// halves form the same sums.
inline float lanes16(device const uchar* x, ulong first, uint width, float shift, bool squares, uint lane) {
  float sum = 0.0f;
  for (uint k = lane % 16; k < (width + 15) / 16 * 16; k += 16) {
    float value = k < width ? load_value(x, first + k) - shift : 0.0f;
    if (squares) {
      value = value * value;
    }
    sum = k < 16 ? value : sum + value;
  }
  return fold16(sum);
}

// The end of the sums of 8 lanes of docs/attention.md, for each eight lanes of a SIMD group.
inline float fold8(float sum) {
  sum = sum + simd_shuffle_xor(sum, 4);
  sum = sum + simd_shuffle_xor(sum, 2);
  return sum + simd_shuffle_xor(sum, 1);
}

#endif  // BITNET_METAL_SHADERS_VALUES_H_
