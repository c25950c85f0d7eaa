// RMSNorm and LayerNorm over the last axis, with a residual that is added first. One threadgroup has one row.
#include "values.h"

// x + residual into `sum`; the row that is normalized.
inline device const uchar* with_residual(device const uchar* x, device const uchar* residual, device uchar* sum,
                                         ulong first, uint width, uint index) {
  if (!kResidual) {
    return x;
  }
  for (uint k = index; k < width; k += 32 * kSimdgroups) {
    store_value(sum, first + k, load_value(x, first + k) + load_value(residual, first + k));
  }
  threadgroup_barrier(mem_flags::mem_device);
  return sum;
}

kernel void rms_norm(constant NormArguments* a [[buffer(kNormArguments)]],
                     device const uchar* x [[buffer(kNormX)]],
                     device const float* weight [[buffer(kNormWeight), function_constant(kHasNorm)]],
                     device const uchar* residual [[buffer(kNormResidual), function_constant(kHasResidual)]],
                     device uchar* sum [[buffer(kNormSum), function_constant(kHasResidual)]],
                     device uchar* y [[buffer(kNormY)]], uint3 position [[threadgroup_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float inverse_of[1];
  const ulong first = ulong(position.x) * a->width;
  device const uchar* from = with_residual(x, residual, sum, first, a->width, index);
  if (simdgroup == 0) {
    const float mean = lanes16(from, first, a->width, 0.0f, true, lane) / float(a->width);
    if (lane == 0) {
      inverse_of[0] = 1.0f / precise::sqrt(mean + a->epsilon);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float inverse = inverse_of[0];
  for (uint k = index; k < a->width; k += 32 * kSimdgroups) {
    float value = load_value(from, first + k) * inverse;
    if (kNorm) {
      value = value * weight[k];
    }
    store_value(y, first + k, value);
  }
}

kernel void layer_norm(constant NormArguments* a [[buffer(kNormArguments)]],
                       device const uchar* x [[buffer(kNormX)]],
                       device const float* weight [[buffer(kNormWeight), function_constant(kHasNorm)]],
                       device const float* bias [[buffer(kNormBias), function_constant(kHasBias)]],
                       device const uchar* residual [[buffer(kNormResidual), function_constant(kHasResidual)]],
                       device uchar* sum [[buffer(kNormSum), function_constant(kHasResidual)]],
                       device uchar* y [[buffer(kNormY)]], uint3 position [[threadgroup_position_in_grid]],
                       uint index [[thread_index_in_threadgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float moments[2];
  const ulong first = ulong(position.x) * a->width;
  device const uchar* from = with_residual(x, residual, sum, first, a->width, index);
  if (simdgroup == 0) {
    const float mean = lanes16(from, first, a->width, 0.0f, false, lane) / float(a->width);
    const float variance = lanes16(from, first, a->width, mean, true, lane) / float(a->width);
    if (lane == 0) {
      moments[0] = mean;
      moments[1] = 1.0f / precise::sqrt(variance + a->epsilon);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float mean = moments[0], inverse = moments[1];
  for (uint k = index; k < a->width; k += 32 * kSimdgroups) {
    const float deviation = load_value(from, first + k) - mean;
    float value = deviation * inverse;
    if (kNorm) {
      value = value * weight[k];
    }
    if (kBias) {
      value = value + bias[k];
    }
    store_value(y, first + k, value);
  }
}
