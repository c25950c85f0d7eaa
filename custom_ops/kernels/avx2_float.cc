// The panel with float activations, AVX2.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include <immintrin.h>

#include "avx2.h"
#include "panel.h"

namespace bitnet {
namespace {

__m256i Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Raw values of eight rows as four bytes of a 32-bit lane: columns i, 4 + i, 8 + i and 12 + i of one unit.
__m256i RawBytes(const uint8_t* words, int64_t bits, int64_t i) {
  const __m128i down_code = _mm_cvtsi32_si128(static_cast<int>(2 * i));
  const __m128i down_nibble = _mm_cvtsi32_si128(static_cast<int>(i % 2 * 4));
  if (bits == 2) {
    return _mm256_and_si256(_mm256_srl_epi16(Load(words), down_code), _mm256_set1_epi8(3));
  }
  if (bits == 8) {
    return Load(words + i * kBlockBytes);
  }
  const __m256i pair = Load(words + i / 2 * kBlockBytes);
  const __m256i nibble = _mm256_and_si256(_mm256_srl_epi16(pair, down_nibble), _mm256_set1_epi8(15));
  if (bits == 4) {
    return nibble;
  }
  const __m256i upper = Load(words + 2 * kBlockBytes);
  const __m256i code = _mm256_and_si256(_mm256_srl_epi16(upper, down_code), _mm256_set1_epi8(3));
  return _mm256_or_si256(nibble, _mm256_slli_epi16(code, 4));
}

// lanes16 of x[k] * (raw - zero point) over the columns of one group, for eight rows.
void GroupSum(const Linear& linear, const Token& token, const uint8_t* words, ColumnRange columns, float* f) {
  const int64_t begin = columns.begin, end = columns.end;
  const __m256i zero_point = _mm256_set1_epi32(static_cast<int32_t>(linear.attributes.zero_point));
  const __m256i byte = _mm256_set1_epi32(255);
  __m256 lane[kStep];
  for (int64_t k = begin; k < end; k += kStep) {
    const uint8_t* unit = words + k / kStep * linear.unit_bytes;
    for (int64_t i = 0; i < 4; ++i) {
      __m256i raw = RawBytes(unit, linear.attributes.bits, i);
      for (int64_t column = i; column < kStep; column += 4) {
        const __m256 weight = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(raw, byte), zero_point));
        raw = _mm256_srli_epi32(raw, 8);
        // Padding counts as +0.0 whatever the packed bytes hold there.
        const __m256 product =
            k + column < end ? _mm256_mul_ps(_mm256_set1_ps(token.x[k + column]), weight) : _mm256_setzero_ps();
        lane[column] = k == begin ? product : _mm256_add_ps(lane[column], product);
      }
    }
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lane[i] = _mm256_add_ps(lane[i], lane[i + half]);
    }
  }
  _mm256_storeu_ps(f, lane[0]);
}

}  // namespace

void FloatPanelAvx2(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  FloatPanel<8>(linear, tokens, count, panel, y, GroupSum);
}

}  // namespace bitnet
