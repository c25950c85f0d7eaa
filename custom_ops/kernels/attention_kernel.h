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

// How many values ahead they are prefetched: the processor's own prefetching does not keep up.
constexpr int64_t kValuesAhead = 2048;
constexpr int64_t kLineBytes = 64;

// Int8 rows of the cache as floats: converted once for all rows of a block.
BITNET_INLINE void Widen(const int8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Store(to + i, Load(from + i));
  }
}

// Scores of Rows (1 or 2) queries with four keys, `apart` scores from each other. The first queries of a block
// bring the values of as many keys, which lie at `values`, on their way for the next step.
template <int Rows, bool Fetch, typename Key, typename T>
BITNET_INLINE void ScoreTile(const float* q, int64_t head_dim, const Key* const (&key)[4], const T* values,
                             float* scores, int64_t apart) {
  const float* second = Rows == 2 ? q + head_dim : q;
  V a0 = Set(0.0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    if constexpr (Fetch) {
      for (int64_t i = 0; i < 4 * kLanes; i += kLineBytes / static_cast<int64_t>(sizeof(T))) {
        Prefetch(values + 4 * d + i);
      }
    }
    const V qa = Load(q + d), k0 = Load(key[0] + d);
    a0 = Add(a0, Mul(qa, k0));
    const V k1 = Load(key[1] + d);
    a1 = Add(a1, Mul(qa, k1));
    const V k2 = Load(key[2] + d);
    a2 = Add(a2, Mul(qa, k2));
    const V k3 = Load(key[3] + d);
    a3 = Add(a3, Mul(qa, k3));
    if constexpr (Rows == 2) {
      const V qb = Load(second + d);
      b0 = Add(b0, Mul(qb, k0));
      b1 = Add(b1, Mul(qb, k1));
      b2 = Add(b2, Mul(qb, k2));
      b3 = Add(b3, Mul(qb, k3));
    }
  }
  float both[2][4];
  Store4(both[0], both[1], Sum8(a0, a1, a2, a3, b0, b1, b2, b3));
  for (int64_t j = 0; j < 4; ++j) {
    scores[j * apart] = both[0][j];
    if constexpr (Rows == 2) {
      scores[kChunkKeys + j * apart] = both[1][j];
    }
  }
}

// Scores of all rows of the block with four keys.
template <typename Key, typename T>
BITNET_INLINE void ScoreRows(const AttentionBlock<T>& block, const Key* const (&key)[4], const T* values,
                             float* scores, int64_t apart) {
  const auto tile = [&](auto rows, auto fetch, int64_t row) {
    ScoreTile<rows(), fetch()>(block.query + row * block.head_dim, block.head_dim, key, values,
                               scores + row * kChunkKeys, apart);
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  if (block.rows == 1) {
    tile(kOne, std::true_type(), 0);
    return;
  }
  tile(kTwo, std::true_type(), 0);
  int64_t row = 2;
  for (; row + 2 <= block.rows; row += 2) {
    tile(kTwo, std::false_type(), row);
  }
  if (row < block.rows) {
    tile(kOne, std::false_type(), row);
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
      if (block.rows > 2) {
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
template <int Rows, int Vecs, bool Fetch>
BITNET_INLINE void ValueTile(const float* p, const float* value, int64_t keys, int64_t head_dim, bool fresh,
                             float* values) {
  V sums[Rows][Vecs];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vecs; ++v) {
      sums[r][v] = fresh ? Set(0.0f) : Load(values + r * head_dim + v * kLanes);
    }
  }
  for (int64_t k = 0; k < keys; ++k) {
    const float* from = value + k * head_dim;
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
template <int Rows, bool Fetch>
void ValueRows(const float* p, const float* value, int64_t keys, int64_t head_dim, bool fresh, float* values) {
  constexpr int kVecs = Rows == 1 ? 8 : Rows == 2 ? 4 : 2;
  int64_t d = 0;
  for (; d + kVecs * kLanes <= head_dim; d += kVecs * kLanes) {
    ValueTile<Rows, kVecs, Fetch>(p, value + d, keys, head_dim, fresh, values + d);
  }
  for (; d < head_dim; d += kLanes) {
    ValueTile<Rows, 1, Fetch>(p, value + d, keys, head_dim, fresh, values + d);
  }
}

using ValueFunction = void (*)(const float*, const float*, int64_t, int64_t, bool, float*);

template <typename T>
void Attend(const AttentionBlock<T>& block, int64_t begin, int64_t end, const Partial& sums) {
  constexpr bool kFloats = std::is_same_v<T, float>;
  alignas(64) float scores[kMaxBlockRows * kChunkKeys];
  alignas(64) float wide[kFloats ? 1 : kValueTile * kMaxHeadDim];
  const int64_t count = end - begin, dim = block.head_dim;
  Scores(block, begin, end, scores);
  for (int64_t r = 0; r < block.rows; ++r) {
    Exponentials(scores + r * kChunkKeys, count, block.first[r] - begin, block.last[r] - begin, block.softcap,
                 sums.peak + r, sums.sum + r);
  }
  for (int64_t k = 0; k < count; k += kValueTile) {
    const int64_t keys = std::min(kValueTile, count - k);
    const float* value;
    if constexpr (kFloats) {
      value = block.value + (begin + k) * dim;
    } else {
      const int8_t* from = block.value + (begin + k) * dim;
      for (int64_t i = 0; i < keys * dim; i += kLineBytes) {
        Prefetch(from + kValuesAhead + i);
      }
      Widen(from, keys * dim, wide);
      value = wide;
    }
    const auto rows = [&](auto function, int64_t r) {
      function(scores + r * kChunkKeys + k, value, keys, dim, k == 0, sums.values + r * dim);
    };
    constexpr ValueFunction kFewer[][4] = {
        {nullptr, ValueRows<1, false>, ValueRows<2, false>, ValueRows<3, false>},
        {nullptr, ValueRows<1, kFloats>, ValueRows<2, kFloats>, ValueRows<3, kFloats>}};
    if (block.rows < 4) {
      rows(kFewer[1][block.rows], 0);
      continue;
    }
    rows(ValueRows<4, kFloats>, 0);
    int64_t r = 4;
    for (; r + 4 <= block.rows; r += 4) {
      rows(ValueRows<4, false>, r);
    }
    if (r < block.rows) {
      rows(kFewer[0][block.rows - r], r);
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
