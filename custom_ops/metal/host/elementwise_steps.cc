// Activations, sums and products, and norms.
#include <algorithm>
#include <cmath>
#include <memory>

#include "metal/arguments.h"
#include "metal/host/build.h"

namespace bitnet::metal {
namespace {

constexpr uint32_t kGroups = 4;  // SIMD groups of a threadgroup

class Gated final : public Step {
 public:
  int gate, up, y;
  Kernel kernel;

  void Prepare(Call& call) const override {
    Shape shape = call.ShapeOf(gate);
    if (shape.empty() || (up == kNone && shape.back() % 2 != 0)) {
      Fail("X has shape " + ToString(shape) + "; its last dimension must hold gate and up, an even number");
    }
    if (up != kNone && call.ShapeOf(up) != shape) {
      Fail("up has shape " + ToString(call.ShapeOf(up)) + "; it must have the shape of X, " + ToString(shape));
    }
    if (up == kNone) {
      shape.back() /= 2;
    }
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    const Shape& shape = call.ShapeOf(y);
    const int64_t rows = Product(shape, shape.size() - 1), width = shape.back();
    Count(2 * rows * width);
    call.Use(kernel);
    call.Arguments(kGatedArguments,
                   GatedArguments{Count(rows), Count(width), Count(up == kNone ? 2 * width : width)});
    call.Bind(kGatedGate, gate);
    if (up == kNone) {
      call.Bind(kGatedUp, gate, static_cast<size_t>(width) * sizeof(float));
    } else {
      call.Bind(kGatedUp, up);
    }
    call.Bind(kGatedY, y);
    call.Dispatch(CeilDiv(rows * width, 32 * kGroups), 1, 1, kGroups);
  }
};

class Unary final : public Step {
 public:
  int x, y;
  Kernel kernel;

  void Prepare(Call& call) const override { call.SetShape(y, call.ShapeOf(x)); }

  void Encode(Call& call) const override {
    const int64_t count = Product(call.ShapeOf(x));
    call.Use(kernel);
    call.Arguments(kUnaryArguments, UnaryArguments{Count(count), 0.0f});
    call.Bind(kUnaryX, x);
    call.Bind(kUnaryY, y);
    call.Dispatch(CeilDiv(count, 32 * kGroups), 1, 1, kGroups);
  }
};

class Binary final : public Step {
 public:
  int a, b, y;
  Kernel kernel;

  void Prepare(Call& call) const override {
    const Shape& large = call.ShapeOf(a);
    const Shape& small = call.ShapeOf(b);
    const int64_t count = Product(small);
    const bool same = large == small, scalar = count == 1 && small.size() <= large.size();
    const bool vector =
        !small.empty() && small.size() <= large.size() && small.back() == count && small.back() == large.back();
    if (!same && !scalar && !vector) {
      Fail("operands of shapes " + ToString(large) + " and " + ToString(small) +
           " do not go together here: the second must have the first one's shape, its last dimension or one "
           "element");
    }
    call.SetShape(y, large);
  }

  void Encode(Call& call) const override {
    const int64_t count = Product(call.ShapeOf(a));
    call.Use(kernel);
    call.Arguments(kBinaryArguments, BinaryArguments{Count(count), Count(Product(call.ShapeOf(b)))});
    call.Bind(kBinaryA, a);
    call.Bind(kBinaryB, b);
    call.Bind(kBinaryY, y);
    call.Dispatch(CeilDiv(count, 32 * kGroups), 1, 1, kGroups);
  }
};

class Norm final : public Step {
 public:
  int x, weight, bias, y;
  float epsilon;
  Kernel kernel;

  void Prepare(Call& call) const override {
    const Shape& shape = call.ShapeOf(x);
    const int64_t width = call.ShapeOf(weight).back();
    if (shape.empty() || shape.back() != width) {
      Fail("the input has shape " + ToString(shape) + "; its last dimension must be " + std::to_string(width));
    }
    call.SetShape(y, shape);
  }

