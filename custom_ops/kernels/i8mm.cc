// Matrix products (FEAT_I8MM): `smmla` of eight columns of two rows with two tokens, for prefill. A few tokens
// are left to the dot products, which do not compute for absent ones.
//
// Only intrinsics and static functions here, for the reason given in avx2.cc.
#include "neon.h"

namespace bitnet {
namespace neon {
namespace {

constexpr int64_t kChunkUnits = 16;  // units that are unpacked at a time: 4 KiB of one strip
constexpr int64_t kTileTokens = 4;
constexpr int64_t kFewTokens = 7;  // so many are left to the dot products
constexpr int kRowPairs = 8;       // of one strip

// One unit of 16 rows: pair[h][r] holds eight columns of row 2r, then of row 2r + 1, in the order of token.q.
template <int P>
void UnpackPairs(const uint8_t* w, int64_t plane_bytes, int8_t* to) {
  int8x16_t code[4][4];
  UnpackUnit<P>(w, plane_bytes, code);
  for (int half = 0; half < 2; ++half) {
    for (int v = 0; v < 4; ++v, to += 32) {
      const int32x4_t left = vreinterpretq_s32_s8(code[2 * half][v]);
      const int32x4_t right = vreinterpretq_s32_s8(code[2 * half + 1][v]);
      vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(left, right)));
      vst1q_s8(to + 16, vreinterpretq_s8_s32(vzip2q_s32(left, right)));
    }
  }
}

// Adds `units` unpacked units to the sums of four tokens and 16 rows. q[t] and sums[t] may be the same for
// several t.
void AddTile(const int8_t* bytes, int64_t units, const int8_t* const q[kTileTokens],
             int32_t* const sums[kTileTokens]) {
  int32x4_t sum[2][kRowPairs];  // two rows (high half) by two tokens (low bit)
  for (int s = 0; s < 2; ++s) {
    for (int v = 0; v < 4; ++v) {
      const int32x4_t even = vld1q_s32(sums[2 * s] + 4 * v);
      const int32x4_t odd = vld1q_s32(sums[2 * s + 1] + 4 * v);
      sum[s][2 * v] = vzip1q_s32(even, odd);
      sum[s][2 * v + 1] = vzip2q_s32(even, odd);
    }
  }
  for (int64_t unit = 0; unit < units; ++unit) {
    int64x2_t token[kTileTokens];
    for (int t = 0; t < kTileTokens; ++t) {
      token[t] = vreinterpretq_s64_s8(vld1q_s8(q[t] + unit * kStep));
    }
    const int8x16_t pair[2][2] = {{vreinterpretq_s8_s64(vzip1q_s64(token[0], token[1])),
                                   vreinterpretq_s8_s64(vzip1q_s64(token[2], token[3]))},
                                  {vreinterpretq_s8_s64(vzip2q_s64(token[0], token[1])),
                                   vreinterpretq_s8_s64(vzip2q_s64(token[2], token[3]))}};
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < kRowPairs; ++r, bytes += 16) {
        const int8x16_t rows = vld1q_s8(bytes);
        for (int s = 0; s < 2; ++s) {
          sum[s][r] = vmmlaq_s32(sum[s][r], rows, pair[half][s]);
        }
      }
    }
  }
  for (int s = 0; s < 2; ++s) {
    for (int v = 0; v < 4; ++v) {
      vst1q_s32(sums[2 * s] + 4 * v, vuzp1q_s32(sum[s][2 * v], sum[s][2 * v + 1]));
      vst1q_s32(sums[2 * s + 1] + 4 * v, vuzp2q_s32(sum[s][2 * v], sum[s][2 * v + 1]));
    }
  }
}

template <int P>
void SumPlanes(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
               Sums sums) {
  const Block block = MakeBlock(linear, panel, group);
  StartSums(linear, tokens, count, group, UnpackBias(P), sums);
  alignas(64) int8_t bytes[kChunkUnits * kStep * kStripRows];
  for (int64_t first = block.first_unit; first < block.last_unit; first += kChunkUnits) {
    const int64_t left = block.last_unit - first;
    const int64_t units = left < kChunkUnits ? left : kChunkUnits;
    for (int64_t row = 0; row < kPanelRows; row += kStripRows) {
      for (int64_t u = 0; u < units; ++u) {
        UnpackPairs<P>(block.weight + (first + u) * kUnitBytes + row, block.plane_bytes,
                       bytes + u * kStep * kStripRows);
      }
      for (int64_t t = 0; t < count; t += kTileTokens) {
        // Beyond the last token the last one is computed again: the same sums are stored twice.
        const int8_t* q[kTileTokens];
        int32_t* out[kTileTokens];
        for (int64_t i = 0; i < kTileTokens; ++i) {
          const int64_t token = t + i < count ? t + i : count - 1;
          q[i] = tokens[token].q + first * kStep;
          out[i] = sums[token] + row;
        }
        AddTile(bytes, units, q, out);
      }
    }
  }
}

void SumGroupI8mm(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                  Sums sums) {
  if (count <= kFewTokens) {
    return SumGroupDotprod(linear, tokens, count, panel, group, sums);
  }
  switch (linear.attributes.planes) {
    case 1:
      return SumPlanes<1>(linear, tokens, count, panel, group, sums);
    case 2:
      return SumPlanes<2>(linear, tokens, count, panel, group, sums);
    case 3:
      return SumPlanes<3>(linear, tokens, count, panel, group, sums);
    default:
      return SumPlanes<4>(linear, tokens, count, panel, group, sums);
  }
}

void PanelI8mm(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  Panel(linear, tokens, count, panel, SumGroupI8mm, y);
}

}  // namespace
}  // namespace neon

const Kernels kI8mmKernels = {"i8mm", neon::Normalize, neon::Quantize, neon::PanelI8mm};

}  // namespace bitnet
