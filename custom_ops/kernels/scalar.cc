// The scalar twin: the contract written down plainly. Every other kernel must give its bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "layout.h"

namespace bitnet {
namespace {

// The last part of `lanes16`: lanes added in halves.
float Halves(float lane[16]) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lane[i] += lane[i + half];
    }
  }
  return lane[0];
}

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
  return Halves(lane);
}

// Calls use(k, raw - zero point) for the columns [begin, end) of one row; `begin` is the first of a unit.
template <typename F>
void EachWeight(const Linear& linear, int64_t row, int64_t begin, int64_t end, F use) {
  for (int64_t first = begin; first < end; first += kStep) {
    int32_t raw[kStep];
    RawUnit(linear, row, first / kStep, raw);
    for (int64_t k = first; k < std::min(first + kStep, end); ++k) {
      use(k, raw[k - first] - static_cast<int32_t>(linear.attributes.zero_point));
    }
  }
}

// Step 4 for one row and the columns [begin, end) of one group.
float GroupSum(const Linear& linear, const Token& token, int64_t row, int64_t begin, int64_t end) {
  if (linear.quantized()) {
    int64_t sum = 0;
    for (int64_t d = 0; d < linear.digits(); ++d) {
      sum *= 256;
      EachWeight(linear, row, begin, end, [&](int64_t k, int32_t w) { sum += w * token.digits[d].q[k]; });
    }
    return static_cast<float>(sum);
  }
  // `lanes16` with the products at hand one after the other.
  float lane[16] = {};
  EachWeight(linear, row, begin, end, [&](int64_t k, int32_t w) {
    const float product = token.x[k] * static_cast<float>(w);
    float& sum = lane[k % 16];
    sum = k - begin < 16 ? product : sum + product;
  });
  // Missing elements are added as +0.0, which turns a sum of -0.0 into +0.0.
  for (int64_t k = end; (k - begin) % 16 != 0; ++k) {
    lane[k % 16] += 0.0f;
  }
  return Halves(lane);
}

float Row(const Linear& linear, const Token& token, int64_t row) {
  const Attributes& a = linear.attributes;
  if (a.group_size == 0) {
    const float scale = ScaleOf(linear, row, 0);
    const float f = GroupSum(linear, token, row, 0, a.in_features);
    return f * (linear.quantized() ? scale / *token.factor : scale);
  }
  float y = 0.0f;
  for (int64_t g = 0; g < linear.groups; ++g) {
    const int64_t begin = g * a.group_size;
    const int64_t end = begin + std::min(a.group_size, a.in_features - begin);
    const float term = GroupSum(linear, token, row, begin, end) * ScaleOf(linear, row, g);
    y = g == 0 ? term : y + term;
  }
  return linear.quantized() ? y * (1.0f / *token.factor) : y;
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
  const bool wide = linear.digits() == 2;
  for (int64_t d = 0; d < linear.digits(); ++d) {
    std::memset(token.digits[d].q, 0, static_cast<size_t>(padded));
    std::memset(token.digits[d].sums, 0, static_cast<size_t>(linear.groups) * sizeof(int32_t));
  }
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
  const float factor = (wide ? kLargest16 : kLargest8) / largest;
  *token.factor = factor;
  const int64_t group_size = linear.attributes.group_size == 0 ? count : linear.attributes.group_size;
  const auto put = [&](const Digits& digits, int64_t k, int32_t value) {
    digits.q[k] = static_cast<int8_t>(value);
    digits.sums[k / group_size] += value;
  };
  for (int64_t k = 0; k < count; ++k) {
    const float rounded = std::nearbyint(x[k] * factor);
    if (!wide) {
      put(token.digits[0], k, static_cast<int32_t>(std::min(std::max(rounded, -128.0f), 127.0f)));
      continue;
    }
    const int32_t q = static_cast<int32_t>(rounded);
    const int32_t low = ((q + 128) & 255) - 128;
    put(token.digits[0], k, (q - low) / 256);
    put(token.digits[1], k, low);
  }
}

void Panels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t row = panels[p] * kPanelRows;
    const int64_t rows = std::min(kPanelRows, linear.attributes.out_features - row);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t c = 0; c < rows; ++c) {
        y[(p * count + t) * kPanelRows + c] = Row(linear, tokens[t], row + c);
      }
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {"scalar", Normalize, Quantize, Panels};

}  // namespace bitnet
