// NEON without dot products: `smlal` on the 64-row panel, a 16-bit lane for each row; and all that the Arm
// kernels share (neon.h).
#include "neon.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace bitnet {
namespace neon {
namespace {

// A 16-bit lane gains at most 16 * 3 * 128 = 6144 from one unit: five of them stay below 2^15.
constexpr int64_t kUnitsPerFlush = 5;
constexpr int64_t kScaleBlock = 4;  // groups whose scales are transposed at a time

int64_t Units(int64_t columns) { return (columns + kStep - 1) / kStep; }

// Columns [begin, end) of one group.
struct Range {
  int64_t begin, end;
};

Range Columns(const Attributes& a, int64_t group) {
  if (a.group_size == 0) {
    return {0, a.in_features};
  }
  const int64_t begin = group * a.group_size;
  return {begin, begin + std::min(a.group_size, a.in_features - begin)};
}

// Sixteen values from x[k], zeros beyond `count`.
float32x4x4_t Load16(const float* x, int64_t k, int64_t count) {
  float padded[kStep] = {};
  const float* from = x + k;
  if (k + kStep > count) {
    std::copy(x + k, x + count, padded);
    from = padded;
  }
  float32x4x4_t v;
  for (int i = 0; i < 4; ++i) {
    v.val[i] = vld1q_f32(from + 4 * i);
  }
  return v;
}

// The last step of `lanes16`.
float HalvesSum(const float32x4x4_t& lane) {
  const float32x4_t four = vaddq_f32(vaddq_f32(lane.val[0], lane.val[2]), vaddq_f32(lane.val[1], lane.val[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// The largest |x| as bits: positive floats are ordered like their bits, with infinity and NaN on top.
uint32_t LargestMagnitude(const float* x, int64_t count) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int64_t k = 0; k < count; k += kStep) {
    const float32x4x4_t v = Load16(x, k, count);
    for (int i = 0; i < 4; ++i) {
      largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(v.val[i])));
    }
  }
  return vmaxvq_u32(largest);
}

// Adds column C of the order that `Quantize` stores, whose codes are the lowest bits of `bytes`, and drops
// them.
template <int T, int R, int C>
inline void AddColumn(uint8x16_t bytes[R], const int8x16_t q[T], int16x8_t part[T][R][2]) {
  int8x16_t code[R];
  for (int r = 0; r < R; ++r) {
    code[r] = vreinterpretq_s8_u8(vandq_u8(bytes[r], vdupq_n_u8(3)));
    bytes[r] = vshrq_n_u8(bytes[r], 2);
  }
  for (int t = 0; t < T; ++t) {
    const int8x16_t column = vdupq_laneq_s8(q[t], C);
    for (int r = 0; r < R; ++r) {
      part[t][r][0] = vmlal_s8(part[t][r][0], vget_low_s8(code[r]), vget_low_s8(column));
      part[t][r][1] = vmlal_high_s8(part[t][r][1], code[r], column);
    }
  }
}

// Adds columns 4J .. 4J+3 of one unit.
template <int T, int R, int J>
inline void AddQuad(const uint8_t* w, const int8x16_t q[T], int16x8_t part[T][R][2]) {
  uint8x16_t bytes[R];
  for (int r = 0; r < R; ++r) {
    bytes[r] = vld1q_u8(w + J * kPanelRows + r * kStripRows);
  }
  AddColumn<T, R, J>(bytes, q, part);
  AddColumn<T, R, 4 + J>(bytes, q, part);
  AddColumn<T, R, 8 + J>(bytes, q, part);
  AddColumn<T, R, 12 + J>(bytes, q, part);
}

// Adds a group's products for T tokens and R strips of 16 rows from `row` on.
template <int T, int R>
void AddTile(const Block& block, int64_t planes, const Token* tokens, int64_t row, Sums sums) {
  for (int64_t first = block.first_unit; first < block.last_unit; first += kUnitsPerFlush) {
    const int64_t last = std::min(first + kUnitsPerFlush, block.last_unit);
    for (int64_t p = 0; p < planes; ++p) {
      int16x8_t part[T][R][2];
      for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
          part[t][r][0] = part[t][r][1] = vdupq_n_s16(0);
        }
      }
      for (int64_t unit = first; unit < last; ++unit) {
        const uint8_t* w = block.weight + p * block.plane_bytes + unit * kUnitBytes + row;
        int8x16_t q[T];
        for (int t = 0; t < T; ++t) {
          q[t] = vld1q_s8(tokens[t].q + unit * kStep);
        }
        AddQuad<T, R, 0>(w, q, part);
        AddQuad<T, R, 1>(w, q, part);
        AddQuad<T, R, 2>(w, q, part);
        AddQuad<T, R, 3>(w, q, part);
      }
      const auto weight = static_cast<int16_t>(1 << (2 * p));
      for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
          for (int half = 0; half < 2; ++half) {
            int32_t* sum = sums[t] + row + r * kStripRows + 8 * half;
            const int16x8_t eight = part[t][r][half];
            vst1q_s32(sum, vmlal_n_s16(vld1q_s32(sum), vget_low_s16(eight), weight));
            vst1q_s32(sum + 4, vmlal_n_s16(vld1q_s32(sum + 4), vget_high_s16(eight), weight));
          }
        }
      }
    }
  }
}

