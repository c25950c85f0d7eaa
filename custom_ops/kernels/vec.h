// Eight floats, in one of three implementations that agree bit for bit.
//
// A file that includes this one is compiled once for each instruction set, in a namespace of its own. It
// defines BITNET_VEC_AVX2 or BITNET_VEC_NEON before the first inclusion, or nothing for plain arrays. Only
// products and sums that are rounded one by one are here: no fused ones, no estimates.
#ifndef BITNET_KERNELS_VEC_H_
#define BITNET_KERNELS_VEC_H_

#include <cstdint>
#include <cstring>

#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)  // other compilers have an option for it
#endif

#if defined(BITNET_VEC_AVX2)
#include <immintrin.h>
#define BITNET_VEC_NAMESPACE vec_avx2
#elif defined(BITNET_VEC_NEON)
#include <arm_neon.h>
#define BITNET_VEC_NAMESPACE vec_neon
#else
#define BITNET_VEC_NAMESPACE vec_scalar
#endif

#if defined(_MSC_VER)
#define BITNET_INLINE __forceinline
#else
#define BITNET_INLINE inline __attribute__((always_inline))
#endif

namespace bitnet::BITNET_VEC_NAMESPACE {

constexpr int64_t kLanes = 8;

// 1.5 * 2^23: added to a small float, it leaves the nearest integer in the lowest bits.
constexpr float kRoundingShift = 12582912.0f;

#if defined(BITNET_VEC_AVX2)

using V = __m256;

BITNET_INLINE V Load(const float* p) { return _mm256_loadu_ps(p); }
BITNET_INLINE V Load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
BITNET_INLINE void Store(float* p, V a) { _mm256_storeu_ps(p, a); }
// The integers from -128 to 127 that `shifted` = n + kRoundingShift holds.
BITNET_INLINE void StoreIntegers(int8_t* p, V shifted) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4B400000));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
BITNET_INLINE V Set(float a) { return _mm256_set1_ps(a); }
BITNET_INLINE V Add(V a, V b) { return _mm256_add_ps(a, b); }
BITNET_INLINE V Sub(V a, V b) { return _mm256_sub_ps(a, b); }
BITNET_INLINE V Mul(V a, V b) { return _mm256_mul_ps(a, b); }
BITNET_INLINE V Div(V a, V b) { return _mm256_div_ps(a, b); }
// a < b ? a : b, and so b where either is NaN; Max likewise.
BITNET_INLINE V Min(V a, V b) { return _mm256_min_ps(a, b); }
BITNET_INLINE V Max(V a, V b) { return _mm256_max_ps(a, b); }
// a < b ? x : y
BITNET_INLINE V IfLess(V a, V b, V x, V y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
BITNET_INLINE V Abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
// |a| with the sign of b, for a >= 0
BITNET_INLINE V WithSign(V a, V b) { return _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0f), b)); }

// a * 2^n for the integer n that `shifted` = n + kRoundingShift holds, in two factors that are normal numbers.
BITNET_INLINE V Scale(V a, V shifted) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4B400000));
  const __m256i half = _mm256_srai_epi32(n, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

// The same for -126 <= n <= 0, in one factor.
BITNET_INLINE V ScaleDown(V a, V shifted) {
  // The shift moves the constant's bits out, but for n + 127.
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23)));
}

// Sums of the lanes of eight vectors, each in halves: l[i] + l[i+4], l[i] + l[i+2], l[0] + l[1].
BITNET_INLINE V Sum8(V a0, V a1, V a2, V a3, V b0, V b1, V b2, V b3) {
  const auto fold = [](V a, V b) {  // [a: 4 lanes, b: 4 lanes]
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  };
  const auto pair = [](V a, V b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
  };
  const V low = pair(fold(a0, b0), fold(a1, b1));
  const V high = pair(fold(a2, b2), fold(a3, b3));
  return _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xDD));
}

BITNET_INLINE void Store4(float* low, float* high, V a) {
  _mm_storeu_ps(low, _mm256_castps256_ps128(a));
  _mm_storeu_ps(high, _mm256_extractf128_ps(a, 1));
}

