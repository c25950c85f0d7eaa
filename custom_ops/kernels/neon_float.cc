// The panel with float activations, NEON.
#include "neon.h"
#include "neon_unpack.h"
#include "panel.h"

namespace bitnet {
namespace {

// lanes16 of x[k] * (raw - zero point) over the columns [begin, end) of one group, for four rows.
template <int Bits>
float32x4_t GroupSum(const Linear& linear, const Token& token, const uint8_t* words, int64_t begin,
                     int64_t end) {
  const int32x4_t zero = vdupq_n_s32(static_cast<int32_t>(linear.attributes.zero_point) - kBias<Bits>);
  float32x4_t lane[kStep];
  Repeat<kStep>([&](auto i) { lane[i] = vdupq_n_f32(-0.0f); });  // which changes nothing that is added to it
  for (int64_t k = begin; k < end; k += kStep) {
    int8x16_t weights[4];
    Unpack<Bits>(words + k / kStep * linear.unit_bytes, weights);
    Repeat<4>([&](auto i) {
      int32x4_t four = vreinterpretq_s32_s8(weights[i]);
      Repeat<4>([&](auto j) {
        const int column = 4 * j + i;
        const int32x4_t byte = vshrq_n_s32(vshlq_n_s32(four, 24), 24);
        four = vshrq_n_s32(four, 8);
        const float32x4_t weight = vcvtq_f32_s32(vsubq_s32(byte, zero));
        lane[column] = vaddq_f32(lane[column], vmulq_n_f32(weight, token.x[k + column]));
      });
    });
  }
  if (end % kStep != 0) {
    // Padding counts as +0.0, but its products can be -0.0.
    Repeat<kStep>([&](auto i) { lane[i] = vaddq_f32(lane[i], vdupq_n_f32(i < end % kStep ? -0.0f : 0.0f)); });
  }
  Repeat<8>([&](auto i) { lane[i] = vaddq_f32(lane[i], lane[i + 8]); });
  Repeat<4>([&](auto i) { lane[i] = vaddq_f32(lane[i], lane[i + 4]); });
  return vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3]));
}

template <int Bits>
void FloatPanel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  float copy[kPanelRows];
  const float* scale = PanelScales(linear, panel, copy);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t c = 0; c < kPanelRows; c += kVectorRows) {
      const uint8_t* words = linear.weight + panel * linear.panel_bytes + 4 * c;
      float* out = y + t * kPanelRows + c;
      for (int64_t g = 0; g < linear.groups; ++g) {
        const int64_t begin = g * linear.attributes.group_size;
        const int64_t rest = linear.attributes.in_features - begin;
        const bool last = g + 1 == linear.groups;
        const int64_t end = begin + (last ? rest : linear.attributes.group_size);
        const float32x4_t sum = GroupSum<Bits>(linear, tokens[t], words, begin, end);
        const float32x4_t product = vmulq_f32(sum, vld1q_f32(scale + g * kPanelRows + c));
        vst1q_f32(out, g == 0 ? product : vaddq_f32(vld1q_f32(out), product));
      }
    }
  }
}

}  // namespace

void FloatPanelNeon(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  switch (linear.attributes.bits) {
    case 2:
      return FloatPanel<2>(linear, tokens, count, panel, y);
    case 4:
      return FloatPanel<4>(linear, tokens, count, panel, y);
    case 6:
      return FloatPanel<6>(linear, tokens, count, panel, y);
    default:
      return FloatPanel<8>(linear, tokens, count, panel, y);
  }
}

}  // namespace bitnet
