// NEON without dot products: `smlal` of bytes into 16-bit sums, which are flushed to 32 bits before they could
// overflow.
#include <type_traits>

#include "neon_panel.h"

namespace bitnet {
namespace {

// The products of four rows, those of the first two and those of the last two.
struct Sums16 {
  int16x8_t first, last;
};
struct Sums32 {
  int32x4_t first, last;
};

inline void AddProducts(int8x16_t weights, int8x16_t q, Sums16& sum) {
  sum.first = vmlal_s8(sum.first, vget_low_s8(weights), vget_low_s8(q));
  sum.last = vmlal_high_s8(sum.last, weights, q);
}

inline void AddProducts(int8x16_t weights, int8x16_t q, Sums32& sum) {
  sum.first = vpadalq_s16(sum.first, vmull_s8(vget_low_s8(weights), vget_low_s8(q)));
  sum.last = vpadalq_s16(sum.last, vmull_high_s8(weights, q));
}

template <int I>
inline int8x16_t Four(int8x16_t q) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(q), I));
}

struct Neon {
  // Two products of eight bits can leave 16 bits: -128 times -128, twice.
  template <int Bits, int T>
  using Sum = std::conditional_t<Bits == 8, Sums32, Sums16>;

  static int32x4_t Rows(const Sums16& sum) { return vpaddq_s32(vpaddlq_s16(sum.first), vpaddlq_s16(sum.last)); }
  static int32x4_t Rows(const Sums32& sum) { return vpaddq_s32(sum.first, sum.last); }

  // A sum of 16 bits gains at most 4 * 128 times the largest weight from one unit.
  template <int Bits>
  static constexpr int64_t kUnitsPerFlush = Bits == 8 ? 16 : 32767 / (4 * 128 * ((1 << Bits) - 1));

  static constexpr int Vectors(int rows) { return rows == 1 ? 4 : 8 / rows; }

  template <int Bits, int T>
  static void AddUnit(const uint8_t* words, const int8x16_t q[T], Sum<Bits, T> sum[T]) {
    int8x16_t weights[4];
    Unpack<Bits>(words, weights);
    Repeat<T>([&](auto t) { Repeat<4>([&](auto i) { AddProducts(weights[i], Four<i>(q[t]), sum[t]); }); });
  }

  template <int Bits>
  static void Add(const Chunk& chunk) {
    AddTiles<Neon, Bits, 4>(chunk, 0);
  }
};

}  // namespace

const Kernels kNeonKernels = {"neon", NormalizeNeon, QuantizeNeon, ArmPanels<Neon>};

}  // namespace bitnet
