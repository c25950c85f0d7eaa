// The float kernels' part of the self-test: small problems compared with the scalar twin at load.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "float_kernels.h"

namespace bitnet {
namespace {

using Values = std::vector<float>;
using Codes = std::vector<int8_t>;

// Bit for bit, but any NaN is as good as another: the sign of one depends on the order of operands.
bool Same(const Values& a, const Values& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return (std::isnan(x) && std::isnan(y)) || std::memcmp(&x, &y, sizeof x) == 0;
  });
}

Values Uniform(std::minstd_rand& random, int64_t count) {
  Values values(static_cast<size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(random()) * 0x1p-30f - 1.0f;
  }
  return values;
}

bool GateAgrees(const FloatKernels& kernels, Activation activation) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Values gate = {0.0f,   -0.0f,  kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                       1e30f,  -1e30f, 90.0f,     -90.0f,     1e-40f,
                       -17.0f, -5.5f,  -2.5f,     -1.0f,      -0.3f,
                       0.001f, 0.7f,   1.5f,      4.0f,       11.0f};
  std::minstd_rand random;
  const auto count = static_cast<int64_t>(gate.size());
  const Values up = Uniform(random, count);
  Values expected(gate.size()), actual(gate.size());
  kScalarFloatKernels.gate(activation, gate.data(), up.data(), count, expected.data());
  kernels.gate(activation, gate.data(), up.data(), count, actual.data());
  return Same(expected, actual);
}

struct AttentionProblem {
  int64_t rows;
  int64_t window;
  float softcap;
};

// A whole chunk of keys and one that ends within a vector; heads that end within a tile of values.
constexpr int64_t kKeys = kChunkKeys + 22;
constexpr int64_t kHeadDim = 72;
constexpr int64_t kMostRows = 5;

// One for each number of rows that kernels treat in a way of its own; five are a tile of four and one.
constexpr AttentionProblem kAttentionProblems[] = {
    {1, kKeys, 0.0f}, {2, kKeys, 0.0f}, {3, kKeys, 2.0f}, {4, kKeys, 0.0f}, {kMostRows, 40, 0.0f}};

template <typename T>
struct AttentionData {
  Values query;
  std::vector<T> key, value;
};

Codes Quantized(const FloatKernels& kernels, const Values& x, const Values& inverse) {
  Codes codes(x.size());
  kernels.quantize(x.data(), inverse.data(), static_cast<int64_t>(x.size()), codes.data());
  return codes;
}

// Halves, which are rounded to even, both limits, what lies beyond them, and what is no number.
bool QuantizeAgrees(const FloatKernels& kernels) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Values x = {0.5f, 1.5f, -2.5f, 126.5f, 127.5f, -128.5f, kInfinity, std::numeric_limits<float>::quiet_NaN()};
  Values inverse(x.size(), 1.0f);
  std::minstd_rand random;
  for (const float value : Uniform(random, 64)) {
    x.push_back(value);
    inverse.push_back(150.0f);
  }
  return Quantized(kernels, x, inverse) == Quantized(kScalarFloatKernels, x, inverse);
}

AttentionData<float> MakeAttentionData() {
  std::minstd_rand random;
  AttentionData<float> data;
  data.query = Uniform(random, kMostRows * kHeadDim);
  data.key = Uniform(random, kKeys * kHeadDim);
  data.value = Uniform(random, kKeys * kHeadDim);
  return data;
}

AttentionData<int8_t> Quantized(const AttentionData<float>& data) {
  const Values inverse(data.key.size(), 128.0f);
  AttentionData<int8_t> codes{data.query, Quantized(kScalarFloatKernels, data.key, inverse),
                              Quantized(kScalarFloatKernels, data.value, inverse)};
  for (float& value : codes.query) {
    value *= 0x1p-7f;  // by the value of a step
  }
  return codes;
}

// Sums of both chunks, before and after they are merged: merging can round a wrong bit away.
template <typename T>
Values Attend(const FloatKernels& kernels, const AttentionProblem& problem, const AttentionData<T>& data) {
  const int64_t rows = problem.rows;
  std::vector<int64_t> first, last;
  for (int64_t r = 0; r < rows; ++r) {
    last.push_back(kKeys - rows + 1 + r);
    first.push_back(std::max<int64_t>(0, last.back() - problem.window));
  }
  const AttentionBlock<T> block{data.query.data(), data.key.data(), data.value.data(),
                                first.data(),      last.data(),     rows,
                                kHeadDim,          problem.softcap};
  const int64_t floats = rows * (kHeadDim + 2);
  Values sums(static_cast<size_t>(floats)), later(sums);
  const auto partial = [rows](Values& at) {
    float* peaks = at.data() + rows * kHeadDim;
    return Partial{at.data(), peaks, peaks + rows};
  };
  ChunkFunction<T>(kernels)(block, first[0] / kHeadMultiple * kHeadMultiple, kChunkKeys, partial(sums));
  ChunkFunction<T>(kernels)(block, kChunkKeys, kKeys, partial(later));
  Values all = sums;
  all.insert(all.end(), later.begin(), later.end());
  kernels.merge(partial(sums), partial(later), rows, kHeadDim);
  all.insert(all.end(), sums.begin(), sums.end());
  return all;
}

template <typename T>
bool AttentionAgrees(const FloatKernels& kernels, const AttentionProblem& problem,
                     const AttentionData<T>& data) {
  return Same(Attend(kScalarFloatKernels, problem, data), Attend(kernels, problem, data));
}

}  // namespace

std::string SelfTest(const FloatKernels& kernels) {
  for (const char* name : {"silu", "relu2", "gelu", "gelu_tanh"}) {
    Activation activation;
    if (!ParseActivation(name, activation) || !GateAgrees(kernels, activation)) {
      return std::string("gated activation ") + name;
    }
  }
  if (!QuantizeAgrees(kernels)) {
    return "int8 keys and values";
  }
  const AttentionData<float> data = MakeAttentionData();
  const AttentionData<int8_t> codes = Quantized(data);
  for (const AttentionProblem& problem : kAttentionProblems) {
    const bool floats = AttentionAgrees(kernels, problem, data);
    if (!floats || !AttentionAgrees(kernels, problem, codes)) {
      return std::string(floats ? "int8 " : "") + "attention, rows " + std::to_string(problem.rows) +
             ", window " + std::to_string(problem.window) + ", softcap " +
             std::to_string(static_cast<int>(problem.softcap));
    }
  }
  return {};
}

}  // namespace bitnet
