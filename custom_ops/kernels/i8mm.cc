// Matrix products (FEAT_I8MM): `smmla` of eight columns of two rows with two rows of activations, for prefill.
// A few tokens are left to the dot products, which do not compute for absent ones.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "neon_panel.h"

namespace bitnet {
namespace {

constexpr int64_t kManyRows = 8;  // rows of activations from which on unpacking once pays
constexpr int kTileRows = 4;      // of activations
constexpr int kStripRows = 16;
constexpr int kPairs = kStripRows / 2;
constexpr int64_t kUnits = 16;  // that are unpacked at a time: 4 KiB of one strip

// One unit of one strip: for each half of the columns (0, 4, 8, 12, 1, 5, 9, 13 and the rest) eight pairs of
// rows.
template <int Bits>
void UnpackPairs(const uint8_t* words, int8_t* to) {
  for (int64_t v = 0; v < kStripRows / kVectorRows; ++v, to += 32) {
    int8x16_t weights[4];
    Unpack<Bits>(words + 4 * kVectorRows * v, weights);
    for (int64_t half = 0; half < 2; ++half) {
      const int32x4_t left = vreinterpretq_s32_s8(weights[2 * half]);
      const int32x4_t right = vreinterpretq_s32_s8(weights[2 * half + 1]);
      vst1q_s8(to + 16 * kPairs * half, vreinterpretq_s8_s32(vzip1q_s32(left, right)));
      vst1q_s8(to + 16 * kPairs * half + 16, vreinterpretq_s8_s32(vzip2q_s32(left, right)));
    }
  }
}

inline int8x16_t Interleave(int8x16_t even, int8x16_t odd, int half) {
  const int64x2_t a = vreinterpretq_s64_s8(even), b = vreinterpretq_s64_s8(odd);
  return vreinterpretq_s8_s64(half == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b));
}

// Adds unpacked units to the sums of four rows of activations and 16 rows of the panel. q[t] and sums[t] may be
// the same for several t.
void AddPairs(const int8_t* bytes, int64_t units, const int8_t* const q[kTileRows],
              int32_t* const sums[kTileRows]) {
  int32x4_t sum[2][kPairs];  // two rows (high half) by two rows of activations (low bit)
  Repeat<2>([&](auto s) {
    Repeat<kPairs / 2>([&](auto v) {
      const int32x4_t even = vld1q_s32(sums[2 * s] + 4 * v);
      const int32x4_t odd = vld1q_s32(sums[2 * s + 1] + 4 * v);
      sum[s][2 * v] = vzip1q_s32(even, odd);
      sum[s][2 * v + 1] = vzip2q_s32(even, odd);
    });
  });
  for (int64_t u = 0; u < units; ++u) {
    int8x16_t row[kTileRows];
    Repeat<kTileRows>([&](auto t) { row[t] = vld1q_s8(q[t] + u * kStep); });
    Repeat<2>([&](auto half) {
      const int8x16_t first = Interleave(row[0], row[1], half), second = Interleave(row[2], row[3], half);
      Repeat<kPairs>([&](auto r) {
        const int8x16_t pair = vld1q_s8(bytes + 16 * ((2 * u + half) * kPairs + r));
        sum[0][r] = vmmlaq_s32(sum[0][r], pair, first);
        sum[1][r] = vmmlaq_s32(sum[1][r], pair, second);
      });
    });
  }
  Repeat<2>([&](auto s) {
    Repeat<kPairs / 2>([&](auto v) {
      vst1q_s32(sums[2 * s] + 4 * v, vuzp1q_s32(sum[s][2 * v], sum[s][2 * v + 1]));
      vst1q_s32(sums[2 * s + 1] + 4 * v, vuzp2q_s32(sum[s][2 * v], sum[s][2 * v + 1]));
    });
  });
}

struct I8mm {
  template <int Bits>
  static constexpr int64_t kUnitsPerFlush = kUnits;

  template <int Bits>
  static void Add(const Chunk& chunk) {
    alignas(64) int8_t bytes[kUnits * kStep * kStripRows];
    for (int64_t column = 0; column < kPanelRows; column += kStripRows) {
      for (int64_t u = 0; u < chunk.units; ++u) {
        UnpackPairs<Bits>(chunk.weight + u * kUnitBytes<Bits> + 4 * column, bytes + u * kStep * kStripRows);
      }
      for (int64_t row = 0; row < chunk.rows; row += kTileRows) {
        // Beyond the last row the last one is computed again: the same sums are stored twice.
        const int8_t* q[kTileRows];
        int32_t* sums[kTileRows];
        for (int64_t t = 0; t < kTileRows; ++t) {
          const int64_t at = Min(row + t, chunk.rows - 1);
          q[t] = chunk.digits[at].q + chunk.first * kStep;
          sums[t] = chunk.sums[at] + column;
        }
        AddPairs(bytes, chunk.units, q, sums);
      }
    }
  }
};

void Panels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
  const bool many = count * linear.digits() >= kManyRows;
  (many ? ArmPanels<I8mm> : kDotprodKernels.panels)(linear, tokens, count, panels, y);
}

}  // namespace

const Kernels kI8mmKernels = {"i8mm", NormalizeNeon, QuantizeNeon, Panels};

}  // namespace bitnet
