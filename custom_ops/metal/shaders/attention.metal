// Attention of a few query rows over chunks of 128 keys (docs/attention.md), bit for bit as on the CPU.
//
// Scores: eight lanes of a SIMD group take one key, feature by feature. Sums of values: one thread takes one
// feature, key by key. Chunks are merged in ascending order, here or, with Split, by attention_merge.
#include "cache.h"
#include "functions.h"
#include "values.h"

inline float never() { return as_type<float>(0xFF800000u); }  // minus infinity

// Some query rows of one head of keys. Row r sees the keys first(r) .. last(r) - 1; both ascend with r.
struct Rows {
  uint batch, head;  // of keys
  uint begin, count;
  uint past;
};

inline Rows rows_of(constant AttentionArguments* a, device const int* totals, device const int* lengths,
                    uint3 position) {
  const uint batch = position.y / a->kv_heads, begin = position.x * kRows;
  const uint tokens = new_tokens(a, totals, lengths, batch);
  const uint all = tokens * (a->heads / a->kv_heads);
  const uint count = begin < all ? min(all - begin, uint(kRows)) : 0;
  return {batch, position.y % a->kv_heads, begin, count, uint(totals[batch]) + 1 - tokens};
}

inline uint last_key(constant AttentionArguments* a, thread const Rows& rows, uint r) {
  return rows.past + (rows.begin + r) / (a->heads / a->kv_heads) + 1;
}

inline uint first_key(constant AttentionArguments* a, thread const Rows& rows, uint r) {
  const uint last = last_key(a, rows, r);
  return a->window == 0 || a->window > last ? 0 : last - a->window;
}

// Where the sums of one row and chunk lie: head_dim values, the peak, the sum.
inline ulong partial_at(constant AttentionArguments* a, thread const Rows& rows, uint r, uint chunk) {
  const uint of_head = a->sequence * (a->heads / a->kv_heads);
  const ulong row = (ulong(rows.batch) * a->kv_heads + rows.head) * of_head + rows.begin + r;
  return (row * a->chunks + chunk) * (a->head_dim + 2);
}

inline ulong output_at(constant AttentionArguments* a, thread const Rows& rows, uint r) {
  const uint group = a->heads / a->kv_heads, row = rows.begin + r;
  const ulong token = ulong(rows.batch) * a->sequence + row / group;
  return (token * a->heads + rows.head * group + row % group) * a->head_dim;
}

// How a later chunk joins the sums before it.
enum { kSkip = 0, kReplace = 1, kMerge = 2 };

struct Running {
  float peak, sum;
};

struct Join {
  uint how;
  float mine, its;  // factors of the sums so far and of the chunk's
};

// Step 4: changes the peak and the sum.
inline Join join(thread Running& running, float peak, float sum) {
  if (sum == 0.0f) {
    return {kSkip, 0.0f, 0.0f};
  }
  if (running.sum == 0.0f) {
    running.peak = peak;
    running.sum = sum;
    return {kReplace, 0.0f, 0.0f};
  }
  const float common = running.peak < peak ? peak : running.peak;
  const float mine = exp_of_negative(running.peak - common), its = exp_of_negative(peak - common);
  const float left = running.sum * mine, right = sum * its;
  running.peak = common;
  running.sum = left + right;
  return {kMerge, mine, its};
}

inline float joined(uint how, float mine, float its, float value, float later) {
  if (how == kSkip) {
    return value;
  }
  if (how == kReplace) {
    return later;
  }
  const float left = value * mine, right = later * its;
  return left + right;
}

// The end: step 5.
inline float finished(constant AttentionArguments* a, thread const Rows& rows, float value, float sum, uint d,
                      device const float* value_scale) {
  float result = value * (1.0f / sum);
  if (kInt8Cache) {
    result = result * value_scale[rows.head * a->head_dim + d];
  }
  return result;
}