  void Encode(Call& call) const override {
    const Shape& shape = call.ShapeOf(x);
    Count(Product(shape));
    call.Use(kernel);
    call.Arguments(kNormArguments, NormArguments{Count(shape.back()), epsilon});
    call.Bind(kNormX, x);
    call.Bind(kNormWeight, weight);
    if (bias != kNone) {
      call.Bind(kNormBias, bias);
    }
    call.Bind(kNormY, y);
    call.Dispatch(Product(shape, shape.size() - 1), 1, 1, kGroups);
  }
};

struct Named {
  const char* name;
  uint32_t operation;
};

constexpr Named kActivations[] = {{"silu", kActivationSilu},
                                  {"relu2", kActivationRelu2},
                                  {"gelu", kActivationGelu},
                                  {"gelu_tanh", kActivationGeluTanh}};
constexpr Named kUnaries[] = {{"Relu", kActivationRelu}, {"Sigmoid", kUnarySigmoid}, {"Tanh", kUnaryTanh}};
constexpr Named kBinaries[] = {{"Add", kBinaryAdd}, {"Mul", kBinaryMul}, {"Sub", kBinarySub}};

template <size_t N>
std::optional<uint32_t> Find(const Named (&table)[N], const std::string& name) {
  for (const Named& entry : table) {
    if (name == entry.name) {
      return entry.operation;
    }
  }
  return std::nullopt;
}

Kernel Elementwise(const char* function, uint32_t operation) {
  return Kernel(function,
                {{kConstantSimdgroups, kGroups}, {kConstantHalf, 0}, {kConstantOperation, operation}});
}

void AddNorm(Builder& builder, const Node& node, const char* function, int x, int weight, int bias,
             float epsilon) {
  auto step = std::make_unique<Norm>();
  step->x = x;
  step->weight = weight;
  step->bias = bias;
  step->y = node.outputs[0];
  step->epsilon = epsilon;
  std::vector<gpu::Constant> constants{
      {kConstantSimdgroups, kGroups}, {kConstantHalf, 0}, {kConstantNorm, 1}, {kConstantResidual, 0}};
  if (function == std::string("layer_norm")) {
    constants.push_back({kConstantBias, bias != kNone ? 1u : 0u});
  }
  step->kernel = Kernel(function, std::move(constants));
  step->reads = {x, weight};
  if (bias != kNone) {
    step->reads.push_back(bias);
  }
  step->writes = {step->y};
  builder.Add(std::move(step), node);
}

bool IsVector(const Value* value) {
  return value != nullptr && value->is_constant && value->type == Type::kFloat && value->shape.size() == 1;
}

}  // namespace

bool MakeGated(Builder& builder, const Node& node) {
  const auto name = node.strings.find("activation");
  if (name == node.strings.end() || !builder.IsFloat(node, 0) || (node.Has(1) && !builder.IsFloat(node, 1))) {
    return false;
  }
  const std::optional<uint32_t> operation = Find(kActivations, name->second);
  if (!operation) {
    return false;
  }
  auto step = std::make_unique<Gated>();
  step->gate = node.inputs[0];
  step->up = node.Has(1) ? node.inputs[1] : kNone;
  step->y = node.outputs[0];
  step->kernel = Elementwise("gated", *operation);
  step->reads = {step->gate};
  if (step->up != kNone) {
    step->reads.push_back(step->up);
  }
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeUnary(Builder& builder, const Node& node) {
  std::optional<uint32_t> operation = Find(kUnaries, node.op);
  if (node.op == "Gelu") {
    const auto form = node.strings.find("approximate");
    const bool tanh = form != node.strings.end() && form->second == "tanh";
    operation = tanh ? kActivationGeluTanh : kActivationGelu;
  }
  if (!operation || !builder.IsFloat(node, 0)) {
    return false;
  }
  auto step = std::make_unique<Unary>();
  step->x = node.inputs[0];
  step->y = node.outputs[0];
  step->kernel = Elementwise("unary", *operation);
  step->reads = {step->x};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeBinary(Builder& builder, const Node& node) {
  const std::optional<uint32_t> operation = Find(kBinaries, node.op);
  if (!operation || !builder.IsFloat(node, 0) || !builder.IsFloat(node, 1)) {
    return false;
  }
  auto step = std::make_unique<Binary>();
  step->a = node.inputs[0];
  step->b = node.inputs[1];
  if (builder.Input(node, 0)->is_constant) {
    if (builder.Input(node, 1)->is_constant || *operation == kBinarySub) {
      return false;
    }
    std::swap(step->a, step->b);
  }
  const Value& b = builder.graph.values[static_cast<size_t>(step->b)];
  if (b.is_constant) {
    // One element, or one for each place of the last axis.
    const int64_t count = Product(b.shape);
    if (count != 1 && (b.shape.empty() || b.shape.back() != count)) {
      return false;
    }
  }
  step->y = node.outputs[0];
  step->kernel = Elementwise("binary", *operation);
  step->reads = {step->a, step->b};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeNorm(Builder& builder, const Node& node) {
  const bool root = node.op != "LayerNormalization";
  const bool one_output =
      std::count_if(node.outputs.begin(), node.outputs.end(), [](int v) { return v != kNone; }) == 1;
  if (!builder.IsFloat(node, 0) || node.Int("axis", -1) != -1 || node.Int("stash_type", 1) != 1 ||
      !one_output || !IsVector(builder.Input(node, 1)) ||
      (node.Has(2) && (root || !IsVector(builder.Input(node, 2)))) ||
      (node.Has(2) && builder.Input(node, 2)->shape != builder.Input(node, 1)->shape)) {
    return false;
  }
  AddNorm(builder, node, root ? "rms_norm" : "layer_norm", node.inputs[0], node.inputs[1],
          node.Has(2) ? node.inputs[2] : kNone, node.Float("epsilon", 1e-5f));
  return true;
}

void MakePlainNorm(Builder& builder, const Node& last, const PlainNorm& norm) {
  AddNorm(builder, last, "rms_norm", norm.x, norm.weight, kNone, norm.epsilon);
}

}  // namespace bitnet::metal
