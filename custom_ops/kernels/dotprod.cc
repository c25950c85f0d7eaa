// Dot products (FEAT_DotProd): `sdot` of four columns of four rows with four activations.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include <type_traits>

#include "neon_panel.h"

namespace bitnet {
namespace {

// Sums of two-bit weights that were left where they stand in their bytes: worth 1, 4 and 16.
struct Places {
  int32x4_t one, four, sixteen;
};

struct Dotprod {
  // More rows of activations share the shifts; one alone does without.
  template <int Bits, int T>
  using Sum = std::conditional_t<Bits == 2 && T == 1, Places, int32x4_t>;

  static int32x4_t Rows(int32x4_t sum) { return sum; }
  static int32x4_t Rows(const Places& sum) {
    return vaddq_s32(sum.one, vaddq_s32(vshrq_n_s32(sum.four, 2), vshrq_n_s32(sum.sixteen, 4)));
  }

  // Sums of 32 bits would bear far more, and those of `Places` too: 8 KiB stay in the cache for all strips.
  template <int Bits>
  static constexpr int64_t kUnitsPerFlush = 8192 / kUnitBytes<Bits>;

  static constexpr int Vectors(int rows) { return rows == 8 ? 2 : 4; }

  template <int Bits, int T>
  static void AddUnit(const uint8_t* words, const int8x16_t q[T], int32x4_t sum[T]) {
    int8x16_t weights[4];
    Unpack<Bits>(words, weights);
    Repeat<T>(
        [&](auto t) { Repeat<4>([&](auto i) { sum[t] = vdotq_laneq_s32(sum[t], weights[i], q[t], i); }); });
  }

  template <int Bits, int T>
  static void AddUnit(const uint8_t* words, const int8x16_t q[1], Places sum[1]) {
    const uint8x16_t codes = vld1q_u8(words);
    const auto masked = [codes](uint8_t mask) {
      return vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(mask)));
    };
    sum->one = vdotq_laneq_s32(sum->one, masked(3), q[0], 0);
    sum->four = vdotq_laneq_s32(sum->four, masked(3 << 2), q[0], 1);
    sum->sixteen = vdotq_laneq_s32(sum->sixteen, masked(3 << 4), q[0], 2);
    sum->one = vdotq_laneq_s32(sum->one, vreinterpretq_s8_u8(vshrq_n_u8(codes, 6)), q[0], 3);
  }

  template <int Bits>
  static void Add(const Chunk& chunk) {
    AddTiles<Dotprod, Bits, 8>(chunk, 0);
  }
};

}  // namespace

const Kernels kDotprodKernels = {"dotprod", NormalizeNeon, QuantizeNeon, ArmPanels<Dotprod>};

}  // namespace bitnet
