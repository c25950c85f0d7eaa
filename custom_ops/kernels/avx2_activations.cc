// Activations of one token with AVX2: RMSNorm and quantization.
//
// Only intrinsics and local functions here: an inline function of the standard library compiled in this file
// could be the copy that the linker keeps for the whole library, and it would hold AVX2 instructions.
#include <immintrin.h>

#include "avx2.h"

namespace bitnet {
namespace {

int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Sixteen values from x[k], zeros beyond `count`.
struct Sixteen {
  __m256 lo, hi;
};

Sixteen Load16(const float* x, int64_t k, int64_t count) {
  if (k + kStep <= count) {
    return {_mm256_loadu_ps(x + k), _mm256_loadu_ps(x + k + 8)};
  }
  alignas(32) float padded[kStep] = {};
  for (int64_t i = 0; k + i < count; ++i) {
    padded[i] = x[k + i];
  }
  return {_mm256_load_ps(padded), _mm256_load_ps(padded + 8)};
}

float HalvesSum(__m256 lo, __m256 hi) {
  const __m256 eight = _mm256_add_ps(lo, hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

}  // namespace

void NormalizeAvx2(const Linear& linear, const float* x, float* out) {
  const int64_t count = linear.attributes.in_features;
  Sixteen v = Load16(x, 0, count);
  __m256 lo = _mm256_mul_ps(v.lo, v.lo);
  __m256 hi = _mm256_mul_ps(v.hi, v.hi);
  for (int64_t k = kStep; k < count; k += kStep) {
    v = Load16(x, k, count);
    lo = _mm256_add_ps(lo, _mm256_mul_ps(v.lo, v.lo));
    hi = _mm256_add_ps(hi, _mm256_mul_ps(v.hi, v.hi));
  }
  const float mean = HalvesSum(lo, hi) / static_cast<float>(count);
  const float root = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + linear.attributes.epsilon)));
  const float inverse = 1.0f / root;
  const __m256 factor = _mm256_set1_ps(inverse);
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + k), factor);
    _mm256_storeu_ps(out + k, _mm256_mul_ps(scaled, _mm256_loadu_ps(linear.norm_weight + k)));
  }
  for (; k < count; ++k) {
    out[k] = (x[k] * inverse) * linear.norm_weight[k];
  }
}

namespace {

// The largest |x| as bits: positive floats are ordered like their bits, with infinity and NaN on top.
int32_t LargestMagnitude(const float* x, int64_t count) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256i largest = _mm256_setzero_si256();
  for (int64_t k = 0; k < count; k += kStep) {
    const Sixteen v = Load16(x, k, count);
    largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(v.lo, mask)));
    largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(v.hi, mask)));
  }
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four);
}

int32_t Sum(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1));
  return _mm_cvtsi128_si32(v);
}

// Sixteen rounded products as words; none leaves 16 bits.
__m256i Round16(const float* x, int64_t k, int64_t count, __m256 factor) {
  const Sixteen v = Load16(x, k, count);
  const __m256i lo = _mm256_cvtps_epi32(_mm256_mul_ps(v.lo, factor));
  const __m256i hi = _mm256_cvtps_epi32(_mm256_mul_ps(v.hi, factor));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
}

__m128i SaturateToBytes(__m256i words) {
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// Stores 16 digits in the order of the words of the weights, and returns their sum in four parts.
__m128i Store(__m128i q, int8_t* to) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(q, order));
  return _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), q), _mm_set1_epi16(1));
}

}  // namespace

void QuantizeAvx2(const Linear& linear, const float* x, const Token& token) {
  const int64_t count = linear.attributes.in_features;
  const bool wide = linear.digits() == 2;
  const int32_t bits = LargestMagnitude(x, count);
  const bool finite = bits < 0x7F800000;
  const float magnitude = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  const float largest = magnitude > 1e-5f ? magnitude : 1e-5f;
  const float nan = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(0x7FC00000)));
  *token.factor = finite ? (wide ? kLargest16 : kLargest8) / largest : nan;
  const __m256 factor = _mm256_set1_ps(*token.factor);
  const int64_t group_size = linear.attributes.group_size == 0 ? count : linear.attributes.group_size;
  for (int64_t g = 0; g < linear.groups; ++g) {
    const int64_t begin = g * group_size;
    const int64_t end = begin + Min(group_size, count - begin);
    __m128i sum = _mm_setzero_si128(), low_sum = _mm_setzero_si128();
    for (int64_t k = begin; k < end; k += kStep) {
      const __m256i words = finite ? Round16(x, k, count, factor) : _mm256_setzero_si256();
      if (wide) {
        const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
        const __m256i high = _mm256_srai_epi16(_mm256_sub_epi16(words, low), 8);
        sum = _mm_add_epi32(sum, Store(SaturateToBytes(high), token.digits[0].q + k));
        low_sum = _mm_add_epi32(low_sum, Store(SaturateToBytes(low), token.digits[1].q + k));
      } else {
        sum = _mm_add_epi32(sum, Store(SaturateToBytes(words), token.digits[0].q + k));
      }
    }
    token.digits[0].sums[g] = Sum(sum);
    if (wide) {
      token.digits[1].sums[g] = Sum(low_sum);
    }
  }
}

}  // namespace bitnet
