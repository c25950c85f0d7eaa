// Dot products (FEAT_DotProd): `sdot` of four columns of four rows with four activations.
//
// Only intrinsics and static functions here, for the reason given in avx2.cc.
#include "neon.h"

namespace bitnet {
namespace neon {
namespace {

constexpr int64_t kChunkUnits = 16;   // units that are unpacked at a time: 4 KiB of one strip
constexpr int64_t kUnpackTokens = 8;  // from so many tokens on, unpacking once beats unpacking for each tile

// Where a tile finds the bytes of one unit and strip: in the packed planes, or in a buffer.
template <int P>
struct Packed {
  Block block;

  void Load(int64_t unit, int64_t row, int8x16_t code[4][4]) const {
    UnpackUnit<P>(block.weight + unit * kUnitBytes + row, block.plane_bytes, code);
  }
};

struct Unpacked {
  const int8_t* bytes;
  int64_t first_unit;

  void Load(int64_t unit, int64_t, int8x16_t code[4][4]) const {
    const int8_t* from = bytes + (unit - first_unit) * kStep * kStripRows;
    for (int i = 0; i < 4; ++i) {
      for (int v = 0; v < 4; ++v) {
        code[i][v] = vld1q_s8(from + 64 * i + 16 * v);
      }
    }
  }
};

template <int T, int I>
inline void AddColumns(const int8x16_t code[4][4], const int8x16_t q[T], int32x4_t sum[T][4]) {
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < 4; ++v) {
      sum[t][v] = vdotq_laneq_s32(sum[t][v], code[I][v], q[t], I);
    }
  }
}

// Adds units [first, last) for T tokens and R strips of 16 rows from `row` on.
template <int T, int R, class Source>
void AddTile(const Source& source, const Token* tokens, int64_t first, int64_t last, int64_t row, Sums sums) {
  int32x4_t sum[R][T][4];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      for (int v = 0; v < 4; ++v) {
        sum[r][t][v] = vld1q_s32(sums[t] + row + r * kStripRows + 4 * v);
      }
    }
  }
  for (int64_t unit = first; unit < last; ++unit) {
    int8x16_t q[T];
    for (int t = 0; t < T; ++t) {
      q[t] = vld1q_s8(tokens[t].q + unit * kStep);
    }
    for (int r = 0; r < R; ++r) {
      int8x16_t code[4][4];
      source.Load(unit, row + r * kStripRows, code);
      AddColumns<T, 0>(code, q, sum[r]);
      AddColumns<T, 1>(code, q, sum[r]);
      AddColumns<T, 2>(code, q, sum[r]);
      AddColumns<T, 3>(code, q, sum[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      for (int v = 0; v < 4; ++v) {
        vst1q_s32(sums[t] + row + r * kStripRows + 4 * v, sum[r][t][v]);
      }
    }
  }
}

// A tile is T tokens and 64 / T rows: sixteen sums in registers.
template <int T, int P>
void AddPacked(const Block& block, const Token* tokens, Sums sums) {
  constexpr int kTileStrips = 4 / T;
  for (int64_t row = 0; row < kPanelRows; row += kTileStrips * kStripRows) {
    AddTile<T, kTileStrips>(Packed<P>{block}, tokens, block.first_unit, block.last_unit, row, sums);
  }
}

template <int P>
void SumPacked(const Block& block, const Token* tokens, int64_t count, Sums sums) {
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    AddPacked<4, P>(block, tokens + t, sums + t);
  }
  for (; t + 2 <= count; t += 2) {
    AddPacked<2, P>(block, tokens + t, sums + t);
  }
  if (t < count) {
    AddPacked<1, P>(block, tokens + t, sums + t);
  }
}

template <int P>
void SumUnpacked(const Block& block, const Token* tokens, int64_t count, Sums sums) {
  alignas(64) int8_t bytes[kChunkUnits * kStep * kStripRows];
  for (int64_t first = block.first_unit; first < block.last_unit; first += kChunkUnits) {
    const int64_t last = first + kChunkUnits < block.last_unit ? first + kChunkUnits : block.last_unit;
    const Unpacked source{bytes, first};
    for (int64_t row = 0; row < kPanelRows; row += kStripRows) {
      for (int64_t unit = first; unit < last; ++unit) {
        int8x16_t code[4][4];
        UnpackUnit<P>(block.weight + unit * kUnitBytes + row, block.plane_bytes, code);
        int8_t* to = bytes + (unit - first) * kStep * kStripRows;
        for (int i = 0; i < 4; ++i) {
          for (int v = 0; v < 4; ++v) {
            vst1q_s8(to + 64 * i + 16 * v, code[i][v]);
          }
        }
      }
      int64_t t = 0;
      for (; t + 4 <= count; t += 4) {
        AddTile<4, 1>(source, tokens + t, first, last, row, sums + t);
      }
      for (; t < count; ++t) {
        AddTile<1, 1>(source, tokens + t, first, last, row, sums + t);
      }
    }
  }
}

template <int P>
void SumPlanes(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
               Sums sums) {
  const Block block = MakeBlock(linear, panel, group);
  StartSums(linear, tokens, count, group, UnpackBias(P), sums);
  if (count < kUnpackTokens) {
    SumPacked<P>(block, tokens, count, sums);
  } else {
    SumUnpacked<P>(block, tokens, count, sums);
  }
}

void PanelDotprod(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  Panel(linear, tokens, count, panel, SumGroupDotprod, y);
}

}  // namespace

void SumGroupDotprod(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                     Sums sums) {
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

}  // namespace neon

const Kernels kDotprodKernels = {"dotprod", neon::Normalize, neon::Quantize, neon::PanelDotprod};

}  // namespace bitnet
