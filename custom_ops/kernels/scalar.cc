// The scalar twin: the contract written down plainly. Every other kernel must give its bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bitlinear.h"

namespace bitnet {
namespace {

// Sum of value(0) .. value(count - 1) in the fixed order of `lanes16`.
template <typename F>
float Lanes16(int64_t count, F value) {
  float lane[16];
  for (int64_t i = 0; i < 16; ++i) {
    lane[i] = i < count ? value(i) : 0.0f;
  }
  for (int64_t k = 16; k < count; k += 16) {
    for (int64_t i = 0; i < 16; ++i) {
      lane[i] += k + i < count ? value(k + i) : 0.0f;
    }
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lane[i] += lane[i + half];
    }
  }
  return lane[0];
}

int32_t RawMinusZeroPoint(const Linear& linear, int64_t row, int64_t column) {
  const int64_t byte = ((row / kPanelRows) * linear.quads + column / 4) * kPanelRows + row % kPanelRows;
  int32_t raw = 0;
  for (int64_t p = 0; p < linear.attributes.planes; ++p) {
    const int32_t code = (linear.weight[p * linear.plane_bytes + byte] >> (2 * (column % 4))) & 3;
    raw += code << (2 * p);
  }
  return raw - static_cast<int32_t>(linear.attributes.zero_point);
}

// Step 4 for one row and the columns [begin, end) of one group.
float GroupSum(const Linear& linear, const Token& token, int64_t row, int64_t begin, int64_t end) {
  if (!linear.quantized()) {
    return Lanes16(end - begin, [&](int64_t k) {
      return token.x[begin + k] * static_cast<float>(RawMinusZeroPoint(linear, row, begin + k));
    });
  }
  int32_t sum = 0;
  for (int64_t k = begin; k < end; ++k) {
    sum += RawMinusZeroPoint(linear, row, k) * token.q[k];
  }
  return static_cast<float>(sum);
}

float Row(const Linear& linear, const Token& token, int64_t row) {
  const Attributes& a = linear.attributes;
  float y = 0.0f;
  if (a.group_size == 0) {
    const float scale = linear.scale[linear.scale_per_row ? row : 0];
    const float f = GroupSum(linear, token, row, 0, a.in_features);
    y = f * (linear.quantized() ? scale / *token.factor : scale);
  } else {
    const float* scale = linear.scale + row * linear.groups;
    for (int64_t g = 0; g < linear.groups; ++g) {
      const int64_t begin = g * a.group_size;
      const int64_t end = begin + std::min(a.group_size, a.in_features - begin);
      const float f = GroupSum(linear, token, row, begin, end);
      y = g == 0 ? f * scale[g] : y + f * scale[g];
    }
    if (linear.quantized()) {
      y = y * (1.0f / *token.factor);
    }
  }
  return linear.bias != nullptr ? y + linear.bias[row] : y;
}

void Normalize(const Linear& linear, const float* x, float* out) {
  const int64_t count = linear.attributes.in_features;
  const float mean = Lanes16(count, [x](int64_t k) { return x[k] * x[k]; }) / static_cast<float>(count);
  const float inverse = 1.0f / std::sqrt(mean + linear.attributes.epsilon);
  for (int64_t k = 0; k < count; ++k) {
    out[k] = (x[k] * inverse) * linear.norm_weight[k];
  }
}

void Quantize(const Linear& linear, const float* x, const Token& token) {
  const int64_t count = linear.attributes.in_features;
  const int64_t padded = (count + kStep - 1) / kStep * kStep;
  std::memset(token.q, 0, static_cast<size_t>(padded));
  std::memset(token.sums, 0, static_cast<size_t>(linear.groups) * sizeof(int32_t));
  float largest = 1e-5f;
  bool finite = true;
  for (int64_t k = 0; k < count; ++k) {
    finite = finite && std::isfinite(x[k]);
    largest = std::max(largest, std::fabs(x[k]));
  }
  if (!finite) {
    *token.factor = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float factor = 127.0f / largest;
  *token.factor = factor;
  const int64_t group_size = linear.attributes.group_size == 0 ? count : linear.attributes.group_size;
  for (int64_t k = 0; k < count; ++k) {
    const float rounded = std::nearbyint(x[k] * factor);
    token.q[k] = static_cast<int8_t>(std::min(std::max(rounded, -128.0f), 127.0f));
    token.sums[k / group_size] += token.q[k];
  }
}

void Panel(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y) {
  const int64_t first = panel * kPanelRows;
  const int64_t rows = std::min(kPanelRows, linear.attributes.out_features - first);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t c = 0; c < rows; ++c) {
      y[t * kPanelRows + c] = Row(linear, tokens[t], first + c);
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {"scalar", Normalize, Quantize, Panel};

}  // namespace bitnet
