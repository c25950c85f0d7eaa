// What stands between the layers: one thread for each element.
#include "functions.h"
#include "values.h"

inline float activated(uint operation, float x, float value) {
  if (operation == kActivationSilu) {
    return x / (1.0f + exp_of(0.0f - x));
  }
  if (operation == kActivationRelu2) {
    const float positive = 0.0f > x ? 0.0f : x;  // NaN stays
    return positive * positive;
  }
  if (operation == kActivationGelu) {
    return x * normal_cdf(x);
  }
  if (operation == kActivationGeluTanh) {
    const float square = x * x;
    const float cube = square * x;
    const float term = cube * 0.044715f;
    const float sum = x + term;
    return x / (1.0f + exp_of(sum * -1.59576912f));
  }
  if (operation == kActivationRelu) {
    return 0.0f > x ? 0.0f : x;
  }
  if (operation == kActivationQuickGelu) {
    const float steeper = x * 1.702f;
    return x * (1.0f / (1.0f + exp_of(0.0f - steeper)));
  }
  if (operation == kUnarySigmoid) {
    return 1.0f / (1.0f + exp_of(0.0f - x));
  }
  if (operation == kUnaryTanh) {
    return tanh_of(x);
  }
  if (operation == kUnaryScale) {
    return x * value;
  }
  const float inverse = 1.0f / value;  // kUnarySoftcap
  return tanh_of(x * inverse) * value;
}

kernel void unary(constant UnaryArguments* a [[buffer(kUnaryArguments)]],
                  device const uchar* x [[buffer(kUnaryX)]], device uchar* y [[buffer(kUnaryY)]],
                  uint3 position [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {
  const uint i = position.x * 32 * kSimdgroups + index;
  if (i < a->count) {
    store_value(y, i, activated(kOperation, load_value(x, i), a->value));
  }
}

inline float combined(float a, float b) {
  return kOperation == kBinaryAdd ? a + b : kOperation == kBinaryMul ? a * b : a - b;
}

kernel void binary(constant BinaryArguments* arguments [[buffer(kBinaryArguments)]],
                   device const uchar* a [[buffer(kBinaryA)]], device const uchar* b [[buffer(kBinaryB)]],
                   device uchar* y [[buffer(kBinaryY)]], uint3 position [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
  const uint i = position.x * 32 * kSimdgroups + index;
  if (i < arguments->count) {
    store_value(y, i, combined(load_value(a, i), load_value(b, i % arguments->b_count)));
  }
}

kernel void broadcast_binary(constant BroadcastArguments* arguments [[buffer(kBroadcastArguments)]],
                             device const uchar* a [[buffer(kBroadcastA)]],
                             device const uchar* b [[buffer(kBroadcastB)]],
                             device uchar* y [[buffer(kBroadcastY)]],
                             uint3 position [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]]) {
  const uint i = position.x * 32 * kSimdgroups + index;
  if (i < arguments->count) {
    uint rest = i, left = 0, right = 0;
    for (uint axis = arguments->axes; axis > 0; --axis) {
      const uint place = rest % arguments->sizes[axis - 1];
      rest = rest / arguments->sizes[axis - 1];
      left += place * arguments->a_steps[axis - 1];
      right += place * arguments->b_steps[axis - 1];
    }
    store_value(y, i, combined(load_value(a, left), load_value(b, right)));
  }
}

kernel void gated(constant GatedArguments* a [[buffer(kGatedArguments)]],
                  device const uchar* gate [[buffer(kGatedGate)]], device const uchar* up [[buffer(kGatedUp)]],
                  device uchar* y [[buffer(kGatedY)]], uint3 position [[threadgroup_position_in_grid]],
                  uint index [[thread_index_in_threadgroup]]) {
  const uint i = position.x * 32 * kSimdgroups + index;
  if (i < a->rows * a->width) {
    const ulong from = ulong(i / a->width) * a->stride + i % a->width;
    store_value(y, i, activated(kOperation, load_value(gate, from), 0.0f) * load_value(up, from));
  }
}

kernel void gather_columns(constant GatherArguments* a [[buffer(kGatherArguments)]],
                           device const uchar* x [[buffer(kGatherX)]],
                           device const int* columns [[buffer(kGatherColumns)]],
                           device uchar* y [[buffer(kGatherY)]],
                           uint3 position [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]]) {
  const uint i = position.x * 32 * kSimdgroups + index;
  if (i < a->rows * a->selected) {
    const int column = columns[i % a->selected];
    const ulong row = ulong(i / a->selected) * a->width;
    store_value(y, i, column < 0 ? 0.0f : load_value(x, row + uint(column)));
  }
}
