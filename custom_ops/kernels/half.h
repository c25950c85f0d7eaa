// IEEE 754 binary16 and back. Widening is exact, narrowing rounds to nearest even.
#ifndef BITNET_KERNELS_HALF_H_
#define BITNET_KERNELS_HALF_H_

#include <cstdint>
#include <cstring>

namespace bitnet {

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t fraction = half & 0x3FFu;
  uint32_t bits;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal or zero, exact
    std::memcpy(&bits, &magnitude, sizeof bits);
  } else if (exponent == 31) {
    bits = 0x7F800000u | (fraction << 13);
  } else {
    bits = ((exponent + 112) << 23) | (fraction << 13);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint16_t FloatToHalf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) {
    return static_cast<uint16_t>(sign | 0x7E00u);
  }
  if (bits >= 0x47800000u) {  // 2^16 and above
    return static_cast<uint16_t>(sign | 0x7C00u);
  }
  if (bits < 0x38800000u) {  // below 2^-14: the last place of a sum with 0.5 is the unit of a subnormal half
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  bits += 0xFFFu + ((bits >> 13) & 1u);  // a carry moves into the exponent, up to infinity
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

}  // namespace bitnet

#endif  // BITNET_KERNELS_HALF_H_