void SumGroupNeon(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                  Sums sums) {
  const Block block = MakeBlock(linear, panel, group);
  const int64_t planes = linear.attributes.planes;
  StartSums(linear, tokens, count, group, 0, sums);
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    AddTile<4, 2>(block, planes, tokens + t, 0, sums + t);
    AddTile<4, 2>(block, planes, tokens + t, kPanelRows / 2, sums + t);
  }
  for (; t + 2 <= count; t += 2) {
    AddTile<2, 4>(block, planes, tokens + t, 0, sums + t);
  }
  if (t < count) {
    AddTile<1, 4>(block, planes, tokens + t, 0, sums + t);
  }
}

// 4 x 4 floats: to[j][i] = from[i][j].
void Transpose4(const float* from, int64_t from_stride, float* to) {
  const float32x4_t r0 = vld1q_f32(from);
  const float32x4_t r1 = vld1q_f32(from + from_stride);
  const float32x4_t r2 = vld1q_f32(from + 2 * from_stride);
  const float32x4_t r3 = vld1q_f32(from + 3 * from_stride);
  const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));
  const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
  const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
  const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
  vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(even01, even23)));
  vst1q_f32(to + kPanelRows, vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23)));
  vst1q_f32(to + 2 * kPanelRows, vreinterpretq_f32_f64(vtrn2q_f64(even01, even23)));
  vst1q_f32(to + 3 * kPanelRows, vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23)));
}

// Scales of one panel for groups g0 .. g0 + count - 1 as to[g - g0][row], zeros for rows beyond N.
void LoadScales(const Linear& linear, int64_t panel, int64_t g0, int64_t count, float to[][kPanelRows]) {
  const int64_t first = panel * kPanelRows;
  const int64_t rows = std::min(kPanelRows, linear.attributes.out_features - first);
  const bool whole = linear.attributes.group_size == 0 && !linear.scale_per_row;
  int64_t row = 0;
  if (count == kScaleBlock) {
    for (; row + 4 <= rows; row += 4) {
      Transpose4(linear.scale + (first + row) * linear.groups + g0, linear.groups, &to[0][row]);
    }
  }
  for (; row < kPanelRows; ++row) {
    const float* from = linear.scale + (whole ? 0 : (first + row) * linear.groups + g0);
    for (int64_t g = 0; g < count; ++g) {
      to[g][row] = row < rows ? from[g] : 0.0f;
    }
  }
}

// y = f * scale, or y + f * scale: one group's part of the float sum of four rows.
void AddScaled(float32x4_t f, const float* scale, bool start, float* y) {
  const float32x4_t product = vmulq_f32(f, vld1q_f32(scale));
  vst1q_f32(y, start ? product : vaddq_f32(vld1q_f32(y), product));
}

