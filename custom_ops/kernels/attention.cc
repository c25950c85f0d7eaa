// Rotation, the cache, and how one call is cut into work items.
//
// Chunks of keys have a fixed place and length, and are merged in ascending order: the bits of a result depend
// neither on the number of threads nor on how a sequence was cut into calls.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "float_kernels.h"

namespace bitnet {
namespace {

// Products below which a phase runs on the calling thread: handing it out would cost more.
constexpr int64_t kInlineProducts = 1 << 19;
// Blocks below which the chunks of one block are handed out one by one.
constexpr int64_t kManyBlocks = 32;
// Chunks of one block whose sums are kept until they are merged.
constexpr int64_t kWaveChunks = 64;
// Tokens, or rows of a cache that is copied, of one work item of the preparation.
constexpr int64_t kTokensPerPiece = 32;
constexpr int64_t kMaxPieces = 64;

constexpr int64_t kFloatsPerLine = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t AlignFloats(int64_t count) { return CeilDiv(count, kFloatsPerLine) * kFloatsPerLine; }

// One call, as the work items see it.
template <typename T>
struct Work {
  const Attention<T>* call;
  const FloatKernels* kernels;
  int64_t pieces;          // of the preparation of one head
  int64_t head_rows;       // query rows of one head of keys
  int64_t block_rows;      // of one block
  int64_t blocks;          // of one head of keys
  int64_t partial_floats;  // of one chunk's sums
  int64_t wave_chunks;     // whose sums are kept at a time
  int64_t wave;            // first chunk of this wave
  float* query;            // [batch, kv_num_heads, head_rows, head_dim]
  float* partials;         // [all blocks, wave_chunks + 1, partial_floats], the last for what is merged

  int64_t all_blocks() const { return call->batch * call->attributes.kv_num_heads * blocks; }
};

template <typename T>
Work<T> Plan(const Attention<T>& call) {
  Work<T> work{};
  work.call = &call;
  work.kernels = &ChosenFloatKernels();
  work.head_rows = call.sequence * call.attributes.group();
  work.block_rows = std::min(BlockRows(call.head_dim), std::max<int64_t>(1, work.head_rows));
  work.blocks = CeilDiv(work.head_rows, work.block_rows);
  work.partial_floats = AlignFloats(work.block_rows * (call.head_dim + 2));
  const int64_t longest = call.batch == 0 ? 0 : *std::max_element(call.total, call.total + call.batch);
  work.wave_chunks = std::min(kWaveChunks, CeilDiv(longest, kChunkKeys));
  const bool copies = call.present_key != call.past_key;
  const int64_t lines = std::max(call.sequence, copies ? call.present_length : 0);
  work.pieces = std::clamp<int64_t>(CeilDiv(lines, kTokensPerPiece), 1, kMaxPieces);
  return work;
}

template <typename T>
bool Splits(const Work<T>& work) {
  return work.all_blocks() < kManyBlocks;
}

template <typename T>
int64_t QueryFloats(const Work<T>& work) {
  const Attention<T>& call = *work.call;
  return AlignFloats(call.batch * call.attributes.kv_num_heads * work.head_rows * call.head_dim);
}

// y = x rotated by the angles of one position, times `scale`; what lies beyond rotary_dim is only scaled.
template <typename T>
void Rotate(const Attention<T>& call, const float* x, int64_t position, float scale, float* y) {
  const int64_t half = call.rotary_dim / 2;
  const float* c = call.cosine + position * half;
  const float* s = call.sine + position * half;
  if (call.attributes.rotary_interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = (a * c[i] - b * s[i]) * scale;
      y[2 * i + 1] = (b * c[i] + a * s[i]) * scale;
    }
  } else {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      y[i] = (a * c[i] - b * s[i]) * scale;
      y[half + i] = (b * c[i] + a * s[i]) * scale;
    }
  }
  for (int64_t i = call.rotary_dim; i < call.head_dim; ++i) {
    y[i] = x[i] * scale;
  }
}

