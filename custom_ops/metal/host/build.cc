#include "metal/host/build.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

namespace bitnet::metal {
namespace {

struct Entry {
  const char *domain, *op;
  Maker make;
  bool heavy;  // worth going to the device for
};

constexpr Entry kOperators[] = {
    {"bitnet", "BitLinear", MakeBitLinear, true},
    {"bitnet", "BitEmbedding", MakeBitEmbedding, false},
    {"bitnet", "GroupQueryAttention", MakeAttention, true},
    {"bitnet", "GatedActivation", MakeGated, false},
    {"", "Add", MakeBinary, false},
    {"", "Mul", MakeBinary, false},
    {"", "Sub", MakeBinary, false},
    {"", "Relu", MakeUnary, false},
    {"", "Sigmoid", MakeUnary, false},
    {"", "Tanh", MakeUnary, false},
    {"", "Gelu", MakeUnary, false},
    {"", "LayerNormalization", MakeNorm, false},
    {"", "SimplifiedLayerNormalization", MakeNorm, false},
    {"", "RMSNormalization", MakeNorm, false},
    {"", "Reshape", MakeReshape, false},
    {"", "Split", MakeSplit, false},
    {"", "Slice", MakeSlice, false},
    {"", "Pad", MakePad, false},
    {"", "Gather", MakeGather, false},
};

const Entry* Find(const Node& node) {
  // A later version of an operator is left to the function body, or to a library that knows it.
  const auto version = node.ints.find("operator_version");
  if (version != node.ints.end() && version->second != 1) {
    return nullptr;
  }
  const std::string domain = node.domain == "ai.onnx" ? "" : node.domain;
  for (const Entry& entry : kOperators) {
    if (node.op == entry.op && domain == entry.domain) {
      return &entry;
    }
  }
  return nullptr;
}

// The only node that makes `value` for the only one that reads it.
std::optional<size_t> OnlyProducer(const Graph& graph, const Value* value, const char* op) {
  if (value == nullptr || value->producer == kNone || value->is_graph_output || value->consumers.size() != 1) {
    return std::nullopt;
  }
  const auto place = static_cast<size_t>(value->producer);
  const Node& node = graph.nodes[place];
  if (node.op != op || !(node.domain.empty() || node.domain == "ai.onnx")) {
    return std::nullopt;
  }
  return place;
}

}  // namespace

int Builder::Workspace() {
  Value value;
  value.name = "a workspace";
  value.type = Type::kUint8;
  graph.values.push_back(std::move(value));
  return static_cast<int>(graph.values.size()) - 1;
}

int Builder::Columns(const std::vector<int32_t>& columns) {
  columns_.push_back(std::make_unique<std::vector<int32_t>>(columns));
  const int place = Workspace();
  Value& value = graph.values[static_cast<size_t>(place)];
  value.type = Type::kInt32;
  value.shape = {static_cast<int64_t>(columns.size())};
  value.is_constant = true;
  value.constant.data = columns_.back()->data();
  value.constant.bytes = columns.size() * sizeof(int32_t);
  return place;
}

std::optional<std::vector<int64_t>> Builder::Ints(const Value* value) const {
  if (value == nullptr || !value->is_constant || value->type != Type::kInt64 ||
      value->constant.data == nullptr) {
    return std::nullopt;
  }
  std::vector<int64_t> list(value->constant.bytes / sizeof(int64_t));
  if (!list.empty()) {
    std::memcpy(list.data(), value->constant.data, list.size() * sizeof(int64_t));
  }
  return list;
}

std::optional<float> Builder::Scalar(const Value* value) const {
  if (value == nullptr || !value->is_constant || value->type != Type::kFloat ||
      value->constant.data == nullptr || value->constant.bytes != sizeof(float)) {
    return std::nullopt;
  }
  float scalar = 0.0f;
  std::memcpy(&scalar, value->constant.data, sizeof scalar);
  return scalar;
}

bool Builder::IsFloat(const Node& node, size_t index) const {
  const Value* value = Input(node, index);
  return value != nullptr && value->type == Type::kFloat;
}

bool Builder::IsConstant(const Node& node, size_t index, Type type, const std::vector<Shape>& shapes) const {
  const Value* value = Input(node, index);
  return value != nullptr && value->is_constant && value->type == type &&
         std::find(shapes.begin(), shapes.end(), value->shape) != shapes.end() &&
         value->constant.bytes == static_cast<size_t>(Product(value->shape)) * SizeOf(type);
}

std::optional<PlainNorm> FindPlainNorm(const Builder& builder, size_t last) {
  const Graph& graph = builder.graph;
  const Node& scaled = graph.nodes[last];
  if (scaled.op != "Mul" || !scaled.domain.empty() || scaled.inputs.size() != 2) {
    return std::nullopt;
  }
  const Value* weight = builder.Input(scaled, 1);
  const auto divided = OnlyProducer(graph, builder.Input(scaled, 0), "Div");
  if (!divided || weight == nullptr || !weight->is_constant || weight->type != Type::kFloat ||
      weight->shape.size() != 1) {
    return std::nullopt;
  }
  const Node& div = graph.nodes[*divided];
  const auto root = OnlyProducer(graph, builder.Input(div, 1), "Sqrt");
  const auto shifted = root ? OnlyProducer(graph, builder.Input(graph.nodes[*root], 0), "Add") : std::nullopt;
  const auto mean =
      shifted ? OnlyProducer(graph, builder.Input(graph.nodes[*shifted], 0), "ReduceMean") : std::nullopt;
  const auto square = mean ? OnlyProducer(graph, builder.Input(graph.nodes[*mean], 0), "Pow") : std::nullopt;
  if (!square || !builder.IsFloat(div, 0)) {
    return std::nullopt;
  }
  const auto epsilon = builder.Scalar(builder.Input(graph.nodes[*shifted], 1));
  const auto exponent = builder.Scalar(builder.Input(graph.nodes[*square], 1));
  const auto axes = builder.Ints(builder.Input(graph.nodes[*mean], 1));
  const bool over_last =
      axes && axes->size() == 1 && axes->front() == -1 && graph.nodes[*mean].Int("keepdims", 1) == 1;
  if (!epsilon || exponent != 2.0f || !over_last || graph.nodes[*square].inputs[0] != div.inputs[0]) {
    return std::nullopt;
  }
  return PlainNorm{
      {*square, *mean, *shifted, *root, *divided, last}, div.inputs[0], scaled.inputs[1], *epsilon};
}

bool Make(Builder& builder, size_t place) {
  // A copy: makers add values, and with them move those that are there.
  const Node node = builder.graph.nodes[place];
  if (const auto norm = FindPlainNorm(builder, place)) {
    MakePlainNorm(builder, node, *norm);
    return true;
  }
  const Entry* entry = Find(node);
  return entry != nullptr && !node.outputs.empty() && node.outputs[0] != kNone && entry->make(builder, node);
}

std::vector<bool> Supported(Builder& builder) {
  std::vector<bool> supported(builder.graph.nodes.size());
  for (size_t place = 0; place < supported.size(); ++place) {
    supported[place] = Make(builder, place);
    if (const auto norm = FindPlainNorm(builder, place)) {
      for (const size_t part : norm->nodes) {
        supported[part] = true;
      }
    }
  }
  return supported;
}

std::vector<std::vector<size_t>> Claim(const Graph& graph) {
  Builder builder(graph);
  const std::vector<bool> supported = Supported(builder);
  // The stage of a node is the number of times that data on its way there has left the device and come back:
  // nodes of one stage can be one node, because no way from one of them to another leads through anything else.
  std::vector<size_t> stages(graph.nodes.size(), 0);
  size_t last = 0;
  for (size_t place = 0; place < graph.nodes.size(); ++place) {
    size_t stage = supported[place] ? 1 : 0;
    for (const int input : graph.nodes[place].inputs) {
      const int producer = input == kNone ? kNone : graph.values[static_cast<size_t>(input)].producer;
      if (producer != kNone) {
        const auto before = static_cast<size_t>(producer);
        stage = std::max(stage, stages[before] + (supported[place] && !supported[before] ? 1 : 0));
      }
    }
    stages[place] = stage;
    last = std::max(last, stage);
  }
  std::vector<std::vector<size_t>> parts(last + 1);
  std::vector<bool> heavy(last + 1, false);
  for (size_t place = 0; place < graph.nodes.size(); ++place) {
    if (supported[place]) {
      const Entry* entry = Find(graph.nodes[place]);
      parts[stages[place]].push_back(place);
      heavy[stages[place]] = heavy[stages[place]] || (entry != nullptr && entry->heavy);
    }
  }
  std::vector<std::vector<size_t>> claimed;
  for (size_t stage = 0; stage <= last; ++stage) {
    if (heavy[stage]) {
      claimed.push_back(std::move(parts[stage]));
    }
  }
  return claimed;
}

}  // namespace bitnet::metal
