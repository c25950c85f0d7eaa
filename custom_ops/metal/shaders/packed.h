// The packed weights of docs/operator.md, as one lane sees them: its row of a panel, one unit at a time.
#ifndef BITNET_METAL_SHADERS_PACKED_H_
#define BITNET_METAL_SHADERS_PACKED_H_

#include "constants.h"

enum { kMaxBlocks = 4 };  // words of one row in one unit, with 8 bits

// Words from one unit to the next.
inline uint unit_words() { return kBits / 2 * kPanelWords; }

// 32 lanes read 128 consecutive bytes for each block.
inline void load_unit(device const uint* unit, uint lane, thread uint* words) {
  for (uint b = 0; b < kBits / 2; ++b) {
    words[b] = unit[b * kPanelWords + lane];
  }
}

// The raw integer of one column, 0 .. 15, of a unit.
inline uint raw_column(thread const uint* words, uint column) {
  const uint byte = 8 * (column / 4), pair = column % 4;
  if (kBits == 2) {
    return words[0] >> (2 * column) & 3;
  }
  if (kBits == 8) {
    return words[pair] >> byte & 255;
  }
  const uint low = words[pair / 2] >> (byte + 4 * (pair % 2)) & 15;
  if (kBits == 4) {
    return low;
  }
  return low + ((words[2] >> (2 * column) & 3) << 4);
}

// Sum of raw * code over one unit.
inline int unit_sum(thread const uint* words, thread const int* codes) {
  int sum = 0;
  for (uint i = 0; i < kUnitColumns; ++i) {
    sum += int(raw_column(words, i)) * codes[i];
  }
  return sum;
}

// The same for 2 bits without a product: each bit, spread over the word, lets the code pass or not.
inline int unit_sum_by_masks(uint word, thread const int* codes) {
  int low = 0, high = 0;
  for (uint i = 0; i < kUnitColumns; ++i) {
    low += codes[i] & -int(word >> (2 * i) & 1);
    high += codes[i] & -int(word >> (2 * i + 1) & 1);
  }
  return low + (high << 1);
}

// The codes of one unit: the same for all lanes.
inline void load_codes(device const char* from, thread int* codes) {
  for (uint j = 0; j < kUnitColumns / 4; ++j) {
    const char4 four = ((device const char4*)from)[j];
    codes[4 * j] = four.x;
    codes[4 * j + 1] = four.y;
    codes[4 * j + 2] = four.z;
    codes[4 * j + 3] = four.w;
  }
}

// The value of one step of a row; `row` is below N.
inline float scale_of(device const float* scale, uint row, uint group, uint groups) {
  if (kScaleKind == kScaleGroups) {
    return scale[(row / kPanelRows * groups + group) * kPanelRows + row % kPanelRows];
  }
  return scale[kScaleKind == kScaleRows ? row : 0];
}

#endif  // BITNET_METAL_SHADERS_PACKED_H_
