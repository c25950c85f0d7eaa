// Vectors of 512 bits, a 32-bit word of each of sixteen rows: what the vector sets of this width share.
#ifndef BITNET_KERNELS_X86_512_H_
#define BITNET_KERNELS_X86_512_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bitnet {
namespace {

struct Vectors512 {
  using Int = __m512i;
  static constexpr int64_t kRows = 16;

  static Int Zero() { return _mm512_setzero_si512(); }
  static Int Bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Int Load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Int And(Int a, Int b) { return _mm512_and_si512(a, b); }

  template <int Bits>
  static Int ShiftRight(Int a) {
    return Bits == 0 ? a : _mm512_srli_epi16(a, Bits);
  }

  // Four activations, in every 32-bit lane.
  static Int Four(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
  }

  // to[0 .. 15] = sums, or has them added.
  static void Store(Int sums, bool start, int32_t* to) {
    _mm512_store_si512(to, start ? sums : _mm512_add_epi32(_mm512_load_si512(to), sums));
  }
};

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_X86_512_H_
