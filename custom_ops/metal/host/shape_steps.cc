// Operators that only move numbers.
#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "metal/arguments.h"
#include "metal/host/build.h"

namespace bitnet::metal {
namespace {

constexpr uint32_t kGroups = 4;  // SIMD groups of a threadgroup

class Reshape final : public Step {
 public:
  int x, y;
  std::vector<int64_t> target;

  void Prepare(Call& call) const override {
    const Shape& from = call.ShapeOf(x);
    Shape shape = target;
    int64_t known = 1;
    size_t open = shape.size();
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] == 0) {
        if (i >= from.size()) {
          Fail("shape " + ToString(target) + " keeps a dimension that " + ToString(from) + " does not have");
        }
        shape[i] = from[i];
      }
      if (shape[i] == -1) {
        open = i;
      } else {
        known *= shape[i];
      }
    }
    const int64_t count = Product(from);
    if (open != shape.size()) {
      shape[open] = known == 0 ? 0 : count / known;
    }
    if (Product(shape) != count) {
      Fail("shape " + ToString(target) + " does not fit " + ToString(from));
    }
    call.SetView(y, std::move(shape), x, 0);
  }

  void Encode(Call&) const override {}
};

// y[r, i] = x[r, columns[i]], or 0 where that is -1.
void GatherColumns(Call& call, const Kernel& kernel, int x, int columns, int y, int64_t rows, int64_t width,
                   int64_t selected) {
  Count(rows * std::max(width, selected));
  call.Use(kernel);
  call.Arguments(kGatherArguments, GatherArguments{Count(rows), Count(width), Count(selected)});
  call.Bind(kGatherX, x);
  call.Bind(kGatherColumns, columns);
  call.Bind(kGatherY, y);
  call.Dispatch(CeilDiv(rows * selected, 32 * kGroups), 1, 1, kGroups);
}

Kernel GatherKernel() { return Kernel("gather_columns", {{kConstantSimdgroups, kGroups}, {kConstantHalf, 0}}); }

std::vector<int32_t> Range(int64_t first, int64_t count) {
  if (first + count > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error("BitNetMetal: a row of more than 2^31 elements");
  }
  std::vector<int32_t> columns(static_cast<size_t>(count));
  std::iota(columns.begin(), columns.end(), static_cast<int32_t>(first));
  return columns;
}

class Split final : public Step {
 public:
  int x;
  std::vector<int> parts, columns;
  std::vector<int64_t> sizes;  // empty: alike
  Kernel kernel = GatherKernel();

  void Prepare(Call& call) const override {
    const Shape& from = call.ShapeOf(x);
    const auto count = static_cast<int64_t>(parts.size());
    const int64_t width = from.empty() ? 0 : from.back();
    int64_t start = 0;
    bool fits = !from.empty();
    for (size_t i = 0; fits && i < parts.size(); ++i) {
      const int64_t even = std::min(CeilDiv(width, count), width - start);
      const int64_t size = sizes.empty() ? even : sizes[i];
      fits = size >= 0 && size <= width - start;
      if (!fits) {
        break;
      }
      Shape shape = from;
      shape.back() = size;
      call.SetShape(parts[i], std::move(shape));
      call.SetContent(columns[i], Range(start, size));
      start += size;
    }
    if (!fits || start != width) {
      Fail("a tensor of shape " + ToString(from) + " cannot be split into parts of " + ToString(sizes));
    }
  }

  void Encode(Call& call) const override {
    const Shape& from = call.ShapeOf(x);
    for (size_t i = 0; i < parts.size(); ++i) {
      GatherColumns(call, kernel, x, columns[i], parts[i], Product(from, from.size() - 1), from.back(),
                    call.ShapeOf(parts[i]).back());
    }
  }
};

// `x[:, start:]`
class Slice final : public Step {
 public:
  int x, start, columns, y;
  Kernel kernel = GatherKernel();

  void Prepare(Call& call) const override {
    Shape shape = call.ShapeOf(x);
    if (shape.size() < 2 || Product(call.ShapeOf(start)) != 1) {
      Fail("data has shape " + ToString(shape) + "; it must have a second dimension, and starts one element");
    }
    const int64_t first = First(call);
    const int64_t width = Product(Shape(shape.begin() + 2, shape.end()));
    shape[1] -= first;
    if (IsView(call, first)) {
      call.SetView(y, std::move(shape), x, static_cast<size_t>(first * width) * sizeof(float));
      return;
    }
    call.SetContent(columns, Range(first * width, shape[1] * width));
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    if (IsView(call, First(call))) {
      return;
    }
    const Shape& from = call.ShapeOf(x);
    const Shape& to = call.ShapeOf(y);
    const int64_t width = Product(Shape(from.begin() + 2, from.end()));
    GatherColumns(call, kernel, x, columns, y, from[0], from[1] * width, to[1] * width);
  }

 private:
  static bool IsView(const Call& call, int64_t first, int x) { return first == 0 || call.ShapeOf(x)[0] <= 1; }
  bool IsView(const Call& call, int64_t first) const { return IsView(call, first, x); }

  int64_t First(const Call& call) const {
    const int64_t length = call.ShapeOf(x)[1], given = *static_cast<const int64_t*>(call.Host(start));
    return std::clamp<int64_t>(given < 0 ? given + length : given, 0, length);
  }
};

