// What the kernels of bitnet::GroupQueryAttention (docs/attention.md) share.
#ifndef BITNET_METAL_SHADERS_CACHE_H_
#define BITNET_METAL_SHADERS_CACHE_H_

#include "constants.h"

// Tokens of a row in this call that are no padding.
inline uint new_tokens(constant AttentionArguments* a, device const int* totals, device const int* lengths,
                       uint batch) {
  if (kQueryLengths) {
    return uint(lengths[batch]);
  }
  return min(a->sequence, uint(totals[batch] + 1));
}

// An element of the cache as a float.
inline float load_cache(device const uchar* cache, ulong index) {
  if (kInt8Cache) {
    return float(((device const char*)cache)[index]);
  }
  return ((device const float*)cache)[index];
}

#endif  // BITNET_METAL_SHADERS_CACHE_H_
