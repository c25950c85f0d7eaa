// Vectors of 256 bits, a 32-bit word of each of eight rows: what the vector sets of this width share.
#ifndef BITNET_KERNELS_X86_256_H_
#define BITNET_KERNELS_X86_256_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bitnet {
namespace {

struct Vectors256 {
  using Int = __m256i;
  static constexpr int64_t kRows = 8;

  static Int Zero() { return _mm256_setzero_si256(); }
  static Int Bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Int Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Int And(Int a, Int b) { return _mm256_and_si256(a, b); }

  template <int Bits>
  static Int ShiftRight(Int a) {
    return Bits == 0 ? a : _mm256_srli_epi16(a, Bits);
  }

  // Four activations, in every 32-bit lane.
  static Int Four(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
  }

  // to[0 .. 7] = sums, or has them added.
  static void Store(Int sums, bool start, int32_t* to) {
    Int* at = reinterpret_cast<Int*>(to);
    _mm256_store_si256(at, start ? sums : _mm256_add_epi32(_mm256_load_si256(at), sums));
  }
};

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_X86_256_H_