// lanes16 of x[k] * (raw - zero point) over one group of columns, for the four rows whose bytes start at `w`.
float32x4_t FloatSum(const Linear& linear, const float* x, Range columns, const uint8_t* w) {
  const Attributes& a = linear.attributes;
  const int32x4_t zero_point = vdupq_n_s32(static_cast<int32_t>(a.zero_point));
  float32x4_t lane[kStep];
  for (int64_t unit = columns.begin; unit < columns.end; unit += kStep) {
    for (int64_t j = 0; j < kQuadsPerUnit; ++j) {
      const int64_t k = unit + 4 * j;
      uint32x4_t raw[4];
      for (int i = 0; i < 4; ++i) {
        raw[i] = vdupq_n_u32(0);
      }
      for (int64_t p = 0; p < a.planes; ++p) {
        const uint8_t* bytes = w + p * linear.plane_bytes + k / 4 * kPanelRows;
        const uint32_t rows[4] = {bytes[0], bytes[1], bytes[2], bytes[3]};
        for (int i = 0; i < 4; ++i) {
          const uint32x4_t code = vandq_u32(vshlq_u32(vld1q_u32(rows), vdupq_n_s32(-2 * i)), vdupq_n_u32(3));
          raw[i] = vaddq_u32(raw[i], vshlq_u32(code, vdupq_n_s32(static_cast<int32_t>(2 * p))));
        }
      }
      for (int i = 0; i < 4; ++i) {
        // A column beyond the end counts as +0.0, whatever its padding says: x is +0.0 there.
        const int32x4_t inside = vdupq_n_s32(k + i < columns.end ? -1 : 0);
        const int32x4_t weight = vandq_s32(vsubq_s32(vreinterpretq_s32_u32(raw[i]), zero_point), inside);
        const float32x4_t product = vmulq_f32(vdupq_n_f32(x[k + i]), vcvtq_f32_s32(weight));
        float32x4_t& sum = lane[4 * j + i];
        sum = unit == columns.begin ? product : vaddq_f32(sum, product);
      }
    }
  }
  for (int half = kStep / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lane[i] = vaddq_f32(lane[i], lane[i + half]);
    }
  }
  return lane[0];
}

void FloatGroup(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                const float* scale, float* y) {
  const Range columns = Columns(linear.attributes, group);
  const uint8_t* w = linear.weight + panel * linear.quads * kPanelRows;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t c = 0; c < kPanelRows; c += 4) {
      const float32x4_t f = FloatSum(linear, tokens[t].x, columns, w + c);
      AddScaled(f, scale + c, group == 0, y + t * kPanelRows + c);
    }
  }
}

void QuantizedGroup(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, int64_t group,
                    SumGroup sum_group, const float* scale, float* y) {
  int32_t sums[kTokensPerItem][kPanelRows];
  sum_group(linear, tokens, count, panel, group, sums);
  for (int64_t t = 0; t < count; ++t) {
    const float32x4_t factor = vdupq_n_f32(*tokens[t].factor);
    for (int64_t c = 0; c < kPanelRows; c += 4) {
      const float32x4_t f = vcvtq_f32_s32(vld1q_s32(&sums[t][c]));
      float* out = y + t * kPanelRows + c;
      if (linear.attributes.group_size == 0) {
        vst1q_f32(out, vmulq_f32(f, vdivq_f32(vld1q_f32(scale + c), factor)));
      } else {
        AddScaled(f, scale + c, group == 0, out);
      }
    }
  }
}

void PanelNeon(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  Panel(linear, tokens, count, panel, SumGroupNeon, y);
}

}  // namespace

Block MakeBlock(const Linear& linear, int64_t panel, int64_t group) {
  const Range columns = Columns(linear.attributes, group);
  return {linear.weight + panel * linear.quads * kPanelRows, linear.plane_bytes, columns.begin / kStep,
          Units(columns.end)};
}

void StartSums(const Linear& linear, const Token* tokens, int64_t count, int64_t group, int64_t bias,
               Sums sums) {
  const auto factor = static_cast<int32_t>(bias - linear.attributes.zero_point);
  for (int64_t t = 0; t < count; ++t) {
    std::fill_n(sums[t], kPanelRows, factor * tokens[t].sums[group]);
  }
}

