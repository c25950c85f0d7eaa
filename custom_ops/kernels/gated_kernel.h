// act(gate) * up for one instruction set; included by the file of each.
#ifndef BITNET_KERNELS_GATED_KERNEL_H_
#define BITNET_KERNELS_GATED_KERNEL_H_

#include "gated.h"
#include "vec_math.h"

namespace bitnet::BITNET_VEC_NAMESPACE {

BITNET_INLINE V Silu(V x) { return Div(x, Add(Set(1.0f), Exp(Sub(Set(0.0f), x)))); }

BITNET_INLINE V Relu2(V x) {
  const V positive = Max(Set(0.0f), x);
  return Mul(positive, positive);
}

BITNET_INLINE V Gelu(V x) { return Mul(x, NormalCdf(x)); }

// x/2 (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): no digits cancel for x < 0.
BITNET_INLINE V GeluTanh(V x) {
  const V cube = Mul(Mul(x, x), x);
  const V exponent = Mul(Add(x, Mul(cube, Set(0.044715f))), Set(-1.59576912f));
  return Div(x, Add(Set(1.0f), Exp(exponent)));
}

template <V (*Activate)(V)>
void Gate(const float* gate, const float* up, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(y + i, Mul(Activate(Load(gate + i)), Load(up + i)));
  }
  if (i < count) {
    const auto bytes = static_cast<size_t>(count - i) * sizeof(float);
    float last[2][kLanes] = {};
    std::memcpy(last[0], gate + i, bytes);
    std::memcpy(last[1], up + i, bytes);
    Store(last[0], Mul(Activate(Load(last[0])), Load(last[1])));
    std::memcpy(y + i, last[0], bytes);
  }
}

inline void GateFor(Activation activation, const float* gate, const float* up, int64_t count, float* y) {
  switch (activation) {
    case Activation::kSilu:
      return Gate<Silu>(gate, up, count, y);
    case Activation::kRelu2:
      return Gate<Relu2>(gate, up, count, y);
    case Activation::kGelu:
      return Gate<Gelu>(gate, up, count, y);
    case Activation::kGeluTanh:
      return Gate<GeluTanh>(gate, up, count, y);
  }
}

}  // namespace bitnet::BITNET_VEC_NAMESPACE

#endif  // BITNET_KERNELS_GATED_KERNEL_H_
