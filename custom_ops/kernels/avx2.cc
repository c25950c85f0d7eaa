// AVX2: `vpmaddubsw`, whose 16-bit sums are flushed to 32 bits before they could overflow.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "x86_panel.h"

namespace bitnet {
namespace {

struct Avx2 {
  using Int = __m256i;
  static constexpr int64_t kRows = 8;
  static constexpr bool kWholeBytes = false;
  // A sum gains at most 2 * 2 * 12 * 128 = 6144 from one unit: five of them stay below 2^15.
  static constexpr int64_t kUnitsPerCodeFlush = 5;

  // A sum gains at most 4 * 2 * kLargest * 128 from one unit.
  template <class D>
  static constexpr int64_t UnitsPerFlush() {
    return 32767 / (4 * 2 * D::kLargest * 128);
  }

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

  static Int Dot(Int sum, Int digits, Int q) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(digits, q));
  }

  // sum + quadruple / 4, which leaves no rest.
  static Int AddQuarter(Int sum, Int quadruple) { return _mm256_add_epi16(sum, _mm256_srai_epi16(quadruple, 2)); }

  static void Flush(Int sum, int shift, bool start, int32_t* to) {
    Int* at = reinterpret_cast<Int*>(to);
    const Int wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(static_cast<int16_t>(1 << shift)));
    _mm256_store_si256(at, start ? wide : _mm256_add_epi32(_mm256_load_si256(at), wide));
  }
};

}  // namespace

const Kernels kAvx2Kernels = {"avx2", NormalizeAvx2, QuantizeAvx2, X86Panels<Avx2>};

}  // namespace bitnet
