// exp, tanh and the normal distribution: the polynomials of custom_ops/kernels/vec_math.h, in the same order,
// so that GPU and CPU agree bit for bit. A compiler that reorders floats breaks them.
#ifndef BITNET_METAL_SHADERS_FUNCTIONS_H_
#define BITNET_METAL_SHADERS_FUNCTIONS_H_

#include "prelude.h"

constant float kExpTerms[5] = {0.49999994f, 0.166665211f, 0.041668389f, 0.00836874545f, 0.00138145371f};
constant float kTanhTerms[5] = {-0.333332777f, 0.133313283f, -0.053729225f, 0.0206019878f, -0.00566076906f};
constant float kCdfTerms[10] = {0.119686723f,   0.119571202f, 0.110240266f, 0.0783680901f, 0.0962164551f,
                                -0.0795299187f, 0.191907451f, -0.22830236f, 0.112472057f,  -0.0206299629f};

inline float polynomial(constant float* terms, int count, float x) {
  float sum = terms[count - 1];
  for (int i = count - 2; i >= 0; --i) {
    const float product = sum * x;
    sum = product + terms[i];
  }
  return sum;
}

// 1.5 * 2^23: added to a small float, it leaves the nearest integer n in the lowest bits.
inline float rounding_shift() { return 12582912.0f; }

// e^x = y * 2^n; `shifted` is n + rounding_shift().
struct Exponential {
  float y, shifted;
};

inline Exponential reduced(float x) {
  const float multiple = x * 1.44269504f;
  const float shifted = multiple + rounding_shift();
  const float n = shifted - rounding_shift();
  const float high = n * 0.693145752f, low = n * 1.42860677e-6f;
  const float coarse = x - high;
  const float r = coarse - low;
  const float square = r * r;
  const float tail = square * polynomial(kExpTerms, 5, r);
  const float rest = r + tail;
  return {1.0f + rest, shifted};
}

// e^x for x <= 0; exactly 1 at 0, 0 below -87, NaN for NaN.
inline float exp_of_negative(float x) {
  const Exponential e = reduced(-87.0f > x ? -87.0f : x);
  const float scale = as_type<float>((as_type<uint>(e.shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : e.y * scale;
}

// The same for any x; infinity above 88.72.
inline float exp_of(float x) {
  const float below = 89.0f < x ? 89.0f : x;
  const Exponential e = reduced(-87.0f > below ? -87.0f : below);
  const int n = as_type<int>(e.shifted) - 0x4B400000;
  const int half_n = n >> 1;
  const float first = as_type<float>((half_n + 127) << 23), second = as_type<float>((n - half_n + 127) << 23);
  const float scaled = e.y * first;
  return x < -87.0f ? 0.0f : scaled * second;
}

inline float tanh_of(float x) {
  const float a = fabs(x);
  if (a < 0.625f) {
    const float square = x * x, cube = x * square;
    const float tail = cube * polynomial(kTanhTerms, 5, square);
    return x + tail;
  }
  const float far = 1.0f - 2.0f / (exp_of(a + a) + 1.0f);
  return as_type<float>((as_type<uint>(x) & 0x80000000u) | as_type<uint>(far));
}

// The standard normal distribution's function.
inline float normal_cdf(float x) {
  const float slope = 0.3f * fabs(x);
  const float t = 1.0f / (1.0f + slope);
  const float square = x * x;
  const float bell = exp_of(square * -0.5f) * t;
  const float tail = bell * polynomial(kCdfTerms, 10, t);
  return x < 0.0f ? tail : 1.0f - tail;
}

#endif  // BITNET_METAL_SHADERS_FUNCTIONS_H_
