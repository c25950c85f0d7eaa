// The panel with float activations, NEON.
#include "neon.h"
#include "neon_unpack.h"
#include "panel.h"

namespace bitnet {
namespace {

// lanes16 of x[k] * (raw - zero point) over the columns of one group, for four rows.
template <int Bits>
void GroupSum(const Linear& linear, const Token& token, const uint8_t* words, ColumnRange columns, float* f) {
  const int64_t begin = columns.begin, end = columns.end;
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
  vst1q_f32(f, vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3])));
}

}  // namespace

void FloatPanelNeon(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  switch (linear.attributes.bits) {
    case 2:
      return FloatPanel<kVectorRows>(linear, tokens, count, panel, y, GroupSum<2>);
    case 4:
      return FloatPanel<kVectorRows>(linear, tokens, count, panel, y, GroupSum<4>);
    case 6:
      return FloatPanel<kVectorRows>(linear, tokens, count, panel, y, GroupSum<6>);
    default:
      return FloatPanel<kVectorRows>(linear, tokens, count, panel, y, GroupSum<8>);
  }
}

}  // namespace bitnet