BITNET_INLINE void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#elif defined(BITNET_VEC_NEON)

struct V {
  float32x4_t l, h;
};

BITNET_INLINE V Load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
BITNET_INLINE V Load(const int8_t* p) {
  const int16x8_t n = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(n))), vcvtq_f32_s32(vmovl_high_s16(n))};
}
BITNET_INLINE void Store(float* p, V a) {
  vst1q_f32(p, a.l);
  vst1q_f32(p + 4, a.h);
}
// The lowest byte of each, which is the integer.
BITNET_INLINE void StoreIntegers(int8_t* p, V shifted) {
  const int16x4_t low = vmovn_s32(vreinterpretq_s32_f32(shifted.l));
  vst1_s8(p, vmovn_s16(vmovn_high_s32(low, vreinterpretq_s32_f32(shifted.h))));
}
BITNET_INLINE V Set(float a) { return {vdupq_n_f32(a), vdupq_n_f32(a)}; }
BITNET_INLINE V Add(V a, V b) { return {vaddq_f32(a.l, b.l), vaddq_f32(a.h, b.h)}; }
BITNET_INLINE V Sub(V a, V b) { return {vsubq_f32(a.l, b.l), vsubq_f32(a.h, b.h)}; }
BITNET_INLINE V Mul(V a, V b) { return {vmulq_f32(a.l, b.l), vmulq_f32(a.h, b.h)}; }
BITNET_INLINE V Div(V a, V b) { return {vdivq_f32(a.l, b.l), vdivq_f32(a.h, b.h)}; }
BITNET_INLINE V IfLess(V a, V b, V x, V y) {
  return {vbslq_f32(vcltq_f32(a.l, b.l), x.l, y.l), vbslq_f32(vcltq_f32(a.h, b.h), x.h, y.h)};
}
// Not vminq and vmaxq, which give NaN where either is NaN.
BITNET_INLINE V Min(V a, V b) { return IfLess(a, b, a, b); }
BITNET_INLINE V Max(V a, V b) { return IfLess(b, a, a, b); }
BITNET_INLINE V Abs(V a) { return {vabsq_f32(a.l), vabsq_f32(a.h)}; }
BITNET_INLINE V WithSign(V a, V b) {
  const uint32x4_t sign = vdupq_n_u32(0x80000000u);
  return {vbslq_f32(sign, b.l, a.l), vbslq_f32(sign, b.h, a.h)};
}

BITNET_INLINE float32x4_t ScaleHalf(float32x4_t a, float32x4_t shifted) {
  const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(0x4B400000));
  const int32x4_t half = vshrq_n_s32(n, 1);
  const int32x4_t bias = vdupq_n_s32(127);
  const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
  const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(n, half), bias), 23);
  return vmulq_f32(vmulq_f32(a, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}
BITNET_INLINE V Scale(V a, V shifted) { return {ScaleHalf(a.l, shifted.l), ScaleHalf(a.h, shifted.h)}; }

BITNET_INLINE float32x4_t ScaleDownHalf(float32x4_t a, float32x4_t shifted) {
  const int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(127));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(bits, 23)));
}
BITNET_INLINE V ScaleDown(V a, V shifted) {
  return {ScaleDownHalf(a.l, shifted.l), ScaleDownHalf(a.h, shifted.h)};
}

BITNET_INLINE float32x4_t Sum4(V a0, V a1, V a2, V a3) {
  const auto pair = [](V a, V b) {
    const float64x2_t x = vreinterpretq_f64_f32(vaddq_f32(a.l, a.h));
    const float64x2_t y = vreinterpretq_f64_f32(vaddq_f32(b.l, b.h));
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
  };
  return vpaddq_f32(pair(a0, a1), pair(a2, a3));
}
BITNET_INLINE V Sum8(V a0, V a1, V a2, V a3, V b0, V b1, V b2, V b3) {
  return {Sum4(a0, a1, a2, a3), Sum4(b0, b1, b2, b3)};
}

BITNET_INLINE void Store4(float* low, float* high, V a) {
  vst1q_f32(low, a.l);
  vst1q_f32(high, a.h);
}

