// AVX2: `vpmaddubsw` on the 64-row panel, for the few tokens of decode; avx2_prefill.cc has the way for many.
//
// Only intrinsics and local functions here: an inline function of the standard library compiled in this file
// could be the copy that the linker keeps for the whole library, and it would hold AVX2 instructions.
#include "avx2.h"

namespace bitnet {
namespace {

constexpr int64_t kManyTokens = 4;  // from here on unpacking once pays
constexpr int64_t kScaleBlock = 8;  // groups whose scales are transposed at a time
constexpr int kVectors = static_cast<int>(kPanelRows / 8);

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

void Normalize(const Linear& linear, const float* x, float* out) {
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

// Within each 16 columns the bytes are stored as columns 0 4 8 12, 1 5 9 13, ...: the four that meet the four
// bytes of a row after the weights of one unit are interleaved.
void Quantize(const Linear& linear, const float* x, const Token& token) {
  const int64_t count = linear.attributes.in_features;
  const int32_t bits = LargestMagnitude(x, count);
  const bool finite = bits < 0x7F800000;
  const float magnitude = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  const float largest = magnitude > 1e-5f ? magnitude : 1e-5f;
  *token.factor = finite ? 127.0f / largest : _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(0x7FC00000)));
  const __m256 factor = _mm256_set1_ps(finite ? *token.factor : 0.0f);
  const __m128i interleave = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i ones8 = _mm_set1_epi8(1);
  const __m128i ones16 = _mm_set1_epi16(1);
  const int64_t group_size = linear.attributes.group_size == 0 ? count : linear.attributes.group_size;
  for (int64_t g = 0; g < linear.groups; ++g) {
    const int64_t begin = g * group_size;
    const int64_t end = begin + Min(group_size, count - begin);
    __m128i sum = _mm_setzero_si128();
    for (int64_t k = begin; k < end; k += kStep) {
      __m128i q = _mm_setzero_si128();
      if (finite) {
        const Sixteen v = Load16(x, k, count);
        const __m256i lo = _mm256_cvtps_epi32(_mm256_mul_ps(v.lo, factor));
        const __m256i hi = _mm256_cvtps_epi32(_mm256_mul_ps(v.hi, factor));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
        q = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      }
      sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(ones8, q), ones16));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(token.q + k), _mm_shuffle_epi8(q, interleave));
    }
    token.sums[g] = Sum(sum);
  }
}

// 8 x 8 floats: to[j][i] = from[i][j].
void Transpose8(const float* from, int64_t from_stride, float* to) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm256_loadu_ps(from + i * from_stride);
  }
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * kPanelRows, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * kPanelRows, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// Scales of one panel for groups g0 .. g0 + count - 1 as to[g - g0][row], zeros for rows beyond N.
void LoadScales(const Linear& linear, int64_t panel, int64_t g0, int64_t count, float to[][kPanelRows]) {
  const int64_t first = panel * kPanelRows;
  const int64_t rows = Min(kPanelRows, linear.attributes.out_features - first);
  for (int64_t c = 0; c < kPanelRows; c += 8) {
    const float* from = linear.scale + (first + c) * linear.groups + g0;
    if (linear.attributes.group_size != 0 && count == kScaleBlock && c + 8 <= rows) {
      Transpose8(from, linear.groups, &to[0][c]);
      continue;
    }
    for (int64_t i = 0; i < 8; ++i) {
      for (int64_t g = 0; g < count; ++g) {
        float scale = 0.0f;
        if (c + i < rows) {
          const bool whole = linear.attributes.group_size == 0 && !linear.scale_per_row;
          scale = whole ? linear.scale[0] : linear.scale[(first + c + i) * linear.groups + g0 + g];
        }
        to[g][c + i] = scale;
      }
    }
  }
}

// y = f * scale, or y + f * scale: one group's part of the float sum.
inline void AddGroup(__m256 f, const float* scale, bool start, float* y) {
  const __m256 product = _mm256_mul_ps(f, _mm256_load_ps(scale));
  _mm256_storeu_ps(y, start ? product : _mm256_add_ps(_mm256_loadu_ps(y), product));
}

