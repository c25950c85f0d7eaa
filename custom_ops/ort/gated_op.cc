// bitnet::GatedActivation as an operator of ONNX Runtime.
#include <memory>

#include "kernels/gated.h"
#include "ort/node.h"

namespace bitnet::ort {
namespace {

enum Input : size_t { kX, kUp, kInputCount };

struct Kernel {
  const Api& api;
  Activation activation;
  bool separate;  // gate and up are two inputs
  std::string label;
};

std::unique_ptr<Kernel> Create(const Api& api, const KernelInfo& info) {
  const Node node(api, info, "GatedActivation");
  const std::string name = node.RequiredString("activation");
  Activation activation{};
  if (!ParseActivation(name, activation)) {
    node.Fail("activation is '" + name + "'; known values are " + ActivationNames());
  }
  return std::unique_ptr<Kernel>(new Kernel{api, activation, node.HasInput(kUp), node.label()});
}

const float* Floats(const Kernel& kernel, const TensorView& view, const char* name) {
  if (reinterpret_cast<uintptr_t>(view.data) % alignof(float) != 0) {
    throw std::runtime_error(kernel.label + ": " + name + " lies at an address that is not a multiple of 4");
  }
  return static_cast<const float*>(view.data);
}

void Compute(const Kernel& kernel, KernelContext& context) {
  const Api& api = kernel.api;
  const Value* value = nullptr;
  Check(api, api.KernelContext_GetInput(&context, kX, &value));
  const TensorView x = View(api, value);
  std::vector<int64_t> shape = x.shape;
  if (shape.empty() || (!kernel.separate && shape.back() % 2 != 0)) {
    throw std::runtime_error(kernel.label + ": X has shape " + ToString(shape) +
                             "; its last dimension must hold gate and up, an even number");
  }
  GatedCall call{};
  call.activation = kernel.activation;
  call.gate = Floats(kernel, x, "X");
  call.stride = shape.back();
  if (kernel.separate) {
    Check(api, api.KernelContext_GetInput(&context, kUp, &value));
    const TensorView up = View(api, value);
    if (up.shape != shape) {
      throw std::runtime_error(kernel.label + ": up has shape " + ToString(up.shape) +
                               "; it must have the shape of X, " + ToString(shape));
    }
    call.up = Floats(kernel, up, "up");
  } else {
    shape.back() /= 2;
    call.up = call.gate + shape.back();
  }
  call.width = shape.back();
  call.rows = Product(shape, shape.size() - 1);
  const int64_t count = Product(shape, shape.size());
  Value* y = nullptr;
  Check(api, api.KernelContext_GetOutput(&context, 0, shape.data(), shape.size(), &y));
  if (count == 0) {
    return;
  }
  void* out = nullptr;
  Check(api, api.GetTensorMutableData(y, &out));
  call.y = static_cast<float*>(out);
  PoolExecutor pool(api, context);
  if (!RunGated(call, pool.executor())) {
    Check(api, pool.status());
  }
}

CustomOp MakeOp() {
  CustomOp op = OpWithKernel<Kernel, Create, Compute>();
  op.GetName = [](const CustomOp*) { return "GatedActivation"; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputCount; };
  op.GetInputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) { return i == kUp ? kOptional : kRequired; };
  return op;
}

}  // namespace

const CustomOp kGatedActivationOp = MakeOp();

}  // namespace bitnet::ort