BITNET_INLINE void Prefetch(const void* p) {
#if !defined(_MSC_VER)
  __builtin_prefetch(p);
#else
  __prefetch(p);
#endif
}

#else

struct V {
  float lane[kLanes];
};

template <typename F>
BITNET_INLINE V Each(F f) {
  V r;
  for (int i = 0; i < kLanes; ++i) {
    r.lane[i] = f(i);
  }
  return r;
}

BITNET_INLINE V Load(const float* p) {
  return Each([=](int i) { return p[i]; });
}
BITNET_INLINE V Load(const int8_t* p) {
  return Each([=](int i) { return static_cast<float>(p[i]); });
}
BITNET_INLINE void Store(float* p, const V& a) {
  for (int i = 0; i < kLanes; ++i) {
    p[i] = a.lane[i];
  }
}
BITNET_INLINE V Set(float a) {
  return Each([=](int) { return a; });
}
BITNET_INLINE V Add(const V& a, const V& b) {
  return Each([&](int i) { return a.lane[i] + b.lane[i]; });
}
BITNET_INLINE V Sub(const V& a, const V& b) {
  return Each([&](int i) { return a.lane[i] - b.lane[i]; });
}
BITNET_INLINE V Mul(const V& a, const V& b) {
  return Each([&](int i) { return a.lane[i] * b.lane[i]; });
}
BITNET_INLINE V Div(const V& a, const V& b) {
  return Each([&](int i) { return a.lane[i] / b.lane[i]; });
}
BITNET_INLINE V IfLess(const V& a, const V& b, const V& x, const V& y) {
  return Each([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
}
BITNET_INLINE V Min(const V& a, const V& b) { return IfLess(a, b, a, b); }
BITNET_INLINE V Max(const V& a, const V& b) { return IfLess(b, a, a, b); }

BITNET_INLINE uint32_t BitsOf(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}
BITNET_INLINE float FloatOf(uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}

BITNET_INLINE void StoreIntegers(int8_t* p, const V& shifted) {
  for (int i = 0; i < kLanes; ++i) {
    p[i] = static_cast<int8_t>(static_cast<int32_t>(BitsOf(shifted.lane[i])) - 0x4B400000);
  }
}

BITNET_INLINE V Abs(const V& a) {
  return Each([&](int i) { return FloatOf(BitsOf(a.lane[i]) & 0x7FFFFFFFu); });
}
BITNET_INLINE V WithSign(const V& a, const V& b) {
  return Each([&](int i) { return FloatOf(BitsOf(a.lane[i]) | (BitsOf(b.lane[i]) & 0x80000000u)); });
}

BITNET_INLINE V Scale(const V& a, const V& shifted) {
  return Each([&](int i) {
    // Unsigned, because any bits may come from a NaN; the shift rounds towards minus infinity.
    const uint32_t n = BitsOf(shifted.lane[i]) - 0x4B400000u;
    const uint32_t half = n >> 1 | (n & 0x80000000u);
    return a.lane[i] * FloatOf((half + 127u) << 23) * FloatOf((n - half + 127u) << 23);
  });
}

BITNET_INLINE V ScaleDown(const V& a, const V& shifted) {
  return Each([&](int i) { return a.lane[i] * FloatOf((BitsOf(shifted.lane[i]) + 127u) << 23); });
}

BITNET_INLINE float Sum(const V& a) {
  const float* l = a.lane;
  return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}
BITNET_INLINE V Sum8(const V& a0, const V& a1, const V& a2, const V& a3, const V& b0, const V& b1, const V& b2,
                     const V& b3) {
  return {{Sum(a0), Sum(a1), Sum(a2), Sum(a3), Sum(b0), Sum(b1), Sum(b2), Sum(b3)}};
}

BITNET_INLINE void Store4(float* low, float* high, const V& a) {
  for (int i = 0; i < 4; ++i) {
    low[i] = a.lane[i];
    high[i] = a.lane[4 + i];
  }
}

BITNET_INLINE void Prefetch(const void*) {}

#endif

}  // namespace bitnet::BITNET_VEC_NAMESPACE

#endif  // BITNET_KERNELS_VEC_H_
