// AVX2: `vpmaddubsw` on the 64-row panel, for decode (one to four tokens) and prefill alike.
//
// Only intrinsics and local functions here: an inline function of the standard library compiled in this file
// could be the copy that the linker keeps for the whole library, and it would hold AVX2 instructions.
#include <immintrin.h>

#include <cstring>

#include "bitlinear.h"

namespace bitnet {
namespace {

constexpr int64_t kUnitBytes = kStep / 4 * kPanelRows;  // 16 columns of a panel in one plane
constexpr int64_t kAhead =
    2048;  // bytes: hides the latency of memory, and the page ends at which hardware stops
constexpr int64_t kScaleBlock = 8;  // groups whose scales are transposed at a time
constexpr int kVectors = static_cast<int>(kPanelRows / 8);

int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t Units(int64_t columns) { return (columns + kStep - 1) / kStep; }

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

// The four bytes that each of 32 rows has in 16 columns of a panel: vector v holds rows 4v .. 4v+3 and 16 + 4v
// .., the bytes of a row side by side.
struct Rows {
  __m256i v[4];
};

inline Rows Interleave(__m256i w0, __m256i w1, __m256i w2, __m256i w3) {
  const __m256i lo01 = _mm256_unpacklo_epi8(w0, w1);
  const __m256i hi01 = _mm256_unpackhi_epi8(w0, w1);
  const __m256i lo23 = _mm256_unpacklo_epi8(w2, w3);
  const __m256i hi23 = _mm256_unpackhi_epi8(w2, w3);
  return {{_mm256_unpacklo_epi16(lo01, lo23), _mm256_unpackhi_epi16(lo01, lo23),
           _mm256_unpacklo_epi16(hi01, hi23), _mm256_unpackhi_epi16(hi01, hi23)}};
}

inline __m256i Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Four activations of token t, in every 32-bit lane.
inline __m256i Broadcast(const Token& token, int64_t at) {
  int32_t four;
  std::memcpy(&four, token.q + at, sizeof four);
  return _mm256_set1_epi32(four);
}

// A weight is a sum of digits: one plane (a code of two bits), or two planes merged (a nibble). `AddUnit` adds
// 16 columns of 32 rows to the 16-bit sums of T tokens, two lanes a row.
struct Code {
  static constexpr int kPlanes = 1;
  // A lane gains at most 4 * 2 * 3 * 128 = 3072 from one unit: eight of them stay below 2^15.
  static constexpr int64_t kUnitsPerFlush = 8;

  template <int T>
  static inline void AddUnit(const uint8_t* w, int64_t, const Token* tokens, int64_t column,
                             __m256i part[T][4]) {
    const Rows rows = Interleave(Load(w), Load(w + 64), Load(w + 128), Load(w + 192));
    const __m256i three = _mm256_set1_epi8(3);
    for (int i = 0; i < 4; ++i) {
      __m256i q[T];
      for (int t = 0; t < T; ++t) {
        q[t] = Broadcast(tokens[t], column + 4 * i);
      }
      for (int v = 0; v < 4; ++v) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi16(rows.v[v], 2 * i), three);
        for (int t = 0; t < T; ++t) {
          part[t][v] = _mm256_add_epi16(part[t][v], _mm256_maddubs_epi16(code, q[t]));
        }
      }
    }
  }
};

struct Nibble {
  static constexpr int kPlanes = 2;
  // At most 4 * 2 * 15 * 128 = 15360 from one unit: two of them stay below 2^15.
  static constexpr int64_t kUnitsPerFlush = 2;

