// Attention over one chunk of keys for one instruction set; included by the file of each.
#ifndef BITNET_KERNELS_ATTENTION_KERNEL_H_
#define BITNET_KERNELS_ATTENTION_KERNEL_H_

#include <algorithm>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "vec_math.h"

namespace bitnet::BITNET_VEC_NAMESPACE {

// Values of this many keys are read once for all rows, and stay in the first-level cache meanwhile.
constexpr int64_t kValueTile = 16;

// How many floats ahead values are prefetched: the processor's own prefetching does not keep up.
constexpr int64_t kValuesAhead = 2048;
constexpr int64_t kLineBytes = 64;

// With more rows than this, int8 keys and values are converted to floats in memory, once for all of them.
constexpr int64_t kDirectRows = 4;

// Int8 rows of the cache as floats: converted once for all rows of a block.
BITNET_INLINE void Widen(const int8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Store(to + i, Load(from + i));
  }
}

// Scores of Rows queries with Keys keys, at most eight in all; those of a query lie `apart` from each other.
// The first queries of a block bring the values of four keys, which lie at `values`, on their way for the next
// step.
template <int Rows, int Keys, bool Fetch, typename Key, typename T>
BITNET_INLINE void ScoreTile(const float* q, int64_t head_dim, const Key* const* key, const T* values,
                             float* scores, int64_t apart) {
  V sums[8];
  for (V& sum : sums) {
    sum = Set(0.0f);
  }
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    if constexpr (Fetch) {
      for (int64_t i = 0; i < 4 * kLanes; i += kLineBytes / static_cast<int64_t>(sizeof(T))) {
        Prefetch(values + 4 * d + i);
      }
    }
    V k[Keys];
    for (int j = 0; j < Keys; ++j) {
      k[j] = Load(key[j] + d);
    }
    for (int r = 0; r < Rows; ++r) {
      const V row = Load(q + r * head_dim + d);
      for (int j = 0; j < Keys; ++j) {
        sums[r * Keys + j] = Add(sums[r * Keys + j], Mul(row, k[j]));
      }
    }
  }
  float folded[8];
  Store4(folded, folded + 4, Sum8(sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7]));
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < Keys; ++j) {
      scores[r * kChunkKeys + j * apart] = folded[r * Keys + j];
    }
  }
}

