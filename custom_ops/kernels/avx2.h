// What the AVX2 kernels share: rows of packed weights in registers, and their digits.
//
// In the innermost loops every sum is a variable of its own, and the functions are not inlined: GCC moves the
// elements of arrays and structs to memory when loops that index them are unrolled, which costs a third of the
// speed.
#ifndef BITNET_KERNELS_AVX2_H_
#define BITNET_KERNELS_AVX2_H_

#include <immintrin.h>

#include <cstring>

#include "bitlinear.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define BITNET_NOINLINE __declspec(noinline)
#else
#define BITNET_NOINLINE __attribute__((noinline))
#endif

namespace bitnet {
namespace {

constexpr int64_t kUnitBytes = kStep / 4 * kPanelRows;  // 16 columns of a panel in one plane
constexpr int64_t kAhead =
    2048;  // bytes: hides the latency of memory, and the page ends at which hardware stops

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t Units(int64_t columns) { return (columns + kStep - 1) / kStep; }

// Four vectors that hold 32 rows, four bytes (or two words) each: rows 0..3 | 16..19, 4..7 | 20..23, 8..11
// | 24..27, 12..15 | 28..31.
struct Rows {
  __m256i a, b, c, d;
};

template <typename F>
inline Rows Each(const Rows& r, F f) {
  return {f(r.a), f(r.b), f(r.c), f(r.d)};
}

inline __m256i Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The four bytes that each of 32 rows has in 16 columns of a panel, side by side.
inline Rows Interleave(__m256i w0, __m256i w1, __m256i w2, __m256i w3) {
  const __m256i lo01 = _mm256_unpacklo_epi8(w0, w1);
  const __m256i hi01 = _mm256_unpackhi_epi8(w0, w1);
  const __m256i lo23 = _mm256_unpacklo_epi8(w2, w3);
  const __m256i hi23 = _mm256_unpackhi_epi8(w2, w3);
  return {_mm256_unpacklo_epi16(lo01, lo23), _mm256_unpackhi_epi16(lo01, lo23),
          _mm256_unpacklo_epi16(hi01, hi23), _mm256_unpackhi_epi16(hi01, hi23)};
}

inline void Prefetch(const uint8_t* w, int planes, int64_t plane_bytes) {
  for (int p = 0; p < planes; ++p) {
    for (int64_t line = 0; line < kUnitBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w + p * plane_bytes + line + kAhead), _MM_HINT_T0);
    }
  }
}

// A weight is a sum of digits: one plane (a code of two bits), or two planes merged (a nibble). `Unpack` gives
// the digits of 16 columns of 32 rows to `use(index, digits)`, index 0..3 standing for columns 4 index .. 4
// index + 3 as `quantize` stores the activations.
struct Code {
  static constexpr int kPlanes = 1;
  // A 16-bit sum gains at most 4 * 2 * 3 * 128 = 3072 from one unit: eight of them stay below 2^15.
  static constexpr int64_t kUnitsPerFlush = 8;

  template <typename F>
  static inline void Unpack(const uint8_t* w, int64_t, F use) {
    const Rows rows = Interleave(Load(w), Load(w + 64), Load(w + 128), Load(w + 192));
    const __m256i three = _mm256_set1_epi8(3);
    use(0, Each(rows, [&](__m256i r) { return _mm256_and_si256(r, three); }));
    use(1, Each(rows, [&](__m256i r) { return _mm256_and_si256(_mm256_srli_epi16(r, 2), three); }));
    use(2, Each(rows, [&](__m256i r) { return _mm256_and_si256(_mm256_srli_epi16(r, 4), three); }));
    use(3, Each(rows, [&](__m256i r) { return _mm256_and_si256(_mm256_srli_epi16(r, 6), three); }));
  }
};

struct Nibble {
  static constexpr int kPlanes = 2;
  // At most 4 * 2 * 15 * 128 = 15360 from one unit: two of them stay below 2^15.
  static constexpr int64_t kUnitsPerFlush = 2;

