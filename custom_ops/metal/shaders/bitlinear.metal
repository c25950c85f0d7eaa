// bitnet::BitLinear and bitnet::BitEmbedding (docs/operator.md), bit for bit.
//
// A SIMD group takes a panel of 32 rows, one lane for each row: the words of a block are consecutive, and
// activations are the same for all lanes. Sums are integers, so that columns may be shared out in any way.
#include <metal_simdgroup_matrix>

#include "packed.h"
#include "prelude.h"
#include "values.h"

enum {
  kMaxSimdgroups = 32,    // of a threadgroup
  kMaxFewSimdgroups = 8,  // of matvec and matvec_small
  kMaxFewOutputs = 16,    // panels times tokens of one SIMD group there
  kMaxPanels = 4,
  kMaxUnroll = 4,
  kTokensEach = 8,    // tokens of one SIMD group in matmul
  kStepColumns = 32,  // columns of one step of matmul by matrices
  kTileStride = 40,   // of its tiles: rows of a tile begin in different banks
};

// ---- Steps 1 to 3 ----

// Step 1 for one value.
inline float normalized(float x, float inverse, float weight) {
  const float scaled = x * inverse;
  return scaled * weight;
}

kernel void quantize_activations(
    constant LinearArguments* a [[buffer(kQuantizeArguments)]], device const uchar* x [[buffer(kQuantizeX)]],
    device const float* norm_weight [[buffer(kQuantizeNormWeight), function_constant(kHasNorm)]],
    device char* codes [[buffer(kQuantizeCodes)]], device float* factors [[buffer(kQuantizeFactor)]],
    device int* sums [[buffer(kQuantizeSums)]], uint3 position [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float largest_of[kMaxSimdgroups];
  threadgroup uint finite_of[kMaxSimdgroups];
  threadgroup int sum_of[kMaxSimdgroups];
  threadgroup float inverse_of[1];
  const uint token = position.x, threads = 32 * kSimdgroups;
  const ulong first = ulong(token) * a->in_features;
  float inverse = 1.0f;
  if (kNorm) {
    if (simdgroup == 0) {
      const float mean = lanes16(x, first, a->in_features, 0.0f, true, lane) / float(a->in_features);
      if (lane == 0) {
        inverse_of[0] = 1.0f / precise::sqrt(mean + a->epsilon);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    inverse = inverse_of[0];
  }

  float largest = 1e-5f;
  uint finite = 1;
  for (uint k = index; k < a->in_features; k += threads) {
    float value = load_value(x, first + k);
    if (kNorm) {
      value = normalized(value, inverse, norm_weight[k]);
    }
    finite &= uint(is_finite(value));
    largest = max(largest, fabs(value));
  }
  largest = simd_max(largest);
  finite = 1 - simd_max(1 - finite);
  if (lane == 0) {
    largest_of[simdgroup] = largest;
    finite_of[simdgroup] = finite;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint s = 0; s < kSimdgroups; ++s) {
    largest = max(largest, largest_of[s]);
    finite &= finite_of[s];
  }
  const float factor = 127.0f / largest;
  if (index == 0) {
    factors[token] = finite != 0 ? factor : not_a_number();
  }

  // Codes, and their sums over each group: whole groups for a SIMD group, or, without groups, all together.
  const bool grouped = a->groups > 1;
  int sum = 0;
  for (uint g = grouped ? simdgroup : 0; g < a->groups; g += kSimdgroups) {
    const uint begin = g * a->group_size;
    const uint end = g + 1 == a->groups ? a->padded : begin + a->group_size;
    sum = 0;
    for (uint k = begin + (grouped ? lane : index); k < end; k += grouped ? 32 : threads) {
      int code = 0;
      if (k < a->in_features && finite != 0) {
        float value = load_value(x, first + k);
        if (kNorm) {
          value = normalized(value, inverse, norm_weight[k]);
        }
        code = int(min(max(rint(value * factor), -128.0f), 127.0f));
      }
      codes[ulong(token) * a->padded + k] = char(code);
      sum += code;
    }
    sum = simd_sum(sum);
    if (grouped && lane == 0) {
      sums[ulong(token) * a->groups + g] = sum;
    }
  }
  if (!grouped) {
    if (lane == 0) {
      sum_of[simdgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index == 0) {
      for (uint s = 1; s < kSimdgroups; ++s) {
        sum += sum_of[s];
      }
      sums[token] = sum;
    }
  }
}

// ---- Steps 4 to 6 ----

// What the kernels below are given.
struct Linear {
  constant LinearArguments* a;
  device const uint* weight;
  device const float* scale;
  device const float* bias;
  device const char* codes;
  device const float* factors;
  device const int* sums;
  device uchar* y;
};

inline uint panels_of(constant LinearArguments* a) { return (a->out_features + kPanelRows - 1) / kPanelRows; }

// The units [first, last) of one group.
inline uint first_unit(constant LinearArguments* a, uint group) { return group * a->group_size / kUnitColumns; }
inline uint last_unit(constant LinearArguments* a, uint group) {
  return min((group + 1) * a->group_size, a->padded) / kUnitColumns;
}

inline device const uint* unit_at(thread const Linear& linear, uint panel, uint unit) {
  return linear.weight + ulong(panel * (linear.a->padded / kUnitColumns) + unit) * unit_words();
}

inline device const char* codes_at(thread const Linear& linear, uint token, uint unit) {
  return linear.codes + (ulong(token) * linear.a->padded + unit * kUnitColumns);
}

// The exact sum of one group as a float: the zero point taken off.
inline float exact_sum(thread const Linear& linear, int sum, uint token, uint group) {
  return float(sum - int(linear.a->zero_point) * linear.sums[ulong(token) * linear.a->groups + group]);
}

// One group's part of step 5 with groups; `panel` and lane name the row, which may lie beyond N.
inline float add_group(thread const Linear& linear, float y, float exact, uint panel, uint group, uint lane) {
  const float term = exact * linear.scale[(panel * linear.a->groups + group) * kPanelRows + lane];
  return group == 0 ? term : y + term;
}

// The end of step 5, and step 6. `y` is the exact sum without groups, and the sum of terms with them.
inline void store_row(thread const Linear& linear, float y, uint token, uint row) {
  if (row >= linear.a->out_features || token >= linear.a->tokens) {
    return;
  }
  const float factor = linear.factors[token];
  if (kScaleKind == kScaleGroups) {
    y = y * (1.0f / factor);
  } else {
    y = y * (scale_of(linear.scale, row, 0, 1) / factor);
  }
  if (kBias) {
    y = y + linear.bias[row];
  }
  store_value(linear.y, ulong(token) * linear.a->out_features + row, y);
}

// Adds the units first, first + stride .. of kPanels panels and `tokens` tokens to sums[panel * tokens +
// token].
inline void add_units(thread const Linear& linear, uint panel, uint token, uint tokens, uint first, uint last,
                      uint stride, uint lane, thread int* sums) {
  const uint last_panel = panels_of(linear.a) - 1, last_token = linear.a->tokens - 1;
  uint words[kMaxUnroll * kMaxPanels * kMaxBlocks];
  int codes[kUnitColumns];
  for (uint unit = first; unit < last; unit += stride) {
    const uint count = min(uint(kUnroll), last - unit);
    for (uint v = 0; v < count; ++v) {
      for (uint p = 0; p < kPanels; ++p) {
        load_unit(unit_at(linear, min(panel + p, last_panel), unit + v), lane,
                  words + (v * kMaxPanels + p) * kMaxBlocks);
      }
    }
    for (uint v = 0; v < count; ++v) {
      for (uint t = 0; t < tokens; ++t) {
        load_codes(codes_at(linear, min(token + t, last_token), unit + v), codes);
        for (uint p = 0; p < kPanels; ++p) {
          thread const uint* at = words + (v * kMaxPanels + p) * kMaxBlocks;
          if (kMasks) {
            sums[p * tokens + t] += unit_sum_by_masks(at[0], codes);
          } else {
            sums[p * tokens + t] += unit_sum(at, codes);
          }
        }
      }
    }
  }
}

// All outputs of kPanels panels and `tokens` tokens. The SIMD groups of a threadgroup share the columns:
// without groups unit by unit, with groups group by group. `partial` is [SIMD groups][outputs][lanes].
inline void few_tokens(thread const Linear& linear, uint panel, uint token, uint tokens, uint simdgroup,
                       uint lane, threadgroup int* partial) {
  const uint outputs = kPanels * tokens;
  const bool grouped = kScaleKind == kScaleGroups;
  float y[kMaxFewOutputs];  // of the outputs simdgroup, simdgroup + kSimdgroups ..
  const uint rounds = grouped ? (linear.a->groups + kSimdgroups - 1) / kSimdgroups : 1;
  for (uint round = 0; round < rounds; ++round) {
    int sums[kMaxFewOutputs];
    for (uint o = 0; o < outputs; ++o) {
      sums[o] = 0;
    }
    const uint group = round * kSimdgroups + simdgroup;
    if (!grouped) {
      add_units(linear, panel, token, tokens, simdgroup * kUnroll, linear.a->padded / kUnitColumns,
                kSimdgroups * kUnroll, lane, sums);
    } else if (group < linear.a->groups) {
      add_units(linear, panel, token, tokens, first_unit(linear.a, group), last_unit(linear.a, group), kUnroll,
                lane, sums);
    }
    if (round > 0) {
      threadgroup_barrier(mem_flags::mem_threadgroup);  // all have read the round before
    }
    for (uint o = 0; o < outputs; ++o) {
      partial[(simdgroup * kMaxFewOutputs + o) * 32 + lane] = sums[o];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint o = simdgroup; o < outputs; o += kSimdgroups) {
      const uint p = o / tokens, t = min(token + o % tokens, linear.a->tokens - 1);
      if (!grouped) {
        int sum = 0;
        for (uint s = 0; s < kSimdgroups; ++s) {
          sum += partial[(s * kMaxFewOutputs + o) * 32 + lane];
        }
        y[o / kSimdgroups] = exact_sum(linear, sum, t, 0);
        continue;
      }
      for (uint s = 0; s < kSimdgroups; ++s) {
        const uint g = round * kSimdgroups + s;
        if (g < linear.a->groups) {
          const float exact = exact_sum(linear, partial[(s * kMaxFewOutputs + o) * 32 + lane], t, g);
          const uint within = min(panel + p, panels_of(linear.a) - 1);
          y[o / kSimdgroups] = add_group(linear, y[o / kSimdgroups], exact, within, g, lane);
        }
      }
    }
  }
  for (uint o = simdgroup; o < outputs; o += kSimdgroups) {
    store_row(linear, y[o / kSimdgroups], token + o % tokens, (panel + o / tokens) * kPanelRows + lane);
  }
}

kernel void matvec(constant LinearArguments* a [[buffer(kLinearArguments)]],
                   device const uint* weight [[buffer(kLinearWeight)]],
                   device const float* scale [[buffer(kLinearScale)]],
                   device const float* bias [[buffer(kLinearBias), function_constant(kHasBias)]],
                   device const char* codes [[buffer(kLinearCodes)]],
                   device const float* factors [[buffer(kLinearFactor)]],
                   device const int* sums [[buffer(kLinearSums)]], device uchar* y [[buffer(kLinearY)]],
                   uint3 position [[threadgroup_position_in_grid]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int partial[kMaxFewSimdgroups * kMaxFewOutputs * 32];
  const Linear linear = {a, weight, scale, bias, codes, factors, sums, y};
  few_tokens(linear, position.x * kPanels, 0, 1, simdgroup, lane, partial);
}

kernel void matvec_small(constant LinearArguments* a [[buffer(kLinearArguments)]],
                         device const uint* weight [[buffer(kLinearWeight)]],
                         device const float* scale [[buffer(kLinearScale)]],
                         device const float* bias [[buffer(kLinearBias), function_constant(kHasBias)]],
                         device const char* codes [[buffer(kLinearCodes)]],
                         device const float* factors [[buffer(kLinearFactor)]],
                         device const int* sums [[buffer(kLinearSums)]], device uchar* y [[buffer(kLinearY)]],
                         uint3 position [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int partial[kMaxFewSimdgroups * kMaxFewOutputs * 32];
  const Linear linear = {a, weight, scale, bias, codes, factors, sums, y};
  few_tokens(linear, position.x * kPanels, position.y * kTokens, kTokens, simdgroup, lane, partial);
}

// Columns whose sums of raw * code a float holds exactly, in any order: below 2^24.
inline uint exact_columns() { return kBits == 2 ? 32768 : kBits == 4 ? 8192 : kBits == 6 ? 2048 : 512; }

// Puts two units of weights, as [column][row], and of codes, as [token][column], into tiles of half: both are
// integers of up to 8 bits, which half holds exactly.
inline void stage(thread const Linear& linear, uint panel, uint token, uint unit, uint simdgroup, uint lane,
                  threadgroup half* weights, threadgroup half* activations) {
  const uint part = simdgroup / 2, eight = simdgroup % 2 * 8;  // 8 columns of one unit for each SIMD group
  uint words[kMaxBlocks];
  load_unit(unit_at(linear, panel, unit + part), lane, words);
  for (uint i = 0; i < 8; ++i) {
    weights[(part * kUnitColumns + eight + i) * kTileStride + lane] = half(raw_column(words, eight + i));
  }
  const uint row = simdgroup * 8 + lane / 4, column = lane % 4 * 8;
  device const char* from = codes_at(linear, min(token + row, linear.a->tokens - 1), unit) + column;
  for (uint i = 0; i < 8; ++i) {
    activations[row * kTileStride + column + i] = half(int(from[i]));
  }
}

// 32 rows and 32 tokens; lane = row, and 8 tokens for each of four SIMD groups. With matrices, each SIMD group
// multiplies a quarter of the tile, whose sums go through threadgroup memory to the same lanes.
kernel void matmul(constant LinearArguments* a [[buffer(kLinearArguments)]],
                   device const uint* weight [[buffer(kLinearWeight)]],
                   device const float* scale [[buffer(kLinearScale)]],
                   device const float* bias [[buffer(kLinearBias), function_constant(kHasBias)]],
                   device const char* codes [[buffer(kLinearCodes)]],
                   device const float* factors [[buffer(kLinearFactor)]],
                   device const int* sums [[buffer(kLinearSums)]], device uchar* y [[buffer(kLinearY)]],
                   uint3 position [[threadgroup_position_in_grid]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup half weights[kStepColumns * kTileStride];
  threadgroup half activations[kTileTokens * kTileStride];
  threadgroup float tile[kTileTokens * kTileStride];
  const Linear linear = {a, weight, scale, bias, codes, factors, sums, y};
  const uint panel = position.x, token = position.y * kTileTokens, mine = token + simdgroup * kTokensEach;
  const uint last_token = linear.a->tokens - 1;
  float result[kTokensEach];
  for (uint group = 0; group < linear.a->groups; ++group) {
    int total[kTokensEach];
    for (uint t = 0; t < kTokensEach; ++t) {
      total[t] = 0;
    }
    const uint first = first_unit(linear.a, group), last = last_unit(linear.a, group);
    if (kMatrices) {
      const uint rows = simdgroup % 2 * 16, tokens = simdgroup / 2 * 16;
      const uint stretch = exact_columns() / kUnitColumns;
      for (uint begin = first; begin < last; begin += stretch) {
        simdgroup_float8x8 products[4];
        for (uint i = 0; i < 4; ++i) {
          products[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
        const uint end = min(begin + stretch, last);
        for (uint unit = begin; unit < end; unit += 2) {
          threadgroup_barrier(mem_flags::mem_threadgroup);  // all have read what was there
          stage(linear, panel, token, unit, simdgroup, lane, weights, activations);
          threadgroup_barrier(mem_flags::mem_threadgroup);
          for (uint k = 0; k < kStepColumns; k += 8) {
            simdgroup_half8x8 left[2], right[2];
            for (uint i = 0; i < 2; ++i) {
              simdgroup_load(left[i], activations + (tokens + 8 * i) * kTileStride + k, kTileStride);
              simdgroup_load(right[i], weights + k * kTileStride + rows + 8 * i, kTileStride);
            }
            for (uint i = 0; i < 4; ++i) {
              simdgroup_multiply_accumulate(products[i], left[i / 2], right[i % 2], products[i]);
            }
          }
        }
        for (uint i = 0; i < 4; ++i) {
          simdgroup_store(products[i], tile + (tokens + i / 2 * 8) * kTileStride + rows + i % 2 * 8,
                          kTileStride);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint t = 0; t < kTokensEach; ++t) {
          total[t] += int(tile[(simdgroup * kTokensEach + t) * kTileStride + lane]);
        }
      }
    } else {
      for (uint unit = first; unit < last; ++unit) {
        uint words[kMaxBlocks];
        int columns[kUnitColumns];
        load_unit(unit_at(linear, panel, unit), lane, words);
        for (uint t = 0; t < kTokensEach; ++t) {
          load_codes(codes_at(linear, min(mine + t, last_token), unit), columns);
          total[t] += unit_sum(words, columns);
        }
      }
    }
    for (uint t = 0; t < kTokensEach; ++t) {
      const float exact = exact_sum(linear, total[t], min(mine + t, last_token), group);
      result[t] = kScaleKind == kScaleGroups ? add_group(linear, result[t], exact, panel, group, lane) : exact;
    }
  }
  for (uint t = 0; t < kTokensEach; ++t) {
    store_row(linear, result[t], mine + t, panel * kPanelRows + lane);
  }
}

// ---- The embedding ----

kernel void embedding(constant LinearArguments* a [[buffer(kEmbeddingArguments)]],
                      device const long* ids [[buffer(kEmbeddingIds)]],
                      device const uint* weight [[buffer(kEmbeddingWeight)]],
                      device const float* scale [[buffer(kEmbeddingScale)]],
                      device uchar* y [[buffer(kEmbeddingY)]], uint3 position [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]]) {
  const long id = ids[position.x];
  const bool known = id >= 0 && id < long(a->out_features);
  const uint row = known ? uint(id) : 0;
  const ulong first_word = ulong(row / kPanelRows * (a->padded / kUnitColumns)) * unit_words();
  for (uint k = index; k < a->in_features; k += 32 * kSimdgroups) {
    uint words[kMaxBlocks];
    load_unit(weight + first_word + k / kUnitColumns * unit_words(), row % kPanelRows, words);
    const int steps = int(raw_column(words, k % kUnitColumns)) - int(a->zero_point);
    const float value = scale_of(scale, row, k / a->group_size, a->groups) * float(steps);
    store_value(y, ulong(position.x) * a->in_features + k, known ? value : not_a_number());
  }
}