kernel void attention(
    constant AttentionArguments* a [[buffer(kAttentionArguments)]],
    device const int* totals [[buffer(kAttentionTotals)]],
    device const int* lengths [[buffer(kAttentionQueryLengths), function_constant(kHasQueryLengths)]],
    device const float* rotated [[buffer(kAttentionRotated)]],
    device const uchar* key_cache [[buffer(kAttentionKeyCache)]],
    device const uchar* value_cache [[buffer(kAttentionValueCache)]],
    device const float* value_scale [[buffer(kAttentionValueScale), function_constant(kHasInt8Cache)]],
    device float* partials [[buffer(kAttentionPartials), function_constant(kHasSplit)]],
    device float* output [[buffer(kAttentionOutput), function_constant(kHasNoSplit)]],
    uint3 position [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float queries[kMaxAttentionFloats];
  threadgroup float values[kMaxAttentionFloats];  // sums so far; each feature belongs to one thread
  threadgroup float scores[kMaxAttentionRows * kChunkKeys];
  threadgroup float sum_of[kMaxAttentionRows];
  threadgroup float mine_of[kMaxAttentionRows];
  threadgroup float its_of[kMaxAttentionRows];
  threadgroup uint how_of[kMaxAttentionRows];
  threadgroup uint low_of[kMaxAttentionRows];  // keys of this chunk that a row sees
  threadgroup uint high_of[kMaxAttentionRows];
  const Rows rows = rows_of(a, totals, lengths, position);
  if (rows.count == 0) {
    return;
  }
  const uint dim = a->head_dim, threads = 32 * kSimdgroups;
  const uint first = first_key(a, rows, 0), last = last_key(a, rows, rows.count - 1);
  uint chunk = first / kChunkKeys, chunks = (last + kChunkKeys - 1) / kChunkKeys;
  if (kSplit) {
    if (position.z < chunk || position.z >= chunks) {
      return;
    }
    chunk = position.z;
    chunks = chunk + 1;
  }
  const ulong of_head = ulong(rows.batch) * a->kv_heads + rows.head;
  const ulong query_row = of_head * (a->sequence * (a->heads / a->kv_heads)) + rows.begin;
  const ulong cache = of_head * a->cache_length * dim;
  for (uint i = index; i < rows.count * dim; i += threads) {
    queries[i] = rotated[query_row * dim + i];
  }
  Running running[kMaxAttentionRows];  // of the rows simdgroup, simdgroup + kSimdgroups ..
  for (uint i = 0; i < kMaxAttentionRows; ++i) {
    running[i].peak = never();
    running[i].sum = 0.0f;
  }
  for (; chunk < chunks; ++chunk) {
    const uint start = chunk * kChunkKeys;
    const uint begin = max(start, first / 8 * 8), end = min(start + kChunkKeys, last);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // queries are there, and the scores before are used up

    // Step 2.
    for (uint base = begin + simdgroup * 4; base < end; base += kSimdgroups * 4) {
      const uint key = base + lane / 8;
      const ulong from = cache + ulong(min(key, end - 1)) * dim;
      float sums[kMaxAttentionRows];
      for (uint r = 0; r < kRows; ++r) {
        sums[r] = 0.0f;
      }
      for (uint d = lane % 8; d < dim; d += 8) {
        const float x = load_cache(key_cache, from + d);
        for (uint r = 0; r < rows.count; ++r) {
          const float product = queries[r * dim + d] * x;
          sums[r] = sums[r] + product;
        }
      }
      for (uint r = 0; r < rows.count; ++r) {
        const float score = fold8(sums[r]);
        if (lane % 8 == 0 && key < end) {
          scores[r * kChunkKeys + key - start] = score;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Step 3 up to the sums of p, and what step 4 needs of them.
    for (uint r = simdgroup; r < rows.count; r += kSimdgroups) {
      const uint low = max(begin, first_key(a, rows, r)), high = min(end, last_key(a, rows, r));
      threadgroup float* of_row = scores + r * kChunkKeys;
      float peak = never(), sum = 0.0f;
      if (low < high) {
        float mine[kChunkKeys / 32];
        for (uint i = 0; i < kChunkKeys / 32; ++i) {
          const uint key = start + lane + 32 * i;
          mine[i] = never();
          if (key >= low && key < high) {
            mine[i] = of_row[key - start];
            if (a->softcap > 0.0f) {
              const float inverse = 1.0f / a->softcap;
              mine[i] = tanh_of(mine[i] * inverse) * a->softcap;
            }
          }
          peak = max(peak, mine[i]);
        }
        peak = simd_max(peak);
        for (uint i = 0; i < kChunkKeys / 32; ++i) {
          of_row[lane + 32 * i] = exp_of_negative(mine[i] - peak);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = low / 8 * 8 - start + lane % 8; i < high - start; i += 8) {
          sum = sum + of_row[i];  // 0 for a key that the row does not see
        }
        sum = fold8(sum);
      }
      const Join how = join(running[r / kSimdgroups], peak, sum);
      if (lane == 0) {
        low_of[r] = low;
        high_of[r] = high;
        how_of[r] = how.how;
        mine_of[r] = how.mine;
        its_of[r] = how.its;
        sum_of[r] = running[r / kSimdgroups].sum;
        if (kSplit) {
          const ulong at = partial_at(a, rows, r, chunk) + dim;
          partials[at] = peak;
          partials[at + 1] = sum;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // The rest of steps 3 and 4.
    for (uint d = index; d < dim; d += threads) {
      float sums[kMaxAttentionRows];
      for (uint r = 0; r < kRows; ++r) {
        sums[r] = 0.0f;
      }
      for (uint key = begin; key < end; ++key) {
        const float x = load_cache(value_cache, cache + ulong(key) * dim + d);
        for (uint r = 0; r < rows.count; ++r) {
          if (key >= low_of[r] && key < high_of[r]) {
            const float product = scores[r * kChunkKeys + key - start] * x;
            sums[r] = sums[r] + product;
          }
        }
      }
      for (uint r = 0; r < rows.count; ++r) {
        if (kSplit) {
          partials[partial_at(a, rows, r, chunk) + d] = sums[r];
        } else {
          values[r * dim + d] = joined(how_of[r], mine_of[r], its_of[r], values[r * dim + d], sums[r]);
        }
      }
    }
  }
  if (!kSplit) {
    for (uint d = index; d < dim; d += threads) {
      for (uint r = 0; r < rows.count; ++r) {
        output[output_at(a, rows, r) + d] = finished(a, rows, values[r * dim + d], sum_of[r], d, value_scale);
      }
    }
  }
}

kernel void attention_merge(constant AttentionArguments* a [[buffer(kAttentionArguments)]],
                            device const int* totals [[buffer(kAttentionTotals)]],
                            device const int* lengths
                            [[buffer(kAttentionQueryLengths), function_constant(kHasQueryLengths)]],
                            device const float* value_scale
                            [[buffer(kAttentionValueScale), function_constant(kHasInt8Cache)]],
                            device const float* partials [[buffer(kAttentionPartials)]],
                            device float* output [[buffer(kAttentionOutput)]],
                            uint3 position [[threadgroup_position_in_grid]],
                            uint index [[thread_index_in_threadgroup]]) {
  const Rows rows = rows_of(a, totals, lengths, position);
  const uint dim = a->head_dim;
  for (uint i = index; i < rows.count * dim; i += 32 * kSimdgroups) {
    const uint r = i / dim, d = i % dim;
    const uint chunks = (last_key(a, rows, r) + kChunkKeys - 1) / kChunkKeys;
    Running running = {never(), 0.0f};
    float value = 0.0f;
    for (uint chunk = first_key(a, rows, r) / kChunkKeys; chunk < chunks; ++chunk) {
      const ulong at = partial_at(a, rows, r, chunk);
      const Join how = join(running, partials[at + dim], partials[at + dim + 1]);
      value = joined(how.how, how.mine, how.its, value, partials[at + d]);
    }
    output[output_at(a, rows, r) + d] = finished(a, rows, value, running.sum, d, value_scale);
  }
}
