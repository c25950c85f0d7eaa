// The arithmetic of bitnet::GroupQueryAttention, free of any runtime's types; docs/attention.md is the
// contract.
#ifndef BITNET_KERNELS_ATTENTION_H_
#define BITNET_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "bitlinear.h"

namespace bitnet {

// A head's length is a multiple of kHeadMultiple, whole vectors.
constexpr int64_t kHeadMultiple = 8;
constexpr int64_t kMaxHeadDim = 512;
// Keys of one chunk: the softmax of a chunk is computed by itself, then chunks are merged in ascending order.
constexpr int64_t kChunkKeys = 128;

struct AttentionAttributes {
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;
  bool do_rotary = false;
  bool rotary_interleaved = false;
  float scale = 0.0f;
  int64_t local_window_size = -1;
  float softcap = 0.0f;

  int64_t group() const { return num_heads / kv_num_heads; }
};

// Rows of a tensor [batch, sequence, ...], of which heads lie one after the other from `data` on.
struct TokenRows {
  const float* data;
  int64_t stride;  // floats from one token to the next
};

// One call; all values have been checked. The cache has elements of type T, float or int8_t.
template <typename T>
struct Attention {
  AttentionAttributes attributes;
  int64_t batch;
  int64_t sequence;
  int64_t head_dim;
  int64_t rotary_dim;
  int64_t past_length;     // of the buffers
  int64_t present_length;  // of the buffers
  TokenRows query, key, value;
  const T* past_key;
  const T* past_value;
  T* present_key;  // where it is past_key, what it holds stays
  T* present_value;
  const float* key_scale;  // [kv_num_heads, head_dim] of an int8 cache: the value of one step
  const float* value_scale;
  const int32_t* total;  // [batch] tokens in the cache after this call
  const int32_t* count;  // [batch] tokens of this call that are not padding
  const float* cosine;   // [.., rotary_dim / 2]
  const float* sine;
  float* output;  // [batch, sequence, num_heads * head_dim]
};

// Queries on one head of keys and values. Rows lie `head_dim` floats apart; row r sees keys first[r] .. last[r]
// - 1, and both limits ascend.
template <typename T>
struct AttentionBlock {
  const float* query;  // multiplied by the scales of scores and keys already
  const T* key;
  const T* value;
  const int64_t* first;
  const int64_t* last;
  int64_t rows;
  int64_t head_dim;
  float softcap;
};

// Sums over some keys for some rows: of exp(score - peak) times the value, and of exp(score - peak) itself.
struct Partial {
  float* values;  // [rows, head_dim]
  float* peak;    // [rows]
  float* sum;     // [rows]; 0 where a row has seen no key
};

// Rows of one block at most, for heads of this length: its sums stay in the first-level cache.
int64_t BlockRows(int64_t head_dim);
constexpr int64_t kMaxBlockRows = 64;
constexpr int64_t kMaxBlockFloats = 4096;

// Bytes that `RunAttention` needs, aligned to 64.
template <typename T>
size_t AttentionWorkspaceBytes(const Attention<T>& call);

// False if the executor failed.
template <typename T>
bool RunAttention(const Attention<T>& call, void* workspace, const Executor& executor);

}  // namespace bitnet

#endif  // BITNET_KERNELS_ATTENTION_H_