// Scores of all rows of the block with four keys.
template <typename Key, typename T>
BITNET_INLINE void ScoreRows(const AttentionBlock<T>& block, const Key* const (&key)[4], const T* values,
                             float* scores, int64_t apart) {
  const auto tile = [&](auto rows, auto keys, auto fetch, int64_t row, int64_t first) {
    ScoreTile<rows(), keys(), fetch()>(block.query + row * block.head_dim, block.head_dim, key + first, values,
                                       scores + row * kChunkKeys + first * apart, apart);
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 3> kThree;
  constexpr std::integral_constant<int, 4> kFour;
  constexpr std::true_type kFetch;
  constexpr std::false_type kNoFetch;
  if constexpr (std::is_same_v<Key, int8_t>) {
    // A key is converted once for all rows.
    if (block.rows > 2) {
      const auto pair = [&](auto rows) {
        tile(rows, kTwo, kFetch, 0, 0);
        tile(rows, kTwo, kNoFetch, 0, 2);
      };
      if (block.rows == 3) {
        pair(kThree);
      } else {
        pair(kFour);
      }
      return;
    }
  }
  if (block.rows == 1) {
    tile(kOne, kFour, kFetch, 0, 0);
    return;
  }
  tile(kTwo, kFour, kFetch, 0, 0);
  int64_t row = 2;
  for (; row + 2 <= block.rows; row += 2) {
    tile(kTwo, kFour, kNoFetch, row, 0);
  }
  if (row < block.rows) {
    tile(kOne, kFour, kNoFetch, row, 0);
  }
}

// Scores of all rows with keys begin .. end - 1, and on to a multiple of kLanes with copies of the last key's.
// The four keys of a tile lie a quarter of the chunk apart: memory answers four streams faster than one.
template <typename T>
void Scores(const AttentionBlock<T>& block, int64_t begin, int64_t end, float* scores) {
  const int64_t padded = (end - begin + kLanes - 1) / kLanes * kLanes;
  const int64_t quarter = padded / 4;
  for (int64_t i = 0; i < quarter; ++i) {
    const T* key[4];
    for (int64_t j = 0; j < 4; ++j) {
      key[j] = block.key + std::min(begin + i + j * quarter, end - 1) * block.head_dim;
    }
    const T* values = block.value + std::min(begin + 4 * i, end - 1) * block.head_dim;
    if constexpr (std::is_same_v<T, int8_t>) {
      if (block.rows > kDirectRows) {
        alignas(64) float wide[4 * kMaxHeadDim];
        const float* wide_key[4];
        for (int64_t j = 0; j < 4; ++j) {
          Widen(key[j], block.head_dim, wide + j * block.head_dim);
          wide_key[j] = wide + j * block.head_dim;
        }
        ScoreRows(block, wide_key, values, scores + i, quarter);
        continue;
      }
    }
    ScoreRows(block, key, values, scores + i, quarter);
  }
}

// Scores of one row into exp(score - peak), with 0 for keys that the row does not see.
inline void Exponentials(float* scores, int64_t count, int64_t first, int64_t last, float softcap, float* peak,
                         float* sum) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  first = std::clamp<int64_t>(first, 0, padded);
  last = std::clamp<int64_t>(last, 0, count);
  if (first >= last) {
    std::fill(scores, scores + padded, 0.0f);
    *peak = kNever;
    *sum = 0.0f;
    return;
  }
  if (softcap > 0.0f) {
    const V limit = Set(softcap), inverse = Set(1.0f / softcap);
    for (int64_t i = 0; i < padded; i += kLanes) {
      Store(scores + i, Mul(Tanh(Mul(Load(scores + i), inverse)), limit));
    }
  }
  std::fill(scores, scores + first, kNever);
  std::fill(scores + last, scores + padded, kNever);
  float lanes[kLanes];
  V largest = Set(kNever);
  for (int64_t i = 0; i < padded; i += kLanes) {
    largest = Max(largest, Load(scores + i));
  }
  Store(lanes, largest);
  *peak = *std::max_element(lanes, lanes + kLanes);
  V total = Set(0.0f);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V p = ExpOfNegative(Sub(Load(scores + i), Set(*peak)));
    Store(scores + i, p);
    total = Add(total, p);
  }
  Store(lanes, total);
  *sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// values[r][d .. d + 8 * Vecs) += the sum over keys of p[r][key] * value[key][d ..), keys in ascending order.
template <int Rows, int Vecs, bool Fetch, typename T>
BITNET_INLINE void ValueTile(const float* p, const T* value, int64_t keys, int64_t head_dim, bool fresh,
                             float* values) {
  V sums[Rows][Vecs];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vecs; ++v) {
      sums[r][v] = fresh ? Set(0.0f) : Load(values + r * head_dim + v * kLanes);
    }
  }
  for (int64_t k = 0; k < keys; ++k) {
    const T* from = value + k * head_dim;
    if constexpr (Fetch) {
      for (int v = 0; v < Vecs; v += 2) {
        Prefetch(from + kValuesAhead + v * kLanes);
      }
    }
    V row[Vecs];
    for (int v = 0; v < Vecs; ++v) {
      row[v] = Load(from + v * kLanes);
    }
    for (int r = 0; r < Rows; ++r) {
      const V weight = Set(p[r * kChunkKeys + k]);
      for (int v = 0; v < Vecs; ++v) {
        sums[r][v] = Add(sums[r][v], Mul(weight, row[v]));
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vecs; ++v) {
      Store(values + r * head_dim + v * kLanes, sums[r][v]);
    }
  }
}

// Eight sums at a time are in flight, whatever the number of rows.
template <int Rows, bool Fetch, typename T>
void ValueRows(const float* p, const T* value, int64_t keys, int64_t head_dim, bool fresh, float* values) {
  constexpr int kVecs = Rows == 1 ? 8 : Rows == 2 ? 4 : 2;
  int64_t d = 0;
  for (; d + kVecs * kLanes <= head_dim; d += kVecs * kLanes) {
    ValueTile<Rows, kVecs, Fetch>(p, value + d, keys, head_dim, fresh, values + d);
  }
  for (; d < head_dim; d += kLanes) {
    ValueTile<Rows, 1, Fetch>(p, value + d, keys, head_dim, fresh, values + d);
  }
}

