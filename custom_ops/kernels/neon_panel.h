// Integer sums of some panels on Arm, written once for all its instruction sets.
//
// V is an instruction set: how many units it takes at a time (`kUnitsPerFlush`), and how it adds them (`Add`).
// One that does so by `AddTiles` says how a unit of four rows meets T rows of activations (`AddUnit`), and of
// how many vectors the sums stay in registers (`Vectors`).
#ifndef BITNET_KERNELS_NEON_PANEL_H_
#define BITNET_KERNELS_NEON_PANEL_H_

#include "neon.h"
#include "neon_unpack.h"
#include "panel.h"

namespace bitnet {
namespace {

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Some units of one panel.
struct Chunk {
  const uint8_t* weight;
  int64_t first, units;
  const Digits* digits;
  int64_t rows;  // of activations
  Sums sums;
};

template <int Bits>
constexpr int64_t kUnitBytes = Bits / 2 * kBlockBytes;

// Adds a chunk's products for T rows of activations, from `row` on, and R vectors of rows of the panel.
template <class V, int Bits, int T, int R>
inline void AddTile(const Chunk& chunk, int64_t row, int64_t column) {
  typename V::template Sum<Bits, T> sum[R][T] = {};
  for (int64_t u = 0; u < chunk.units; ++u) {
    int8x16_t q[T];
    Repeat<T>([&](auto t) { q[t] = vld1q_s8(chunk.digits[row + t].q + (chunk.first + u) * kStep); });
    const uint8_t* words = chunk.weight + u * kUnitBytes<Bits> + 4 * column;
    Repeat<R>([&](auto r) { V::template AddUnit<Bits, T>(words + 4 * kVectorRows * r, q, sum[r]); });
  }
  Repeat<R>([&](auto r) {
    Repeat<T>([&](auto t) {
      int32_t* to = chunk.sums[row + t] + column + kVectorRows * r;
      vst1q_s32(to, vaddq_s32(vld1q_s32(to), V::Rows(sum[r][t])));
    });
  });
}

// All rows of activations from `row` on: T at a time, and the rest in halves of T.
template <class V, int Bits, int T>
void AddTiles(const Chunk& chunk, int64_t row) {
  constexpr int kVectors = V::Vectors(T);
  for (; row + T <= chunk.rows; row += T) {
    for (int64_t column = 0; column < kPanelRows; column += kVectors * kVectorRows) {
      AddTile<V, Bits, T, kVectors>(chunk, row, column);
    }
  }
  if constexpr (T > 1) {
    AddTiles<V, Bits, T / 2>(chunk, row);
  }
}

// The function that `IntegerPanels` asks for. Panels take turns chunk by chunk.
template <class V, int Bits>
void SumPanels(const Linear& linear, const Digits* digits, int64_t rows, PanelSet panels, UnitRange units,
               Sums sums) {
  const int64_t group_size = linear.attributes.group_size;
  const int64_t group = group_size == 0 ? 0 : units.first * kStep / group_size;
  for (int64_t i = 0; i < panels.count * rows; ++i) {
    const int32_t start = kBias<Bits> * digits[i % rows].sums[group];
    for (int64_t c = 0; c < kPanelRows; ++c) {
      sums[i][c] = start;
    }
  }
  constexpr int64_t kUnits = V::template kUnitsPerFlush<Bits>;
  for (int64_t at = units.first; at < units.last; at += kUnits) {
    for (int64_t p = 0; p < panels.count; ++p) {
      const uint8_t* weight = linear.weight + panels[p] * linear.panel_bytes + at * kUnitBytes<Bits>;
      V::template Add<Bits>({weight, at, Min(kUnits, units.last - at), digits, rows, sums + p * rows});
    }
  }
}

template <class V>
void ArmPanels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
  if (!linear.quantized()) {
    for (int64_t p = 0; p < panels.count; ++p) {
      FloatPanelNeon(linear, tokens, count, panels[p], y + p * count * kPanelRows);
    }
    return;
  }
  switch (linear.attributes.bits) {
    case 2:
      return IntegerPanels(linear, tokens, count, panels, y, SumPanels<V, 2>);
    case 4:
      return IntegerPanels(linear, tokens, count, panels, y, SumPanels<V, 4>);
    case 6:
      return IntegerPanels(linear, tokens, count, panels, y, SumPanels<V, 6>);
    default:
      return IntegerPanels(linear, tokens, count, panels, y, SumPanels<V, 8>);
  }
}

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_NEON_PANEL_H_