// Zeros behind the last axis, or columns of it in an order of their own.
class Columns final : public Step {
 public:
  int x, columns, y;
  int64_t zeros = 0;              // Pad
  std::vector<int64_t> selected;  // Gather
  Kernel kernel = GatherKernel();

  void Prepare(Call& call) const override {
    Shape shape = call.ShapeOf(x);
    if (shape.empty()) {
      Fail("a scalar has no last axis");
    }
    const int64_t width = shape.back();
    if (selected.empty()) {
      std::vector<int32_t> content = Range(0, width);
      content.resize(content.size() + static_cast<size_t>(zeros), -1);
      shape.back() = width + zeros;
      call.SetContent(columns, std::move(content));
    } else {
      const int64_t largest = *std::max_element(selected.begin(), selected.end());
      if (largest >= width) {
        Fail("indices holds " + std::to_string(largest) + "; it must be from 0 to " +
             std::to_string(width - 1));
      }
      shape.back() = static_cast<int64_t>(selected.size());
    }
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    const Shape& from = call.ShapeOf(x);
    GatherColumns(call, kernel, x, columns, y, Product(from, from.size() - 1), from.back(),
                  call.ShapeOf(y).back());
  }
};

bool IsOne(const std::optional<std::vector<int64_t>>& list, int64_t value) {
  return list && list->size() == 1 && list->front() == value;
}

}  // namespace

bool MakeReshape(Builder& builder, const Node& node) {
  const auto target = builder.Ints(builder.Input(node, 1));
  if (!builder.IsFloat(node, 0) || !target || node.Int("allowzero", 0) != 0) {
    return false;
  }
  int64_t product = 1;
  for (const int64_t size : *target) {
    if (size < -1 || size > std::numeric_limits<int32_t>::max() ||
        (product *= std::max<int64_t>(size, 1)) > int64_t{1} << 31) {
      return false;
    }
  }
  if (std::count(target->begin(), target->end(), -1) > 1) {
    return false;
  }
  auto step = std::make_unique<Reshape>();
  step->x = node.inputs[0];
  step->y = node.outputs[0];
  step->target = *target;
  step->reads = {step->x};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeSplit(Builder& builder, const Node& node) {
  const bool sized = node.Has(1);
  const auto sizes = builder.Ints(builder.Input(node, 1));
  const bool all = std::count(node.outputs.begin(), node.outputs.end(), kNone) == 0;
  if (!builder.IsFloat(node, 0) || node.Int("axis", 0) != -1 || !all || (sized && !sizes) ||
      (sized && sizes->size() != node.outputs.size())) {
    return false;
  }
  auto step = std::make_unique<Split>();
  step->x = node.inputs[0];
  step->parts = node.outputs;
  if (sized) {
    step->sizes = *sizes;
  }
  step->reads = {step->x};
  step->writes = step->parts;
  for (size_t i = 0; i < step->parts.size(); ++i) {
    step->columns.push_back(builder.Workspace());
    step->reads.push_back(step->columns.back());
  }
  builder.Add(std::move(step), node);
  return true;
}

bool MakeSlice(Builder& builder, const Node& node) {
  const Value* start = builder.Input(node, 1);
  const auto ends = builder.Ints(builder.Input(node, 2)), axes = builder.Ints(builder.Input(node, 3));
  if (!builder.IsFloat(node, 0) || start == nullptr || start->type != Type::kInt64 || !ends ||
      ends->size() != 1 || ends->front() < std::numeric_limits<int32_t>::max() || !IsOne(axes, 1) ||
      (node.Has(4) && !IsOne(builder.Ints(builder.Input(node, 4)), 1))) {
    return false;
  }
  auto step = std::make_unique<Slice>();
  step->x = node.inputs[0];
  step->start = node.inputs[1];
  step->y = node.outputs[0];
  step->columns = builder.Workspace();
  step->reads = {step->x, step->columns};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakePad(Builder& builder, const Node& node) {
  const auto pads = builder.Ints(builder.Input(node, 1));
  const auto mode = node.strings.find("mode");
  constexpr int64_t kMost = 1 << 20;
  if (!builder.IsFloat(node, 0) || !pads || pads->size() != 2 || (*pads)[0] != 0 || (*pads)[1] < 1 ||
      (*pads)[1] > kMost || node.Has(2) || !IsOne(builder.Ints(builder.Input(node, 3)), -1) ||
      (mode != node.strings.end() && mode->second != "constant")) {
    return false;
  }
  auto step = std::make_unique<Columns>();
  step->x = node.inputs[0];
  step->y = node.outputs[0];
  step->columns = builder.Workspace();
  step->zeros = (*pads)[1];
  step->reads = {step->x, step->columns};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeGather(Builder& builder, const Node& node) {
  const auto indices = builder.Ints(builder.Input(node, 1));
  if (!builder.IsFloat(node, 0) || builder.Input(node, 0)->is_constant || node.Int("axis", 0) != -1 ||
      !indices || builder.Input(node, 1)->shape.size() != 1 || indices->empty()) {
    return false;
  }
  std::vector<int32_t> columns;
  for (const int64_t index : *indices) {
    if (index < 0 || index > std::numeric_limits<int32_t>::max()) {
      return false;
    }
    columns.push_back(static_cast<int32_t>(index));
  }
  auto step = std::make_unique<Columns>();
  step->x = node.inputs[0];
  step->y = node.outputs[0];
  step->selected = *indices;
  step->columns = builder.Columns(columns);
  step->reads = {step->x, step->columns};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

}  // namespace bitnet::metal
