// bitnet::BitLinear as an operator of ONNX Runtime.
#include <memory>

#include "ort/node.h"

namespace bitnet::ort {
namespace {

enum Input : size_t { kX, kW, kScale, kNormWeight, kBias, kInputCount };

struct Kernel {
  const Api& api;
  const Kernels& kernels;
  Linear linear;
  Element element;
  std::string label;
};

const float* OptionalVector(const Node& node, size_t index, const char* field, int64_t size) {
  if (!node.HasInput(index)) {
    return nullptr;
  }
  return static_cast<const float*>(node.Constant(index, field, kFloat, {{size}}).data);
}

std::unique_ptr<Kernel> Create(const Api& api, const KernelInfo& info) {
  const Node node(api, info, "BitLinear");
  Attributes attributes = node.ReadMatrixAttributes();
  attributes.activation_bits = node.Int("activation_bits", attributes.activation_bits);
  attributes.epsilon = node.Float("epsilon", attributes.epsilon);
  const ElementType type = node.InputType(kX);
  if (type != kFloat && type != kFloat16) {
    node.Fail("X has element type " + std::to_string(type) + "; it must be float or float16");
  }
  Linear linear = node.ReadMatrix(kW, attributes);
  linear.norm_weight = OptionalVector(node, kNormWeight, "norm_weight", attributes.in_features);
  linear.bias = OptionalVector(node, kBias, "bias", attributes.out_features);
  const Element element = type == kFloat16 ? Element::kHalf : Element::kFloat;
  return std::unique_ptr<Kernel>(new Kernel{api, *ChosenKernels().kernels, linear, element, node.label()});
}

void Compute(const Kernel& kernel, KernelContext& context) {
  const Api& api = kernel.api;
  const Attributes& a = kernel.linear.attributes;
  const Value* x = nullptr;
  Check(api, api.KernelContext_GetInput(&context, kX, &x));
  TensorView view = View(api, x);
  if (view.shape.empty() || view.shape.back() != a.in_features) {
    throw std::runtime_error(kernel.label + ": X has shape " + ToString(view.shape) +
                             "; its last dimension must be in_features, " + std::to_string(a.in_features));
  }
  const int64_t tokens = Product(view.shape, view.shape.size() - 1);
  view.shape.back() = a.out_features;
  Product(view.shape, view.shape.size());
  Value* y = nullptr;
  Check(api, api.KernelContext_GetOutput(&context, 0, view.shape.data(), view.shape.size(), &y));
  if (tokens == 0) {
    return;
  }
  if (kernel.element == Element::kFloat && reinterpret_cast<uintptr_t>(view.data) % alignof(float) != 0) {
    throw std::runtime_error(kernel.label + ": X lies at an address that is not a multiple of 4");
  }
  void* out = nullptr;
  Check(api, api.GetTensorMutableData(y, &out));
  const Scratch scratch(api, context, WorkspaceBytes(kernel.linear, tokens));
  PoolExecutor pool(api, context);
  if (!Run(kernel.kernels, kernel.linear, kernel.element, view.data, tokens, out, scratch.data(),
           pool.executor())) {
    Check(api, pool.status());
  }
}

CustomOp MakeOp() {
  CustomOp op = OpWithKernel<Kernel, Create, Compute>();
  op.GetName = [](const CustomOp*) { return "BitLinear"; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputCount; };
  // Undefined: float and float16 alike, and Y has the type of X.
  op.GetInputType = [](const CustomOp*, size_t i) { return i == kX ? kUndefined : i == kW ? kUint8 : kFloat; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kUndefined; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) {
    return i >= kNormWeight ? kOptional : kRequired;
  };
  return op;
}

}  // namespace

const CustomOp kBitLinearOp = MakeOp();

}  // namespace bitnet::ort
