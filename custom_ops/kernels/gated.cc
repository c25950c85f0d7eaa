// Names, and the walk over rows.
#include "gated.h"

#include <algorithm>

#include "float_kernels.h"

namespace bitnet {
namespace {

struct Name {
  const char* text;
  Activation activation;
};

constexpr Name kNames[] = {{"silu", Activation::kSilu},
                           {"relu2", Activation::kRelu2},
                           {"gelu", Activation::kGelu},
                           {"gelu_tanh", Activation::kGeluTanh}};

// Values of one work item: below it, handing out costs more than it saves.
constexpr int64_t kItemValues = 16384;

struct Work {
  GatedCall call;
  const FloatKernels* kernels;
};

// Values first .. last - 1 of the result.
void GateRange(const Work& work, int64_t first, int64_t last) {
  const GatedCall& call = work.call;
  while (first < last) {
    const int64_t row = first / call.width, column = first % call.width;
    const int64_t count = std::min(last - first, call.width - column);
    const int64_t at = row * call.stride + column;
    work.kernels->gate(call.activation, call.gate + at, call.up + at, count, call.y + first);
    first += count;
  }
}

}  // namespace

bool ParseActivation(const std::string& name, Activation& activation) {
  for (const Name& known : kNames) {
    if (name == known.text) {
      activation = known.activation;
      return true;
    }
  }
  return false;
}

const char* ActivationNames() { return "silu, relu2, gelu and gelu_tanh"; }

bool RunGated(const GatedCall& call, const Executor& executor) {
  Work work{call, &ChosenFloatKernels()};
  const int64_t values = call.rows * call.width;
  if (values < 2 * kItemValues) {
    GateRange(work, 0, values);
    return true;
  }
  const auto item = [](void* arg, size_t index) {
    const Work& self = *static_cast<const Work*>(arg);
    const int64_t first = static_cast<int64_t>(index) * kItemValues;
    GateRange(self, first, std::min(first + kItemValues, self.call.rows * self.call.width));
  };
  const auto items = static_cast<size_t>((values - 1) / kItemValues + 1);
  return executor.parallel_for(executor.self, items, item, &work);
}

}  // namespace bitnet
