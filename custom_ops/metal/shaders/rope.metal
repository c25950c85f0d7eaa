// Rotation of queries and keys (Su et al., "RoFormer", 2021), and the way of keys and values into the cache.
#include "cache.h"

// Feature d of a head at one position, rotated.
inline float rotated_feature(constant AttentionArguments* a, device const float* head, uint d, uint place,
                             device const float* cosine, device const float* sine) {
  const float x = head[d];
  if (!kRotary || d >= a->rotary_dim) {
    return x;
  }
  const uint pairs = a->rotary_dim / 2;
  const bool interleaved = kRotary == 2;
  const uint pair = interleaved ? d / 2 : d % pairs;
  const bool second = interleaved ? d % 2 != 0 : d >= pairs;
  const uint other = interleaved ? d ^ 1u : second ? d - pairs : d + pairs;
  const float partner = head[other];
  const float along = x * cosine[place * pairs + pair];
  const float across = partner * sine[place * pairs + pair];
  return second ? along + across : along - across;
}

// What enters an int8 cache: 127 for NaN.
inline char cache_code(float x, float step) {
  const float multiple = x * (1.0f / step);
  const float below = multiple < 127.0f ? multiple : 127.0f;
  return char(int(rint(below > -128.0f ? below : -128.0f)));
}

inline void store_cache(device uchar* cache, ulong index, float x, device const float* step, uint feature) {
  if (kInt8Cache) {
    ((device char*)cache)[index] = cache_code(x, step[feature]);
  } else {
    ((device float*)cache)[index] = x;
  }
}

kernel void attention_prepare(
    constant AttentionArguments* a [[buffer(kPrepareArguments)]],
    device const float* query [[buffer(kPrepareQuery)]], device const float* key [[buffer(kPrepareKey)]],
    device const float* value [[buffer(kPrepareValue)]], device const int* totals [[buffer(kPrepareTotals)]],
    device const int* lengths [[buffer(kPrepareQueryLengths), function_constant(kHasQueryLengths)]],
    device const float* cosine [[buffer(kPrepareCosine), function_constant(kHasRotary)]],
    device const float* sine [[buffer(kPrepareSine), function_constant(kHasRotary)]],
    device const float* key_scale [[buffer(kPrepareKeyScale), function_constant(kHasInt8Cache)]],
    device const float* value_scale [[buffer(kPrepareValueScale), function_constant(kHasInt8Cache)]],
    device uchar* key_cache [[buffer(kPrepareKeyCache)]],
    device uchar* value_cache [[buffer(kPrepareValueCache)]], device float* rotated [[buffer(kPrepareRotated)]],
    device float* output [[buffer(kPrepareOutput)]], uint3 position [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]]) {
  const uint element = position.x * 32 * kSimdgroups + index, dim = a->head_dim;
  const uint head = element / dim, d = element % dim, token = position.y, batch = position.z;
  if (head >= a->heads + 2 * a->kv_heads) {
    return;
  }
  const uint group = a->heads / a->kv_heads;
  const uint count = new_tokens(a, totals, lengths, batch);
  const ulong row = ulong(batch) * a->sequence + token;
  if (token >= count) {  // padding
    if (head < a->heads) {
      output[(row * a->heads + head) * dim + d] = 0.0f;
    }
    return;
  }
  const uint place = uint(totals[batch]) + 1 - count + token;
  if (head < a->heads) {
    float x = rotated_feature(a, query + row * a->query_stride + head * dim, d, place, cosine, sine);
    x = x * a->scale;
    const uint kv = head / group;
    if (kInt8Cache) {
      x = x * key_scale[kv * dim + d];
    }
    const ulong of_head = (ulong(batch) * a->kv_heads + kv) * (a->sequence * group);
    rotated[(of_head + token * group + head % group) * dim + d] = x;
    return;
  }
  const bool is_key = head < a->heads + a->kv_heads;
  const uint kv = head - a->heads - (is_key ? 0 : a->kv_heads);
  const ulong to = ((ulong(batch) * a->kv_heads + kv) * a->cache_length + place) * dim + d;
  if (is_key) {
    const float x = rotated_feature(a, key + row * a->key_stride + kv * dim, d, place, cosine, sine);
    store_cache(key_cache, to, x, key_scale, kv * dim + d);
  } else {
    store_cache(value_cache, to, value[row * a->value_stride + kv * dim + d], value_scale, kv * dim + d);
  }
}

kernel void attention_copy(
    constant AttentionArguments* a [[buffer(kCopyArguments)]], device const int* totals [[buffer(kCopyTotals)]],
    device const int* lengths [[buffer(kCopyQueryLengths), function_constant(kHasQueryLengths)]],
    device const uchar* past_key [[buffer(kCopyPastKey)]],
    device const uchar* past_value [[buffer(kCopyPastValue)]],
    device uchar* key_cache [[buffer(kCopyKeyCache)]], device uchar* value_cache [[buffer(kCopyValueCache)]],
    uint3 position [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {
  const uint element = position.x * 32 * kSimdgroups + index, place = element / a->head_dim;
  const uint head = position.y, batch = head / a->kv_heads;
  if (place >= a->cache_length) {
    return;
  }
  const uint total = uint(totals[batch]) + 1, past = total - new_tokens(a, totals, lengths, batch);
  if (place >= past && place < total) {
    return;  // attention_prepare writes them
  }
  const ulong from = ulong(head) * a->past_length * a->head_dim + element;
  const ulong to = ulong(head) * a->cache_length * a->head_dim + element;
  const bool old = place < past;
  if (kInt8Cache) {
    ((device char*)key_cache)[to] = old ? ((device const char*)past_key)[from] : char(0);
    ((device char*)value_cache)[to] = old ? ((device const char*)past_value)[from] : char(0);
  } else {
    ((device float*)key_cache)[to] = old ? ((device const float*)past_key)[from] : 0.0f;
    ((device float*)value_cache)[to] = old ? ((device const float*)past_value)[from] : 0.0f;
  }
}