  template <int T>
  static inline void AddUnit(const uint8_t* w, int64_t plane_bytes, const Token* tokens, int64_t column,
                             __m256i part[T][4]) {
    const __m256i low_pairs = _mm256_set1_epi8(0x33);
    const __m256i high_pairs = _mm256_set1_epi8(static_cast<char>(0xCC));
    __m256i even[4], odd[4];  // columns 0 and 2 of each byte's four, columns 1 and 3
    for (int i = 0; i < 4; ++i) {
      const __m256i low = Load(w + 64 * i);
      const __m256i high = Load(w + plane_bytes + 64 * i);
      even[i] = _mm256_or_si256(_mm256_and_si256(low, low_pairs),
                                _mm256_slli_epi16(_mm256_and_si256(high, low_pairs), 2));
      odd[i] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 2), low_pairs),
                               _mm256_and_si256(high, high_pairs));
    }
    Add<T>(Interleave(even[0], even[1], even[2], even[3]), tokens, column, part);
    Add<T>(Interleave(odd[0], odd[1], odd[2], odd[3]), tokens, column + 4, part);
  }

 private:
  template <int T>
  static inline void Add(const Rows& rows, const Token* tokens, int64_t column, __m256i part[T][4]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
      __m256i q[T];
      for (int t = 0; t < T; ++t) {
        q[t] = Broadcast(tokens[t], column + 8 * i);
      }
      for (int v = 0; v < 4; ++v) {
        const __m256i digit = _mm256_and_si256(_mm256_srli_epi16(rows.v[v], 4 * i), nibble);
        for (int t = 0; t < T; ++t) {
          part[t][v] = _mm256_add_epi16(part[t][v], _mm256_maddubs_epi16(digit, q[t]));
        }
      }
    }
  }
};

inline void Prefetch(const uint8_t* w, int planes, int64_t plane_bytes) {
  for (int p = 0; p < planes; ++p) {
    for (int64_t line = 0; line < kUnitBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w + p * plane_bytes + line + kAhead), _MM_HINT_T0);
    }
  }
}

// Two times four floats side by side.
inline __m256 Join(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

// Adds the columns of units [first, last) to 32-bit sums, two 16-bit lanes of a row together.
template <int T, typename Digit>
inline void AddDigits(const uint8_t* w, int64_t plane_bytes, int16_t weight, const Token* tokens, int64_t first,
                      int64_t last, __m256i sum[2][T][4]) {
  const __m256i weights = _mm256_set1_epi16(weight);
  for (int64_t unit = first; unit < last; unit += Digit::kUnitsPerFlush) {
    const int64_t stop = Min(unit + Digit::kUnitsPerFlush, last);
    for (int half = 0; half < 2; ++half) {
      __m256i part[T][4] = {};
      for (int64_t u = unit; u < stop; ++u) {
        const uint8_t* from = w + u * kUnitBytes + half * 32;
        if (T == 1 && half == 0) {
          Prefetch(from, Digit::kPlanes, plane_bytes);
        }
        Digit::template AddUnit<T>(from, plane_bytes, tokens, u * kStep, part);
      }
      for (int t = 0; t < T; ++t) {
        for (int v = 0; v < 4; ++v) {
          sum[half][t][v] = _mm256_add_epi32(sum[half][t][v], _mm256_madd_epi16(part[t][v], weights));
        }
      }
    }
  }
}

// The exact sums of one group: out[t][v] holds rows 8v .. 8v+7 of the panel.
template <int T>
void Dot(const Linear& linear, const Token* tokens, int64_t panel, int64_t group, __m256i out[T][kVectors]) {
  const Attributes& a = linear.attributes;
  const int64_t begin = group * a.group_size;
  const int64_t end = a.group_size == 0 ? a.in_features : begin + Min(a.group_size, a.in_features - begin);
  const uint8_t* w = linear.weight + panel * linear.quads * kPanelRows;
  const int64_t first = begin / kStep, last = Units(end);
  __m256i sum[2][T][4] = {};
  int16_t weight = 1;
  int64_t plane = 0;
  for (; plane + 2 <= a.planes; plane += 2, weight = 16) {
    AddDigits<T, Nibble>(w + plane * linear.plane_bytes, linear.plane_bytes, weight, tokens, first, last, sum);
  }
  if (plane < a.planes) {
    AddDigits<T, Code>(w + plane * linear.plane_bytes, linear.plane_bytes, weight, tokens, first, last, sum);
  }
  for (int t = 0; t < T; ++t) {
    const __m256i offset = _mm256_set1_epi32(static_cast<int32_t>(a.zero_point) * tokens[t].sums[group]);
    for (int half = 0; half < 2; ++half) {
      const __m256i* s = sum[half][t];
      __m256i* o = out[t] + 4 * half;
      o[0] = _mm256_sub_epi32(_mm256_permute2x128_si256(s[0], s[1], 0x20), offset);
      o[1] = _mm256_sub_epi32(_mm256_permute2x128_si256(s[2], s[3], 0x20), offset);
      o[2] = _mm256_sub_epi32(_mm256_permute2x128_si256(s[0], s[1], 0x31), offset);
      o[3] = _mm256_sub_epi32(_mm256_permute2x128_si256(s[2], s[3], 0x31), offset);
    }
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

// Decode with groups and two planes: one token, its float sums in registers. The general tile spends as much on
// the end of each short group as on the group itself.
void NibbleGroups(const Linear& linear, const Token& token, int64_t panel, int64_t g0, int64_t groups,
                  const float scale[][kPanelRows], float* y) {
  const Attributes& a = linear.attributes;
  const uint8_t* panel_weights = linear.weight + panel * linear.quads * kPanelRows;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* w = panel_weights + half * 32;
    float* out = y + half * 32;  // in the order of Rows until the last group
    __m256 total[4];
    for (int v = 0; v < 4; ++v) {
      total[v] = g0 == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(out + 8 * v);
    }
    for (int64_t g = g0; g < g0 + groups; ++g) {
      const int64_t first = g * a.group_size / kStep;
      const int64_t last = Units(Min((g + 1) * a.group_size, a.in_features));
      __m256i sum[4] = {};
      for (int64_t unit = first; unit < last; unit += Nibble::kUnitsPerFlush) {
        __m256i part[1][4] = {};
        const int64_t stop = Min(unit + Nibble::kUnitsPerFlush, last);
        for (int64_t u = unit; u < stop; ++u) {
          const uint8_t* from = w + u * kUnitBytes;
          if (half == 0) {
            Prefetch(from, Nibble::kPlanes, linear.plane_bytes);
          }
          Nibble::AddUnit<1>(from, linear.plane_bytes, &token, u * kStep, part);
        }
        for (int v = 0; v < 4; ++v) {
          sum[v] = _mm256_add_epi32(sum[v], _mm256_madd_epi16(part[0][v], ones));
        }
      }
      const __m256i offset = _mm256_set1_epi32(static_cast<int32_t>(a.zero_point) * token.sums[g]);
      const float* s = scale[g - g0] + half * 32;
      for (int v = 0; v < 4; ++v) {
        const __m256 f = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[v], offset));
        const __m256 product = _mm256_mul_ps(f, Join(s + 4 * v, s + 16 + 4 * v));
        total[v] = g == 0 ? product : _mm256_add_ps(total[v], product);
      }
    }
    if (g0 + groups < linear.groups) {
      for (int v = 0; v < 4; ++v) {
        _mm256_storeu_ps(out + 8 * v, total[v]);
      }
      continue;
    }
    for (int v = 0; v < 4; ++v) {
      _mm_storeu_ps(out + 4 * v, _mm256_castps256_ps128(total[v]));
      _mm_storeu_ps(out + 16 + 4 * v, _mm256_extractf128_ps(total[v], 1));
    }
  }
}