template <typename T>
void Copy(const T* from, int64_t count, T* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

// The part `piece` of `count` things.
struct Range {
  Range(int64_t count, int64_t piece, int64_t pieces)
      : first(count * piece / pieces), last(count * (piece + 1) / pieces) {}
  int64_t first, last;
};

// The old rows of one head of the cache, and zeros where there will be no row.
template <typename T>
void CopyCache(const Work<T>& work, int64_t batch, int64_t head, int64_t piece) {
  const Attention<T>& call = *work.call;
  const int64_t index = batch * call.attributes.kv_num_heads + head, dim = call.head_dim;
  const int64_t total = call.total[batch], past = total - call.count[batch];
  const Range old(past, piece, work.pieces), unused(call.present_length - total, piece, work.pieces);
  const struct {
    const T* past;
    T* present;
  } caches[] = {{call.past_key, call.present_key}, {call.past_value, call.present_value}};
  for (const auto& cache : caches) {
    T* to = cache.present + index * call.present_length * dim;
    if (old.first < old.last) {
      const T* from = cache.past + index * call.past_length * dim;
      Copy(from + old.first * dim, (old.last - old.first) * dim, to + old.first * dim);
    }
    std::fill(to + (total + unused.first) * dim, to + (total + unused.last) * dim, T{});
  }
}

// The scales of one head of an int8 cache, and their reciprocals.
struct HeadScales {
  HeadScales(const float* all, int64_t head, int64_t head_dim) : step(all + head * head_dim) {
    for (int64_t d = 0; d < head_dim; ++d) {
      inverse[d] = 1.0f / step[d];
    }
  }
  const float* step;
  float inverse[kMaxHeadDim];
};

// How new rows of one head enter the cache, and what its queries are multiplied by.
template <typename T>
struct HeadCache;

template <>
struct HeadCache<float> {
  HeadCache(const Work<float>& from, int64_t) : work(from) {}
  void StoreKey(const float* x, int64_t position, float* to) const {
    Rotate(*work.call, x, position, 1.0f, to);
  }
  void StoreValue(const float* x, float* to) const { Copy(x, work.call->head_dim, to); }
  void ScaleQuery(float*) const {}

  const Work<float>& work;
};

template <>
struct HeadCache<int8_t> {
  HeadCache(const Work<int8_t>& from, int64_t head)
      : work(from),
        key(from.call->key_scale, head, from.call->head_dim),
        value(from.call->value_scale, head, from.call->head_dim) {}
  void StoreKey(const float* x, int64_t position, int8_t* to) const {
    float rotated[kMaxHeadDim];
    Rotate(*work.call, x, position, 1.0f, rotated);
    work.kernels->quantize(rotated, key.inverse, work.call->head_dim, to);
  }
  void StoreValue(const float* x, int8_t* to) const {
    work.kernels->quantize(x, value.inverse, work.call->head_dim, to);
  }
  void ScaleQuery(float* query) const {
    for (int64_t d = 0; d < work.call->head_dim; ++d) {
      query[d] *= key.step[d];
    }
  }

  const Work<int8_t>& work;
  HeadScales key, value;
};

// Tokens of one head of keys: keys and values into the cache, rotated queries into the workspace.
template <typename T>
void PrepareItem(void* arg, size_t item) {
  const Work<T>& work = *static_cast<const Work<T>*>(arg);
  const Attention<T>& call = *work.call;
  const AttentionAttributes& a = call.attributes;
  const int64_t piece = static_cast<int64_t>(item) % work.pieces;
  const int64_t index = static_cast<int64_t>(item) / work.pieces;
  const int64_t batch = index / a.kv_num_heads, head = index % a.kv_num_heads;
  const int64_t dim = call.head_dim, group = a.group();
  if (call.present_key != call.past_key) {
    CopyCache(work, batch, head, piece);
  }
  const HeadCache<T> cache(work, head);
  const int64_t count = call.count[batch], past = call.total[batch] - count;
  const Range tokens(call.sequence, piece, work.pieces);
  for (int64_t t = tokens.first; t < tokens.last; ++t) {
    const int64_t row = batch * call.sequence + t;
    if (t >= count) {  // padding
      float* y = call.output + (row * a.num_heads + head * group) * dim;
      std::fill(y, y + group * dim, 0.0f);
      continue;
    }
    const int64_t place = (index * call.present_length + past + t) * dim;
    cache.StoreKey(call.key.data + row * call.key.stride + head * dim, past + t, call.present_key + place);
    cache.StoreValue(call.value.data + row * call.value.stride + head * dim, call.present_value + place);
    const float* query = call.query.data + row * call.query.stride + head * group * dim;
    float* rotated = work.query + (index * work.head_rows + t * group) * dim;
    for (int64_t g = 0; g < group; ++g) {
      Rotate(call, query + g * dim, past + t, a.scale, rotated + g * dim);
      cache.ScaleQuery(rotated + g * dim);
    }
  }
}

// One block of query rows and the limits of what they see.
template <typename T>
struct Block {
  Block(const Work<T>& work, int64_t number) {
    const Attention<T>& call = *work.call;
    const AttentionAttributes& a = call.attributes;
    const int64_t index = number / work.blocks;
    batch = index / a.kv_num_heads;
    head = index % a.kv_num_heads;
    first_row = number % work.blocks * work.block_rows;
    const int64_t count = call.count[batch], past = call.total[batch] - count;
    const int64_t rows = std::min(work.block_rows, count * a.group() - first_row);
    const int64_t cache = index * call.present_length * call.head_dim;
    operands = {work.query + (index * work.head_rows + first_row) * call.head_dim,
                call.present_key + cache,
                call.present_value + cache,
                first,
                last,
                std::max<int64_t>(rows, 0),
                call.head_dim,
                a.softcap};
    for (int64_t r = 0; r < operands.rows; ++r) {
      last[r] = past + (first_row + r) / a.group() + 1;
      first[r] = a.local_window_size < 0 ? 0 : std::max<int64_t>(0, last[r] - a.local_window_size);
    }
  }
  Block(const Block&) = delete;  // it points into itself
  Block& operator=(const Block&) = delete;

  // Chunks that some row sees.
  int64_t FirstChunk() const { return operands.rows == 0 ? 0 : first[0] / kChunkKeys; }
  int64_t LastChunk() const { return operands.rows == 0 ? 0 : CeilDiv(last[operands.rows - 1], kChunkKeys); }
  void Attend(const Work<T>& work, int64_t chunk, const Partial& sums) const {
    // Whole vectors from the chunk's beginning, so that a key's lane never depends on the window.
    const int64_t begin = std::max(chunk * kChunkKeys, first[0] / kHeadMultiple * kHeadMultiple);
    const int64_t end = std::min((chunk + 1) * kChunkKeys, last[operands.rows - 1]);
    ChunkFunction<T> (*work.kernels)(operands, begin, end, sums);
  }

  // Sums into results.
  void Finish(const Work<T>& work, const Partial& sums) const {
    const Attention<T>& call = *work.call;
    const AttentionAttributes& a = call.attributes;
    for (int64_t r = 0; r < operands.rows; ++r) {
      const int64_t token = batch * call.sequence + (first_row + r) / a.group();
      float* y =
          call.output + (token * a.num_heads + head * a.group() + (first_row + r) % a.group()) * call.head_dim;
      const float* values = sums.values + r * call.head_dim;
      const float inverse = 1.0f / sums.sum[r];
      for (int64_t d = 0; d < call.head_dim; ++d) {
        y[d] = values[d] * inverse;
      }
      if constexpr (std::is_same_v<T, int8_t>) {
        const float* step = call.value_scale + head * call.head_dim;
        for (int64_t d = 0; d < call.head_dim; ++d) {
          y[d] *= step[d];
        }
      }
    }
  }

  int64_t batch, head, first_row;
  int64_t first[kMaxBlockRows], last[kMaxBlockRows];
  AttentionBlock<T> operands;
};

// All chunks of one block, merged as they come.
template <typename T>
void BlockItem(void* arg, size_t item) {
  const Work<T>& work = *static_cast<const Work<T>*>(arg);
  const Block<T> block(work, static_cast<int64_t>(item));
  alignas(64) float values[2][kMaxBlockFloats];
  float peaks[2][kMaxBlockRows], totals[2][kMaxBlockRows];
  const Partial sums{values[0], peaks[0], totals[0]}, later{values[1], peaks[1], totals[1]};
  for (int64_t chunk = block.FirstChunk(); chunk < block.LastChunk(); ++chunk) {
    const bool first = chunk == block.FirstChunk();
    block.Attend(work, chunk, first ? sums : later);
    if (!first) {
      work.kernels->merge(sums, later, block.operands.rows, work.call->head_dim);
    }
  }
  block.Finish(work, sums);
}

template <typename T>
Partial PartialAt(const Work<T>& work, int64_t block, int64_t chunk) {
  float* at = work.partials + (block * (work.wave_chunks + 1) + chunk) * work.partial_floats;
  const int64_t values = work.block_rows * work.call->head_dim;
  return {at, at + values, at + values + work.block_rows};
}

// One chunk of one block.
template <typename T>
void ChunkItem(void* arg, size_t item) {
  const Work<T>& work = *static_cast<const Work<T>*>(arg);
  const int64_t number = static_cast<int64_t>(item) / work.wave_chunks;
  const int64_t index = static_cast<int64_t>(item) % work.wave_chunks;
  const int64_t chunk = work.wave + index;
  const Block<T> block(work, number);
  if (chunk >= block.FirstChunk() && chunk < block.LastChunk()) {
    block.Attend(work, chunk, PartialAt(work, number, index));
  }
}

// The chunks of all blocks side by side, some of each at a time.
template <typename T>
bool RunChunks(Work<T>& work, const Executor& executor) {
  int64_t first = INT64_MAX, last = 0;
  for (int64_t number = 0; number < work.all_blocks(); ++number) {
    const Block<T> block(work, number);
    if (block.operands.rows > 0) {
      first = std::min(first, block.FirstChunk());
      last = std::max(last, block.LastChunk());
      const Partial sums = PartialAt(work, number, work.wave_chunks);
      std::fill(sums.sum, sums.sum + block.operands.rows, 0.0f);
    }
  }
  const auto items = static_cast<size_t>(work.all_blocks() * work.wave_chunks);
  for (work.wave = first; work.wave < last; work.wave += work.wave_chunks) {
    if (!executor.parallel_for(executor.self, items, ChunkItem<T>, &work)) {
      return false;
    }
    for (int64_t number = 0; number < work.all_blocks(); ++number) {
      const Block<T> block(work, number);
      const Partial sums = PartialAt(work, number, work.wave_chunks);
      const int64_t begin = std::max(block.FirstChunk(), work.wave);
      const int64_t end = std::min(block.LastChunk(), work.wave + work.wave_chunks);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        work.kernels->merge(sums, PartialAt(work, number, chunk - work.wave), block.operands.rows,
                            work.call->head_dim);
      }
      if (begin < end && end == block.LastChunk()) {
        block.Finish(work, sums);
      }
    }
  }
  return true;
}

