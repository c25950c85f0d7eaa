// Functions of eight floats, in products and sums whose order is fixed: every instruction set gives the same
// bits.
//
// The coefficients are least-squares fits, weighted towards the smallest largest relative error.
#ifndef BITNET_KERNELS_VEC_MATH_H_
#define BITNET_KERNELS_VEC_MATH_H_

#include "vec.h"

namespace bitnet::BITNET_VEC_NAMESPACE {

// Below it exp is a subnormal number, and taken for zero.
constexpr float kExpUnderflow = -87.0f;

// c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule.
template <int N>
BITNET_INLINE V Polynomial(const float (&c)[N], V x) {
  V sum = Set(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) {
    sum = Add(Mul(sum, x), Set(c[i]));
  }
  return sum;
}

// e^x = y * 2^n; `shifted` is n + kRoundingShift.
struct Exponential {
  V y, shifted;
};

BITNET_INLINE Exponential Reduced(V x) {
  // e^r = 1 + (r + r^2 p(r)) for |r| <= ln(2)/2
  constexpr float kP[] = {0.49999994f, 0.166665211f, 0.041668389f, 0.00836874545f, 0.00138145371f};
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f,
                  kLn2Low = 1.42860677e-6f;  // the first has 15 bits: n times it is exact
  const V shifted = Add(Mul(x, Set(kLog2E)), Set(kRoundingShift));
  const V n = Sub(shifted, Set(kRoundingShift));
  const V r = Sub(Sub(x, Mul(n, Set(kLn2High))), Mul(n, Set(kLn2Low)));
  return {Add(Set(1.0f), Add(r, Mul(Mul(r, r), Polynomial(kP, r)))), shifted};
}

// e^x to 2 units in the last place; exactly 1 at 0, 0 below kExpUnderflow, infinity above 88.72, NaN for NaN.
BITNET_INLINE V Exp(V x) {
  constexpr float kLargest = 89.0f;  // e^89 is infinite
  // The operand that may be NaN comes second, where Min and Max keep it.
  const Exponential e = Reduced(Max(Set(kExpUnderflow), Min(Set(kLargest), x)));
  return IfLess(x, Set(kExpUnderflow), Set(0.0f), Scale(e.y, e.shifted));
}

// The same for x <= 0, with the same bits.
BITNET_INLINE V ExpOfNegative(V x) {
  const Exponential e = Reduced(Max(Set(kExpUnderflow), x));
  return IfLess(x, Set(kExpUnderflow), Set(0.0f), ScaleDown(e.y, e.shifted));
}

BITNET_INLINE V Tanh(V x) {
  // x + x^3 p(x^2) for |x| < 0.625; beyond, no digits cancel in 1 - 2 / (e^2|x| + 1)
  constexpr float kP[] = {-0.333332777f, 0.133313283f, -0.053729225f, 0.0206019878f, -0.00566076906f};
  const V a = Abs(x);
  const V square = Mul(x, x);
  const V near = Add(x, Mul(Mul(x, square), Polynomial(kP, square)));
  const V far = Sub(Set(1.0f), Div(Set(2.0f), Add(Exp(Add(a, a)), Set(1.0f))));
  return IfLess(a, Set(0.625f), near, WithSign(far, x));
}

// The standard normal distribution's function.
BITNET_INLINE V NormalCdf(V x) {
  // The tail beyond |x| is e^(-x^2/2) t p(t), t = 1 / (1 + 0.3 |x|).
  constexpr float kP[] = {0.119686723f,   0.119571202f, 0.110240266f, 0.0783680901f, 0.0962164551f,
                          -0.0795299187f, 0.191907451f, -0.22830236f, 0.112472057f,  -0.0206299629f};
  const V t = Div(Set(1.0f), Add(Set(1.0f), Mul(Set(0.3f), Abs(x))));
  const V tail = Mul(Mul(Exp(Mul(Mul(x, x), Set(-0.5f))), t), Polynomial(kP, t));
  return IfLess(x, Set(0.0f), tail, Sub(Set(1.0f), tail));
}

}  // namespace bitnet::BITNET_VEC_NAMESPACE

#endif  // BITNET_KERNELS_VEC_MATH_H_
