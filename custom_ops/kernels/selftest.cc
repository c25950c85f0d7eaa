// A small comparison with the scalar twin, run when the library is loaded: a compiler or processor fault shows
// here and not in somebody's text.
#include <cstring>
#include <memory>
#include <vector>

#include "bitlinear.h"

namespace bitnet {
namespace {

// Kernels take other ways for one token, for two, for a few and for many.
constexpr int64_t kManyTokens = 9;

uint32_t Next(uint32_t& state) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

struct Problem {
  Attributes attributes;
  std::vector<uint8_t> weight;
  std::vector<float> scale, norm, bias, x;
};

Problem MakeProblem(int64_t bits, int64_t group_size, int64_t activation_bits) {
  Problem problem;
  Attributes& a = problem.attributes;
  a.in_features = 173;
  a.out_features = 67;
  a.bits = bits;
  a.zero_point = int64_t{1} << (bits - 1);
  a.group_size = group_size;
  a.activation_bits = activation_bits;
  const Linear linear = MakeLinear(a);
  uint32_t state = 2463534242u;
  problem.weight.resize(static_cast<size_t>(linear.weight_bytes));
  for (uint8_t& byte : problem.weight) {
    byte = static_cast<uint8_t>(Next(state) >> 7);
  }
  // Half of the first panel holds the largest codes, to meet the largest activations below.
  std::memset(problem.weight.data(), 0xFF, static_cast<size_t>(linear.panel_bytes / 2));
  const auto fill = [&state](std::vector<float>& values, int64_t count) {
    values.resize(static_cast<size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(static_cast<int32_t>(Next(state) >> 8) - (1 << 23)) * 0x1p-22f;
    }
  };
  fill(problem.scale, linear.panels * kPanelRows * linear.groups);
  fill(problem.norm, a.in_features);
  fill(problem.bias, a.out_features);
  fill(problem.x, kManyTokens * a.in_features);
  float* extreme = problem.x.data();
  for (int64_t k = 0; k < a.in_features; ++k) {
    extreme[k] = -3.0f;                 // token 0: all -127
    extreme[a.in_features + k] = 0.0f;  // token 1: all zero
  }
  return problem;
}

bool Inline(void*, size_t n, void (*fn)(void*, size_t), void* arg) {
  for (size_t i = 0; i < n; ++i) {
    fn(arg, i);
  }
  return true;
}

std::vector<float> Apply(const Kernels& kernels, const Problem& problem, int64_t tokens, bool with_norm) {
  Linear linear = MakeLinear(problem.attributes);
  linear.weight = problem.weight.data();
  linear.scale = problem.scale.data();
  linear.scale_per_row = true;
  linear.norm_weight = with_norm ? problem.norm.data() : nullptr;
  linear.bias = problem.bias.data();
  std::vector<float> y(static_cast<size_t>(tokens * problem.attributes.out_features));
  std::vector<float> workspace(WorkspaceBytes(linear, tokens) / sizeof(float));
  const Executor executor{nullptr, Inline};
  Run(kernels, linear, Element::kFloat, problem.x.data(), tokens, y.data(), workspace.data(), executor);
  return y;
}

}  // namespace

std::string SelfTest(const Kernels& kernels) {
  for (int64_t bits = 2; bits <= 8; bits += 2) {
    for (const int64_t group_size : {0, 32}) {
      for (const int64_t activation_bits : {0, 8, 16}) {
        const Problem problem = MakeProblem(bits, group_size, activation_bits);
        const bool with_norm = bits % 4 == 0;
        for (const int64_t tokens : {kFewTokens, kManyTokens}) {
          const std::vector<float> expected = Apply(kScalarKernels, problem, tokens, with_norm);
          const std::vector<float> actual = Apply(kernels, problem, tokens, with_norm);
          if (std::memcmp(expected.data(), actual.data(), expected.size() * sizeof(float)) != 0) {
            return "bits " + std::to_string(bits) + ", group_size " + std::to_string(group_size) +
                   ", activation_bits " + std::to_string(activation_bits) + ", tokens " +
                   std::to_string(tokens);
          }
        }
      }
    }
  }
  return {};
}

}  // namespace bitnet
