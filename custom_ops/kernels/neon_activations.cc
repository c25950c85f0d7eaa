// Activations on Arm: RMSNorm and quantization.
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "neon.h"

namespace bitnet {
namespace {

// Sixteen values from x[k], zeros beyond `count`.
float32x4x4_t Load16(const float* x, int64_t k, int64_t count) {
  float padded[kStep] = {};
  const float* from = x + k;
  if (k + kStep > count) {
    std::copy(x + k, x + count, padded);
    from = padded;
  }
  float32x4x4_t v;
  for (int i = 0; i < 4; ++i) {
    v.val[i] = vld1q_f32(from + 4 * i);
  }
  return v;
}

// The last step of `lanes16`.
float HalvesSum(const float32x4x4_t& lane) {
  const float32x4_t four = vaddq_f32(vaddq_f32(lane.val[0], lane.val[2]), vaddq_f32(lane.val[1], lane.val[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

}  // namespace

void NormalizeNeon(const Linear& linear, const float* x, float* out) {
  const int64_t count = linear.attributes.in_features;
  const float32x4_t zero = vdupq_n_f32(0.0f);  // the same start as the first square: no square is -0.0
  float32x4x4_t lane = {{zero, zero, zero, zero}};
  for (int64_t k = 0; k < count; k += kStep) {
    const float32x4x4_t v = Load16(x, k, count);
    for (int i = 0; i < 4; ++i) {
      lane.val[i] = vaddq_f32(lane.val[i], vmulq_f32(v.val[i], v.val[i]));
    }
  }
  const float mean = HalvesSum(lane) / static_cast<float>(count);
  const float inverse = 1.0f / std::sqrt(mean + linear.attributes.epsilon);
  for (int64_t k = 0; k < count; ++k) {
    out[k] = (x[k] * inverse) * linear.norm_weight[k];
  }
}

namespace {

// The largest |x| as bits: positive floats are ordered like their bits, with infinity and NaN on top.
uint32_t LargestMagnitude(const float* x, int64_t count) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int64_t k = 0; k < count; k += kStep) {
    const float32x4x4_t v = Load16(x, k, count);
    for (int i = 0; i < 4; ++i) {
      largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(v.val[i])));
    }
  }
  return vmaxvq_u32(largest);
}

// Sixteen rounded products as words; none leaves 16 bits.
int16x8x2_t Round16(const float* x, int64_t k, int64_t count, float factor) {
  const float32x4x4_t v = Load16(x, k, count);
  int16x4_t four[4];
  for (int i = 0; i < 4; ++i) {
    four[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v.val[i], factor)));
  }
  return {{vcombine_s16(four[0], four[1]), vcombine_s16(four[2], four[3])}};
}

// Stores 16 digits in the order of the words of the weights, and returns their sum.
int32_t Store(int8x8_t first, int8x8_t last, int8_t* to) {
  static const uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const int8x16_t q = vcombine_s8(first, last);
  vst1q_s8(to, vqtbl1q_s8(q, vld1q_u8(kOrder)));
  return vaddlvq_s8(q);
}

}  // namespace

void QuantizeNeon(const Linear& linear, const float* x, const Token& token) {
  const int64_t count = linear.attributes.in_features;
  const bool wide = linear.digits() == 2;
  const uint32_t bits = LargestMagnitude(x, count);
  const bool finite = bits < 0x7F800000u;
  const float magnitude = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(bits)), 0);
  const float factor = (wide ? kLargest16 : kLargest8) / std::max(magnitude, 1e-5f);
  *token.factor = finite ? factor : std::numeric_limits<float>::quiet_NaN();
  const int64_t group_size = linear.attributes.group_size == 0 ? count : linear.attributes.group_size;
  for (int64_t g = 0; g < linear.groups; ++g) {
    const int64_t begin = g * group_size;
    const int64_t end = begin + std::min(group_size, count - begin);
    int32_t sum = 0, low_sum = 0;
    for (int64_t k = begin; k < end; k += kStep) {
      const int16x8x2_t q =
          finite ? Round16(x, k, count, factor) : int16x8x2_t{{vdupq_n_s16(0), vdupq_n_s16(0)}};
      if (wide) {  // the low byte, and the rounded quotient by 256
        low_sum += Store(vmovn_s16(q.val[0]), vmovn_s16(q.val[1]), token.digits[1].q + k);
        sum += Store(vrshrn_n_s16(q.val[0], 8), vrshrn_n_s16(q.val[1], 8), token.digits[0].q + k);
      } else {
        sum += Store(vqmovn_s16(q.val[0]), vqmovn_s16(q.val[1]), token.digits[0].q + k);
      }
    }
    token.digits[0].sums[g] = sum;
    if (wide) {
      token.digits[1].sums[g] = low_sum;
    }
  }
}

}  // namespace bitnet
