// Rows of a packed matrix as floats.
#include <algorithm>

#include "bitlinear.h"

namespace bitnet {

void GatherRows(const Linear& linear, const int64_t* ids, int64_t count, float* y) {
  const Attributes& a = linear.attributes;
  const int64_t group_size = a.group_size == 0 ? a.in_features : a.group_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = ids[i];
    const uint8_t* bytes = linear.weight + row / kPanelRows * linear.quads * kPanelRows + row % kPanelRows;
    const float* scale = linear.scale + (linear.scale_per_row ? row * linear.groups : 0);
    float* out = y + i * a.in_features;
    for (int64_t k = 0; k < a.in_features; k += 4) {
      int32_t raw[4] = {};
      for (int64_t p = 0; p < a.planes; ++p) {
        const int32_t byte = bytes[p * linear.plane_bytes + k / 4 * kPanelRows];
        for (int j = 0; j < 4; ++j) {
          raw[j] += ((byte >> (2 * j)) & 3) << (2 * p);
        }
      }
      const float step = scale[k / group_size];
      const int64_t columns = std::min<int64_t>(4, a.in_features - k);
      for (int64_t j = 0; j < columns; ++j) {
        out[k + j] = step * static_cast<float>(raw[j] - static_cast<int32_t>(a.zero_point));
      }
    }
  }
}

}  // namespace bitnet