// Units of 32 rows, straight from the packed weights, meet one token.
template <typename Digit>
BITNET_NOINLINE void MultiplyPacked(const uint8_t* w, int64_t plane_bytes, int64_t units, bool prefetch,
                                    const int8_t* q, __m256i weights, bool start, Rows* sums) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i a = zero, b = zero, c = zero, d = zero;
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t* from = w + u * kUnitBytes;
    if (prefetch) {
      Prefetch(from, Digit::kPlanes, plane_bytes);
    }
    Digit::Unpack(from, plane_bytes, [&](int64_t index, Rows digits) {
      const __m256i four = Activations(q + u * kStep + 4 * index);
      Add(a, digits.a, four);
      Add(b, digits.b, four);
      Add(c, digits.c, four);
      Add(d, digits.d, four);
    });
  }
  Flush(a, b, c, d, weights, start, sums);
}

// The same for two tokens.
template <typename Digit>
BITNET_NOINLINE void MultiplyPacked2(const uint8_t* w, int64_t plane_bytes, int64_t units, const int8_t* q0,
                                     const int8_t* q1, __m256i weights, bool start, Rows* sums) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i a0 = zero, b0 = zero, c0 = zero, d0 = zero, a1 = zero, b1 = zero, c1 = zero, d1 = zero;
  for (int64_t u = 0; u < units; ++u) {
    Digit::Unpack(w + u * kUnitBytes, plane_bytes, [&](int64_t index, Rows digits) {
      const __m256i first = Activations(q0 + u * kStep + 4 * index);
      const __m256i second = Activations(q1 + u * kStep + 4 * index);
      Add(a0, digits.a, first);
      Add(a1, digits.a, second);
      Add(b0, digits.b, first);
      Add(b1, digits.b, second);
      Add(c0, digits.c, first);
      Add(c1, digits.c, second);
      Add(d0, digits.d, first);
      Add(d1, digits.d, second);
    });
  }
  Flush(a0, b0, c0, d0, weights, start, &sums[0]);
  Flush(a1, b1, c1, d1, weights, start, &sums[1]);
}

// One or two tokens on the groups [g0, g0 + groups) of one panel.
void FewTokens(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t g0,
               int64_t groups, const float scale[][kPanelRows], float* y) {
  const uint8_t* panel_weights = linear.weight + panel * linear.quads * kPanelRows;
  for (int64_t g = g0; g < g0 + groups; ++g) {
    const Range range = UnitsOf(linear.attributes, g);
    Rows sums[2][2];
    EachDigit(linear.attributes.planes, [&](auto digit, int64_t plane, int16_t weight) {
      using Digit = decltype(digit);
      const __m256i weights = _mm256_set1_epi16(weight);
      for (int64_t unit = range.first; unit < range.last; unit += Digit::kUnitsPerFlush) {
        const int64_t units = Min(Digit::kUnitsPerFlush, range.last - unit);
        const bool start = plane == 0 && unit == range.first;
        const uint8_t* w = panel_weights + plane * linear.plane_bytes + unit * kUnitBytes;
        const int8_t* q = tokens[0].q + unit * kStep;
        for (int half = 0; half < 2; ++half) {
          if (count == 1) {
            MultiplyPacked<Digit>(w + half * 32, linear.plane_bytes, units, half == 0, q, weights, start,
                                  sums[half]);
          } else {
            MultiplyPacked2<Digit>(w + half * 32, linear.plane_bytes, units, q, tokens[1].q + unit * kStep,
                                   weights, start, sums[half]);
          }
        }
      }
    });
    for (int64_t t = 0; t < count; ++t) {
      for (int half = 0; half < 2; ++half) {
        Finish(linear, tokens[t], g, sums[half][t], scale[g - g0] + half * 32, y + t * kPanelRows + half * 32);
      }
    }
  }
}

