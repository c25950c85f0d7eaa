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
  Kernel kernel, broadcast;

  void Prepare(Call& call) const override {
    const Shape &left = call.ShapeOf(a), &right = call.ShapeOf(b);
    Shape shape(std::max(left.size(), right.size()));
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      const int64_t one = Size(left, shape.size(), axis), other = Size(right, shape.size(), axis);
      if (one != other && one != 1 && other != 1) {
        Fail("operands of shapes " + ToString(left) + " and " + ToString(right) + " do not go together");
      }
      shape[axis] = one == 1 ? other : one;
    }
    if (shape.size() > kMaxAxes) {
      Fail("an operand of shape " + ToString(shape) + " has more than " + std::to_string(kMaxAxes) + " axes");
    }
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    const Shape &shape = call.ShapeOf(y), &right = call.ShapeOf(b);
    const int64_t count = Product(shape), repeated = Product(right);
    const bool vector = !right.empty() && right.back() == repeated && right.back() == shape.back();
    if (call.ShapeOf(a) == shape && (right == shape || repeated == 1 || vector)) {
      call.Use(kernel);
      call.Arguments(kBinaryArguments, BinaryArguments{Count(count), Count(repeated)});
      call.Bind(kBinaryA, a);
      call.Bind(kBinaryB, b);
      call.Bind(kBinaryY, y);
    } else {
      BroadcastArguments arguments{Count(count), Count(static_cast<int64_t>(shape.size())), {}, {}, {}};
      for (size_t axis = 0; axis < shape.size(); ++axis) {
        arguments.sizes[axis] = Count(shape[axis]);
        arguments.a_steps[axis] = StepOf(call.ShapeOf(a), shape.size(), axis);
        arguments.b_steps[axis] = StepOf(right, shape.size(), axis);
      }
      call.Use(broadcast);
      call.Arguments(kBroadcastArguments, arguments);
      call.Bind(kBroadcastA, a);
      call.Bind(kBroadcastB, b);
      call.Bind(kBroadcastY, y);
    }
    call.Dispatch(CeilDiv(count, 32 * kGroups), 1, 1, kGroups);
  }

 private:
  // Size of an axis, counted in a shape of so many axes; axes that a shape lacks in front are 1.
  static int64_t Size(const Shape& shape, size_t axes, size_t axis) {
    const size_t missing = axes - shape.size();
    return axis < missing ? 1 : shape[axis - missing];
  }

  // Elements from one place of an axis to the next; 0 where there is one for all.
  static uint32_t StepOf(const Shape& shape, size_t axes, size_t axis) {
    if (Size(shape, axes, axis) == 1) {
      return 0;
    }
    int64_t step = 1;
    for (size_t behind = axis + 1; behind < axes; ++behind) {
      step *= Size(shape, axes, behind);
    }
    return Count(step);
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
  // The operand that is repeated comes second, where the order is free: that is the fast form.
  if (builder.Input(node, 0)->is_constant && *operation != kBinarySub) {
    std::swap(step->a, step->b);
  }
  step->y = node.outputs[0];
  step->kernel = Elementwise("binary", *operation);
  step->broadcast = Elementwise("broadcast_binary", *operation);
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
