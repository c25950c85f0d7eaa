// What the Arm kernels share. All of it needs NEON only, which every 64-bit Arm processor has; the kernels
// differ in how they get the exact sums of one group.
#ifndef BITNET_KERNELS_NEON_H_
#define BITNET_KERNELS_NEON_H_

#include <arm_neon.h>

#include "bitlinear.h"

namespace bitnet {
namespace neon {

constexpr int64_t kQuadsPerUnit = kStep / 4;
constexpr int64_t kUnitBytes = kQuadsPerUnit * kPanelRows;  // 16 columns of a panel in one plane
constexpr int64_t kStripRows = 16;                          // rows of one vector of packed bytes

// One group of one panel.
struct Block {
  const uint8_t* weight;  // the panel in the first plane
  int64_t plane_bytes;
  int64_t first_unit, last_unit;  // the group's columns in units of 16; those beyond the group meet zeros
};

Block MakeBlock(const Linear& linear, int64_t panel, int64_t group);

using Sums = int32_t (*)[kPanelRows];

// sums[t][row] = (bias - zero point) * (sum of q): what is left when `sum of (raw - bias) * q` is added.
void StartSums(const Linear& linear, const Token* tokens, int64_t count, int64_t group, int64_t bias,
               Sums sums);

// sums[t][row] = sum of (raw - zero point) * q over one group, for 64 rows and up to kTokensPerItem tokens.
using SumGroup = void (*)(const Linear&, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                          Sums sums);
#if defined(BITNET_HAVE_DOTPROD)
void SumGroupDotprod(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                     Sums sums);
#endif

// The functions of `Kernels`. Within each 16 columns `Quantize` stores columns 0 4 8 12, 1 5 9 13, ...: the
// order in which a lane of `UnpackUnit` holds them.
void Normalize(const Linear& linear, const float* x, float* out);
void Quantize(const Linear& linear, const float* x, const Token& token);
void Panel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, SumGroup sum_group,
           float* y);

// Raw values of four planes do not fit in a signed byte: they are taken less this.
constexpr int64_t UnpackBias(int planes) { return planes == 4 ? 128 : 0; }

// One unit of 16 rows as signed bytes: a lane of code[i][v] holds columns i, 4 + i, 8 + i and 12 + i of one of
// the rows 4v .. 4v+3. Static: each file must have its own copy, with its own instructions.
template <int P>
static inline void UnpackUnit(const uint8_t* w, int64_t plane_bytes, int8x16_t code[4][4]) {
  uint8x16_t rows[P][4];
  for (int p = 0; p < P; ++p, w += plane_bytes) {
    const uint8x16_t w0 = vld1q_u8(w);
    const uint8x16_t w1 = vld1q_u8(w + kPanelRows);
    const uint8x16_t w2 = vld1q_u8(w + 2 * kPanelRows);
    const uint8x16_t w3 = vld1q_u8(w + 3 * kPanelRows);
    const uint16x8_t lo01 = vreinterpretq_u16_u8(vzip1q_u8(w0, w1));
    const uint16x8_t hi01 = vreinterpretq_u16_u8(vzip2q_u8(w0, w1));
    const uint16x8_t lo23 = vreinterpretq_u16_u8(vzip1q_u8(w2, w3));
    const uint16x8_t hi23 = vreinterpretq_u16_u8(vzip2q_u8(w2, w3));
    rows[p][0] = vreinterpretq_u8_u16(vzip1q_u16(lo01, lo23));
    rows[p][1] = vreinterpretq_u8_u16(vzip2q_u16(lo01, lo23));
    rows[p][2] = vreinterpretq_u8_u16(vzip1q_u16(hi01, hi23));
    rows[p][3] = vreinterpretq_u8_u16(vzip2q_u16(hi01, hi23));
  }
  for (int i = 0; i < 4; ++i) {
    const int8x16_t down = vdupq_n_s8(static_cast<int8_t>(-2 * i));
    for (int v = 0; v < 4; ++v) {
      uint8x16_t raw = vshlq_u8(rows[P - 1][v], down);
      for (int p = P - 2; p >= 0; --p) {
        raw = vsliq_n_u8(vshlq_u8(rows[p][v], down), raw, 2);
      }
      raw = P == 4 ? veorq_u8(raw, vdupq_n_u8(128)) : vandq_u8(raw, vdupq_n_u8((1 << (2 * P % 8)) - 1));
      code[i][v] = vreinterpretq_s8_u8(raw);
    }
  }
}

}  // namespace neon
}  // namespace bitnet

#endif  // BITNET_KERNELS_NEON_H_
