// AVX2 prefill: the digits of a piece of a panel are unpacked once and meet all tokens of the work item.
#include "avx2.h"

namespace bitnet {
namespace {

// `quads` (a multiple of four) times four columns of unpacked digits of 32 rows meet two tokens.
BITNET_NOINLINE void Multiply2(const Rows* digits, int64_t quads, const int8_t* q0, const int8_t* q1,
                               __m256i weights, bool start, Rows* sums) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i a0 = zero, b0 = zero, c0 = zero, d0 = zero, a1 = zero, b1 = zero, c1 = zero, d1 = zero;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4  // without it every sum is copied once in each round
#endif
  for (int64_t quad = 0; quad < quads; ++quad) {
    const __m256i first = Activations(q0 + 4 * quad), second = Activations(q1 + 4 * quad);
    const __m256i a = digits[quad].a;
    Add(a0, a, first);
    Add(a1, a, second);
    const __m256i b = digits[quad].b;
    Add(b0, b, first);
    Add(b1, b, second);
    const __m256i c = digits[quad].c;
    Add(c0, c, first);
    Add(c1, c, second);
    const __m256i d = digits[quad].d;
    Add(d0, d, first);
    Add(d1, d, second);
  }
  Flush(a0, b0, c0, d0, weights, start, &sums[0]);
  Flush(a1, b1, c1, d1, weights, start, &sums[1]);
}

// Adds one digit of the units in `range` to the sums of all tokens.
template <typename Digit>
void MultiplyDigit(const uint8_t* w, int64_t plane_bytes, int16_t weight, Range range, const Token* tokens,
                   int64_t count, bool start, Rows* sums) {
  const __m256i weights = _mm256_set1_epi16(weight);
  Rows digits[Digit::kUnitsPerFlush * 4];
  for (int64_t unit = range.first; unit < range.last; unit += Digit::kUnitsPerFlush) {
    const int64_t units = Min(Digit::kUnitsPerFlush, range.last - unit);
    for (int64_t u = 0; u < units; ++u) {
      Digit::Unpack(w + (unit + u) * kUnitBytes, plane_bytes,
                    [&](int64_t index, const Rows& unpacked) { digits[4 * u + index] = unpacked; });
    }
    int64_t t = 0;
    for (; t < count; t += 2) {
      // A last token without a companion is its own; the second copy of its sums is never read.
      const int64_t other = Min(t + 1, count - 1);
      Multiply2(digits, 4 * units, tokens[t].q + unit * kStep, tokens[other].q + unit * kStep, weights, start,
                sums + t);
    }
    start = false;
  }
}

}  // namespace

void ManyTokensAvx2(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t g0,
                    int64_t groups, const float scale[][kPanelRows], float* y) {
  Rows sums[kTokensPerItem + 1];
  for (int64_t g = g0; g < g0 + groups; ++g) {
    const Range range = UnitsOf(linear.attributes, g);
    for (int half = 0; half < 2; ++half) {
      const uint8_t* panel_weights = linear.weight + panel * linear.quads * kPanelRows + half * 32;
      EachDigit(linear.attributes.planes, [&](auto digit, int64_t plane, int16_t weight) {
        MultiplyDigit<decltype(digit)>(panel_weights + plane * linear.plane_bytes, linear.plane_bytes, weight,
                                       range, tokens, count, plane == 0, sums);
      });
      for (int64_t t = 0; t < count; ++t) {
        Finish(linear, tokens[t], g, sums[t], scale[g - g0] + half * 32, y + t * kPanelRows + half * 32);
      }
    }
  }
}

}  // namespace bitnet