template <typename T>
using ValueFunction = void (*)(const float*, const T*, int64_t, int64_t, bool, float*);

// For 1 to 4 rows.
template <bool Fetch, typename T>
constexpr ValueFunction<T> kValueRows[] = {nullptr, ValueRows<1, Fetch, T>, ValueRows<2, Fetch, T>,
                                           ValueRows<3, Fetch, T>, ValueRows<4, Fetch, T>};

template <typename T>
void Attend(const AttentionBlock<T>& block, int64_t begin, int64_t end, const Partial& sums) {
  alignas(64) float scores[kMaxBlockRows * kChunkKeys];
  const int64_t count = end - begin, dim = block.head_dim;
  Scores(block, begin, end, scores);
  for (int64_t r = 0; r < block.rows; ++r) {
    Exponentials(scores + r * kChunkKeys, count, block.first[r] - begin, block.last[r] - begin, block.softcap,
                 sums.peak + r, sums.sum + r);
  }
  for (int64_t k = 0; k < count; k += kValueTile) {
    const int64_t keys = std::min(kValueTile, count - k);
    const T* value = block.value + (begin + k) * dim;
    const auto rows = [&](auto function, const auto* from, int64_t r) {
      function(scores + r * kChunkKeys + k, from, keys, dim, k == 0, sums.values + r * dim);
    };
    int64_t r = 0;
    if constexpr (std::is_same_v<T, int8_t>) {
      // The values were fetched beside the keys. While they are summed, the next chunk's keys come.
      const int64_t next = begin + k + kChunkKeys;
      const int64_t bytes = std::min(kValueTile, block.last[block.rows - 1] - next) * dim;
      for (int64_t i = 0; i < bytes; i += kLineBytes) {
        Prefetch(block.key + next * dim + i);
      }
      if (block.rows > kDirectRows) {
        alignas(64) float wide[kValueTile * kMaxHeadDim];
        Widen(value, keys * dim, wide);
        for (; r < block.rows; r += 4) {
          rows(kValueRows<false, float>[std::min<int64_t>(4, block.rows - r)], wide, r);
        }
      }
    } else {
      r = std::min<int64_t>(4, block.rows);
      rows(kValueRows<true, T>[r], value, 0);
    }
    for (; r < block.rows; r += 4) {
      rows(kValueRows<false, T>[std::min<int64_t>(4, block.rows - r)], value, r);
    }
  }
}

inline void Quantize(const float* x, const float* inverse, int64_t count, int8_t* codes) {
  for (int64_t i = 0; i < count; i += kLanes) {
    // Min gives its second operand, the limit, for NaN.
    const V steps = Max(Min(Mul(Load(x + i), Load(inverse + i)), Set(127.0f)), Set(-128.0f));
    StoreIntegers(codes + i, Add(steps, Set(kRoundingShift)));
  }
}

inline void Merge(const Partial& sums, const Partial& later, int64_t rows, int64_t head_dim) {
  // exp(peak - common peak) of both sides, all rows at once
  alignas(64) float mine[kMaxBlockRows] = {}, its[kMaxBlockRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const float peak = std::max(sums.peak[r], later.peak[r]);
    mine[r] = sums.peak[r] - peak;
    its[r] = later.peak[r] - peak;
  }
  for (int64_t r = 0; r < rows; r += kLanes) {
    Store(mine + r, ExpOfNegative(Load(mine + r)));
    Store(its + r, ExpOfNegative(Load(its + r)));
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (later.sum[r] == 0.0f) {
      continue;
    }
    float* values = sums.values + r * head_dim;
    const float* more = later.values + r * head_dim;
    if (sums.sum[r] == 0.0f) {
      std::copy(more, more + head_dim, values);
      sums.peak[r] = later.peak[r];
      sums.sum[r] = later.sum[r];
      continue;
    }
    const V left = Set(mine[r]), right = Set(its[r]);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      Store(values + d, Add(Mul(Load(values + d), left), Mul(Load(more + d), right)));
    }
    sums.peak[r] = std::max(sums.peak[r], later.peak[r]);
    sums.sum[r] = sums.sum[r] * mine[r] + later.sum[r] * its[r];
  }
}

}  // namespace bitnet::BITNET_VEC_NAMESPACE

#endif  // BITNET_KERNELS_ATTENTION_KERNEL_H_
