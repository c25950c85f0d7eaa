// Where a weight and its scale lie: the plain way, for code that need not be fast.
#ifndef BITNET_KERNELS_LAYOUT_H_
#define BITNET_KERNELS_LAYOUT_H_

#include "bitlinear.h"

namespace bitnet {

// The raw integers of one row in the 16 columns of one unit.
inline void RawUnit(const Linear& linear, int64_t row, int64_t unit, int32_t raw[kStep]) {
  const int64_t bits = linear.attributes.bits;
  const uint8_t* word =
      linear.weight + row / kPanelRows * linear.panel_bytes + unit * linear.unit_bytes + row % kPanelRows * 4;
  for (int64_t j = 0; j < 4; ++j) {
    for (int64_t i = 0; i < 4; ++i) {
      const auto field = [&](int64_t block, int64_t shift, int32_t mask) {
        return (word[block * kBlockBytes + j] >> shift) & mask;
      };
      int32_t& value = raw[4 * j + i];
      switch (bits) {
        case 2:
          value = field(0, 2 * i, 3);
          break;
        case 4:
          value = field(i / 2, i % 2 * 4, 15);
          break;
        case 6:
          value = field(i / 2, i % 2 * 4, 15) + 16 * field(2, 2 * i, 3);
          break;
        default:
          value = field(i, 0, 255);
      }
    }
  }
}

inline float ScaleOf(const Linear& linear, int64_t row, int64_t group) {
  if (linear.attributes.group_size == 0) {
    return linear.scale[linear.scale_per_row ? row : 0];
  }
  return linear.scale[(row / kPanelRows * linear.groups + group) * kPanelRows + row % kPanelRows];
}

}  // namespace bitnet

#endif  // BITNET_KERNELS_LAYOUT_H_