  template <typename F>
  static inline void Unpack(const uint8_t* w, int64_t plane_bytes, F use) {
    const __m256i low_pairs = _mm256_set1_epi8(0x33);
    const __m256i high_pairs = _mm256_set1_epi8(static_cast<char>(0xCC));
    const __m256i nibble = _mm256_set1_epi8(15);
    const auto even = [&](int64_t at) {  // columns 0 and 2 of each byte's four
      const __m256i high = _mm256_and_si256(Load(w + plane_bytes + at), low_pairs);
      return _mm256_or_si256(_mm256_and_si256(Load(w + at), low_pairs), _mm256_slli_epi16(high, 2));
    };
    const auto odd = [&](int64_t at) {  // columns 1 and 3
      const __m256i low = _mm256_and_si256(_mm256_srli_epi16(Load(w + at), 2), low_pairs);
      return _mm256_or_si256(low, _mm256_and_si256(Load(w + plane_bytes + at), high_pairs));
    };
    const auto lower = [&](__m256i r) { return _mm256_and_si256(r, nibble); };
    const auto upper = [&](__m256i r) { return _mm256_and_si256(_mm256_srli_epi16(r, 4), nibble); };
    const Rows evens = Interleave(even(0), even(64), even(128), even(192));
    use(0, Each(evens, lower));
    use(2, Each(evens, upper));
    const Rows odds = Interleave(odd(0), odd(64), odd(128), odd(192));
    use(1, Each(odds, lower));
    use(3, Each(odds, upper));
  }
};

// Four activations, in every 32-bit lane.
inline __m256i Activations(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

// Adds digits times activations to 16-bit sums, two of each row.
inline void Add(__m256i& sum, __m256i digits, __m256i q) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(digits, q));
}

inline void Flush(__m256i sum, __m256i weights, bool start, __m256i* to) {
  const __m256i wide = _mm256_madd_epi16(sum, weights);
  _mm256_store_si256(to, start ? wide : _mm256_add_epi32(_mm256_load_si256(to), wide));
}

// Adds `weights` times the 16-bit sums, two of a row together, to the 32-bit sums at `to`; or sets them.
inline void Flush(__m256i a, __m256i b, __m256i c, __m256i d, __m256i weights, bool start, Rows* to) {
  Flush(a, weights, start, &to->a);
  Flush(b, weights, start, &to->b);
  Flush(c, weights, start, &to->c);
  Flush(d, weights, start, &to->d);
}

// Calls use(digit type, first plane, weight) for every digit of the weights.
template <typename F>
inline void EachDigit(int64_t planes, F use) {
  int64_t plane = 0;
  int16_t weight = 1;
  for (; plane + 2 <= planes; plane += 2, weight = 16) {
    use(Nibble(), plane, weight);
  }
  if (plane < planes) {
    use(Code(), plane, weight);
  }
}

// Units [first, last) of one group.
struct Range {
  int64_t first, last;
};

inline Range UnitsOf(const Attributes& a, int64_t group) {
  if (a.group_size == 0) {
    return {0, Units(a.in_features)};
  }
  return {group * a.group_size / kStep, Units(Min((group + 1) * a.group_size, a.in_features))};
}

// Two times four floats side by side.
inline __m256 Join(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

// Step 5 for 32 rows of one token: y from the exact sums of a group. `scale` and `y` stand at the first row.
inline void Finish(const Linear& linear, const Token& token, int64_t group, const Rows& sums,
                   const float* scale, float* y) {
  const __m256i offset =
      _mm256_set1_epi32(static_cast<int32_t>(linear.attributes.zero_point) * token.sums[group]);
  const __m256 factor = _mm256_set1_ps(*token.factor);
  const auto eight = [&](__m256i low, __m256i high, int half, int64_t at) {
    const __m256i sum =
        half == 0 ? _mm256_permute2x128_si256(low, high, 0x20) : _mm256_permute2x128_si256(low, high, 0x31);
    const __m256 f = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
    const __m256 s = _mm256_loadu_ps(scale + at);
    if (linear.attributes.group_size == 0) {
      _mm256_storeu_ps(y + at, _mm256_mul_ps(f, _mm256_div_ps(s, factor)));
    } else {
      const __m256 product = _mm256_mul_ps(f, s);
      _mm256_storeu_ps(y + at, group == 0 ? product : _mm256_add_ps(_mm256_loadu_ps(y + at), product));
    }
  };
  eight(sums.a, sums.b, 0, 0);
  eight(sums.c, sums.d, 0, 8);
  eight(sums.a, sums.b, 1, 16);
  eight(sums.c, sums.d, 1, 24);
}

}  // namespace

// Prefill: many tokens on the groups [g0, g0 + groups) of one panel; scale[g - g0][row].
void ManyTokensAvx2(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t g0,
                    int64_t groups, const float scale[][kPanelRows], float* y);

}  // namespace bitnet

#endif  // BITNET_KERNELS_AVX2_H_