template <int T>
void QuantizedTile(const Linear& linear, const Token* tokens, int64_t panel, int64_t g0, int64_t groups,
                   const float scale[][kPanelRows], float* y) {
  for (int64_t g = 0; g < groups; ++g) {
    __m256i sums[T][kVectors];
    Dot<T>(linear, tokens, panel, g0 + g, sums);
    for (int t = 0; t < T; ++t) {
      const __m256 factor = _mm256_set1_ps(*tokens[t].factor);
      for (int v = 0; v < kVectors; ++v) {
        const __m256 f = _mm256_cvtepi32_ps(sums[t][v]);
        float* out = y + t * kPanelRows + 8 * v;
        if (linear.attributes.group_size == 0) {
          _mm256_storeu_ps(out, _mm256_mul_ps(f, _mm256_div_ps(_mm256_load_ps(&scale[g][8 * v]), factor)));
        } else {
          AddGroup(f, &scale[g][8 * v], g0 + g == 0, out);
        }
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
    for (int64_t t = 0; t < count;) {
      const int64_t left = count - t;
      const Token* tile = tokens + t;
      float* out = y + t * kPanelRows;
      if (!linear.quantized()) {
        FloatTile(linear, *tile, panel, g0, groups, scale, out);
        t += 1;
      } else if (left >= 4) {
        QuantizedTile<4>(linear, tile, panel, g0, groups, scale, out);
        t += 4;
      } else if (left >= 2) {
        QuantizedTile<2>(linear, tile, panel, g0, groups, scale, out);
        t += 2;
      } else if (linear.attributes.planes == 2 && linear.attributes.group_size == 32) {
        NibbleGroups(linear, *tile, panel, g0, groups, scale, out);
        t += 1;
      } else {
        QuantizedTile<1>(linear, tile, panel, g0, groups, scale, out);
        t += 1;
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