// Products of all queries with all keys that they may see, and with the values.
template <typename T>
int64_t Products(const Work<T>& work) {
  const Attention<T>& call = *work.call;
  int64_t pairs = 0;
  for (int64_t b = 0; b < call.batch; ++b) {
    pairs += static_cast<int64_t>(call.count[b]) * call.total[b];
  }
  return 2 * pairs * call.attributes.num_heads * call.head_dim;
}

bool OnThisThread(void*, size_t n, void (*fn)(void*, size_t), void* arg) {
  for (size_t i = 0; i < n; ++i) {
    fn(arg, i);
  }
  return true;
}

}  // namespace

int64_t BlockRows(int64_t head_dim) { return std::min(kMaxBlockRows, kMaxBlockFloats / head_dim); }

template <typename T>
size_t AttentionWorkspaceBytes(const Attention<T>& call) {
  const Work<T> work = Plan(call);
  const int64_t partials = Splits(work) ? work.all_blocks() * (work.wave_chunks + 1) * work.partial_floats : 0;
  return static_cast<size_t>(QueryFloats(work) + partials) * sizeof(float);
}

template <typename T>
bool RunAttention(const Attention<T>& call, void* workspace, const Executor& executor) {
  Work<T> work = Plan(call);
  work.query = static_cast<float*>(workspace);
  work.partials = work.query + QueryFloats(work);
  const Executor here{nullptr, OnThisThread};
  const int64_t heads = call.batch * call.attributes.kv_num_heads;
  const Executor& prepare = work.pieces == 1 && heads <= kTokensPerPiece ? here : executor;
  if (!prepare.parallel_for(prepare.self, static_cast<size_t>(heads * work.pieces), PrepareItem<T>, &work)) {
    return false;
  }
  const bool small = Products(work) < kInlineProducts;
  if (!small && Splits(work)) {
    return RunChunks(work, executor);
  }
  const Executor& attend = small ? here : executor;
  return attend.parallel_for(attend.self, static_cast<size_t>(work.all_blocks()), BlockItem<T>, &work);
}

template size_t AttentionWorkspaceBytes(const Attention<float>&);
template size_t AttentionWorkspaceBytes(const Attention<int8_t>&);
template bool RunAttention(const Attention<float>&, void*, const Executor&);
template bool RunAttention(const Attention<int8_t>&, void*, const Executor&);

}  // namespace bitnet