// lanes16 of x[k] * (raw - zero point) over one group, for eight rows at a time.
void FloatTile(const Linear& linear, const Token& token, int64_t panel, int64_t g0, int64_t groups,
               const float scale[][kPanelRows], float* y) {
  const Attributes& a = linear.attributes;
  const __m256i zero_point = _mm256_set1_epi32(static_cast<int32_t>(a.zero_point));
  const __m256i three = _mm256_set1_epi32(3);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = (g0 + g) * a.group_size;
    const int64_t end = a.group_size == 0 ? a.in_features : begin + Min(a.group_size, a.in_features - begin);
    for (int v = 0; v < kVectors; ++v) {
      __m256 lane[kStep];
      const uint8_t* base = linear.weight + panel * linear.quads * kPanelRows + 8 * v;
      for (int64_t k = begin; k < end; k += 4) {
        __m256i raw[4] = {};
        for (int64_t p = 0; p < a.planes; ++p) {
          const uint8_t* w = base + p * linear.plane_bytes + k / 4 * kPanelRows;
          const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w)));
          for (int i = 0; i < 4; ++i) {
            const __m256i code = _mm256_and_si256(_mm256_srli_epi32(bytes, 2 * i), three);
            raw[i] = _mm256_add_epi32(raw[i], _mm256_slli_epi32(code, static_cast<int>(2 * p)));
          }
        }
        for (int i = 0; i < 4; ++i) {
          const __m256 weight = _mm256_cvtepi32_ps(_mm256_sub_epi32(raw[i], zero_point));
          // Padding counts as +0.0 whatever the packed bytes hold there.
          const __m256 product =
              k + i < end ? _mm256_mul_ps(_mm256_set1_ps(token.x[k + i]), weight) : _mm256_setzero_ps();
          __m256& sum = lane[(k + i) % kStep];
          sum = k - begin < kStep ? product : _mm256_add_ps(sum, product);
        }
      }
      // Columns beyond the end count as +0.0 up to a multiple of 16.
      const int64_t stop = begin + Units(end - begin) * kStep;
      for (int64_t k = begin + (end - begin + 3) / 4 * 4; k < stop; ++k) {
        __m256& sum = lane[k % kStep];
        sum = k - begin < kStep ? _mm256_setzero_ps() : _mm256_add_ps(sum, _mm256_setzero_ps());
      }
      for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
          lane[i] = _mm256_add_ps(lane[i], lane[i + half]);
        }
      }
      AddGroup(lane[0], &scale[g][8 * v], g0 + g == 0, y + 8 * v);
    }
  }
}

void Panel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  alignas(32) float scale[kScaleBlock][kPanelRows];
  for (int64_t g0 = 0; g0 < linear.groups; g0 += kScaleBlock) {
    const int64_t groups = Min(kScaleBlock, linear.groups - g0);
    LoadScales(linear, panel, g0, groups, scale);
    if (linear.quantized() && count >= kManyTokens) {
      ManyTokensAvx2(linear, tokens, count, panel, g0, groups, scale, y);
      continue;
    }
    const int64_t step = linear.quantized() ? 2 : 1;
    for (int64_t t = 0; t < count; t += step) {
      float* out = y + t * kPanelRows;
      if (linear.quantized()) {
        FewTokens(linear, tokens + t, Min(step, count - t), panel, g0, groups, scale, out);
      } else {
        FloatTile(linear, tokens[t], panel, g0, groups, scale, out);
      }
    }
  }
  const int64_t first = panel * kPanelRows;
  const int64_t rows = Min(kPanelRows, linear.attributes.out_features - first);
  for (int64_t t = 0; t < count; ++t) {
    float* out = y + t * kPanelRows;
    if (linear.quantized() && linear.attributes.group_size != 0) {
      const float inverse = 1.0f / *tokens[t].factor;
      for (int64_t c = 0; c < kPanelRows; ++c) {
        out[c] = out[c] * inverse;
      }
    }
    if (linear.bias != nullptr) {
      for (int64_t c = 0; c < rows; ++c) {
        out[c] = out[c] + linear.bias[first + c];
      }
    }
  }
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2", Normalize, Quantize, Panel};

}  // namespace bitnet