void Normalize(const Linear& linear, const float* x, float* out) {
  const int64_t count = linear.attributes.in_features;
  const float32x4_t zero = vdupq_n_f32(0.0f);  // the same start as the first square: no square is -0.0
  float32x4x4_t lane = {{zero, zero, zero, zero}};
  for (int64_t k = 0; k < count; k += kStep) {
    const float32x4x4_t v = Load16(x, k, count);
    for (int i = 0; i < 4; ++i) {
      lane.val[i] = vaddq_f32(lane.val[i], vmulq_f32(v.val[i], v.val[i]));
    }
  }
  const float mean = HalvesSum(lane) / static_cast<float>(count);
  const float inverse = 1.0f / std::sqrt(mean + linear.attributes.epsilon);
  const float32x4_t factor = vdupq_n_f32(inverse);
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const float32x4_t scaled = vmulq_f32(vld1q_f32(x + k), factor);
    vst1q_f32(out + k, vmulq_f32(scaled, vld1q_f32(linear.norm_weight + k)));
  }
  for (; k < count; ++k) {
    out[k] = (x[k] * inverse) * linear.norm_weight[k];
  }
}

void Quantize(const Linear& linear, const float* x, const Token& token) {
  static const uint8_t kInterleave[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t interleave = vld1q_u8(kInterleave);
  const int64_t count = linear.attributes.in_features;
  const uint32_t bits = LargestMagnitude(x, count);
  const bool finite = bits < 0x7F800000u;
  const float magnitude = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(bits)), 0);
  *token.factor = finite ? 127.0f / std::max(magnitude, 1e-5f) : std::numeric_limits<float>::quiet_NaN();
  const float32x4_t factor = vdupq_n_f32(*token.factor);
  for (int64_t g = 0; g < linear.groups; ++g) {
    const Range columns = Columns(linear.attributes, g);
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t k = columns.begin; k < columns.end; k += kStep) {
      int8x16_t q = vdupq_n_s8(0);
      if (finite) {
        const float32x4x4_t v = Load16(x, k, count);
        int16x4_t words[4];
        for (int i = 0; i < 4; ++i) {
          words[i] = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(v.val[i], factor)));
        }
        q = vcombine_s8(vqmovn_s16(vcombine_s16(words[0], words[1])),
                        vqmovn_s16(vcombine_s16(words[2], words[3])));
      }
      sum = vpadalq_s16(sum, vpaddlq_s8(q));
      vst1q_s8(token.q + k, vqtbl1q_s8(q, interleave));
    }
    token.sums[g] = vaddvq_s32(sum);
  }
}

void Panel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, SumGroup sum_group,
           float* y) {
  float scale[kScaleBlock][kPanelRows];
  for (int64_t g = 0; g < linear.groups; ++g) {
    if (g % kScaleBlock == 0) {
      LoadScales(linear, panel, g, std::min(kScaleBlock, linear.groups - g), scale);
    }
    if (linear.quantized()) {
      QuantizedGroup(linear, tokens, count, panel, g, sum_group, scale[g % kScaleBlock], y);
    } else {
      FloatGroup(linear, tokens, count, panel, g, scale[g % kScaleBlock], y);
    }
  }
  const int64_t first = panel * kPanelRows;
  const int64_t rows = std::min(kPanelRows, linear.attributes.out_features - first);
  for (int64_t t = 0; t < count; ++t) {
    float* out = y + t * kPanelRows;
    if (linear.quantized() && linear.attributes.group_size != 0) {
      const float inverse = 1.0f / *tokens[t].factor;
      for (int64_t c = 0; c < kPanelRows; ++c) {
        out[c] = out[c] * inverse;
      }
    }
    if (linear.bias != nullptr) {
      for (int64_t c = 0; c < rows; ++c) {
        out[c] = out[c] + linear.bias[first + c];
      }
    }
  }
}

}  // namespace neon

const Kernels kNeonKernels = {"neon", neon::Normalize, neon::Quantize, neon::PanelNeon};

}  // namespace bitnet
