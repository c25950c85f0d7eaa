// Rows of a packed matrix as floats.
#include <algorithm>

#include "layout.h"

namespace bitnet {

void GatherRows(const Linear& linear, const int64_t* ids, int64_t count, float* y) {
  const Attributes& a = linear.attributes;
  const int64_t group_size = a.group_size == 0 ? a.in_features : a.group_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = ids[i];
    float* out = y + i * a.in_features;
    for (int64_t k = 0; k < a.in_features; k += kStep) {
      int32_t raw[kStep];
      RawUnit(linear, row, k / kStep, raw);
      const float step = ScaleOf(linear, row, k / group_size);
      const int64_t columns = std::min(kStep, a.in_features - k);
      for (int64_t j = 0; j < columns; ++j) {
        out[k + j] = step * static_cast<float>(raw[j] - static_cast<int32_t>(a.zero_point));
      }
    }
  }
}

}  // namespace bitnet
