// Steps 4 and 5 for panels around a kernel's integer sums.
//
// Plain loops over the rows that the compiler turns into vectors: every file that includes this gets its own
// copy with its own instruction set, and the same bits.
#ifndef BITNET_KERNELS_PANEL_H_
#define BITNET_KERNELS_PANEL_H_

#include "bitlinear.h"

namespace bitnet {
namespace {

using Sums = int32_t (*)[kPanelRows];

constexpr int64_t kMaxDigits = 2 * kTokensPerItem;
// Rows of sums that a kernel may write: for all panels, and one more where it takes them two at a time.
constexpr int64_t kMaxSums = kPanelsForMany * kMaxDigits;
static_assert((kPanelsForFew + 1) * 2 * kFewTokens <= kMaxSums);

// Columns [begin, end) of one group.
struct ColumnRange {
  int64_t begin, end;
};

inline ColumnRange ColumnsOf(const Attributes& a, int64_t group) {
  const int64_t begin = group * a.group_size;
  int64_t end = a.in_features;
  if (a.group_size != 0 && begin + a.group_size < end) {
    end = begin + a.group_size;
  }
  return {begin, end};
}

// Units [first, last) of the columns of one group.
struct UnitRange {
  int64_t first, last;
};

inline UnitRange UnitsOf(const Attributes& a, int64_t group) {
  const ColumnRange columns = ColumnsOf(a, group);
  return {columns.begin / kStep, (columns.end + kStep - 1) / kStep};
}

// The scales of one panel: its part of the table, or a copy with zeros for rows beyond N.
inline const float* PanelScales(const Linear& linear, int64_t panel, float copy[kPanelRows]) {
  if (linear.attributes.group_size != 0) {
    return linear.scale + panel * linear.groups * kPanelRows;
  }
  const int64_t first = panel * kPanelRows;
  for (int64_t c = 0; c < kPanelRows; ++c) {
    const bool exists = first + c < linear.attributes.out_features;
    copy[c] = exists ? linear.scale[linear.scale_per_row ? first + c : 0] : 0.0f;
  }
  return copy;
}

// f = float(acc) for the rows: the zero point taken off, and two digits put together.
inline void ExactSums(const Linear& linear, const Token& token, int64_t group,
                      const int32_t (*sums)[kPanelRows], float f[kPanelRows]) {
  const int32_t zero_point = static_cast<int32_t>(linear.attributes.zero_point);
  const int32_t offset = zero_point * token.digits[0].sums[group];
  if (linear.digits() == 1) {
    for (int64_t c = 0; c < kPanelRows; ++c) {
      f[c] = static_cast<float>(sums[0][c] - offset);
    }
    return;
  }
  const int32_t low_offset = zero_point * token.digits[1].sums[group];
  for (int64_t c = 0; c < kPanelRows; ++c) {
    // Exact in double: below 2^40.
    const double high = static_cast<double>(sums[0][c] - offset);
    f[c] = static_cast<float>(high * 256.0 + static_cast<double>(sums[1][c] - low_offset));
  }
}

// One group's part of step 5 where the token's factor has no part in it.
inline void AddTerm(int64_t group, const float f[kPanelRows], const float* scale, float* y) {
  if (group == 0) {
    for (int64_t c = 0; c < kPanelRows; ++c) {
      y[c] = f[c] * scale[c];
    }
  } else {
    for (int64_t c = 0; c < kPanelRows; ++c) {
      y[c] = y[c] + f[c] * scale[c];
    }
  }
}

// One group's part of step 5 for one token of integers.
inline void AddGroup(const Linear& linear, const Token& token, int64_t group, const float f[kPanelRows],
                     const float* scale, float* y) {
  if (linear.attributes.group_size != 0) {
    AddTerm(group, f, scale, y);
    return;
  }
  const float factor = *token.factor;
  for (int64_t c = 0; c < kPanelRows; ++c) {
    y[c] = f[c] * (scale[c] / factor);
  }
}

// y of `Kernels::panels` from sum(digits, rows, panels, units, sums), which gives for every panel p and every
// row r of digits the exact sum over the units of raw * q at sums[p * rows + r].
template <typename Sum>
void IntegerPanels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y,
                   Sum sum) {
  const int64_t per_token = linear.digits();
  const int64_t rows = count * per_token;
  Digits digits[kMaxDigits];
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < per_token; ++d) {
      digits[t * per_token + d] = tokens[t].digits[d];
    }
  }
  alignas(64) int32_t sums[kMaxSums][kPanelRows];
  alignas(64) float f[kPanelRows];
  alignas(64) float copies[kPanelsForFew][kPanelRows];
  const float* scale[kPanelsForFew];
  for (int64_t p = 0; p < panels.count; ++p) {
    scale[p] = PanelScales(linear, panels[p], copies[p]);
  }
  for (int64_t g = 0; g < linear.groups; ++g) {
    sum(linear, digits, rows, panels, UnitsOf(linear.attributes, g), sums);
    for (int64_t p = 0; p < panels.count; ++p) {
      for (int64_t t = 0; t < count; ++t) {
        ExactSums(linear, tokens[t], g, sums + p * rows + t * per_token, f);
        AddGroup(linear, tokens[t], g, f, scale[p] + g * kPanelRows, y + (p * count + t) * kPanelRows);
      }
    }
  }
  if (linear.attributes.group_size != 0) {
    for (int64_t i = 0; i < panels.count * count; ++i) {
      const float inverse = 1.0f / *tokens[i % count].factor;
      for (int64_t c = 0; c < kPanelRows; ++c) {
        y[i * kPanelRows + c] = y[i * kPanelRows + c] * inverse;
      }
    }
  }
}

// y of one panel with float activations, from sum(linear, token, words, columns, f), which gives lanes16 over
// the columns for as many rows as `Rows`, whose words begin at `words` in the panel's first unit.
template <int64_t Rows, typename Sum>
void FloatPanel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y, Sum sum) {
  alignas(64) float f[kPanelRows];
  alignas(64) float copy[kPanelRows];
  const float* scale = PanelScales(linear, panel, copy);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t g = 0; g < linear.groups; ++g) {
      for (int64_t c = 0; c < kPanelRows; c += Rows) {
        const uint8_t* words = linear.weight + panel * linear.panel_bytes + 4 * c;
        sum(linear, tokens[t], words, ColumnsOf(linear.attributes, g), f + c);
      }
      AddTerm(g, f, scale + g * kPanelRows, y + t * kPanelRows);
    }
  }
}

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_PANEL_H_
