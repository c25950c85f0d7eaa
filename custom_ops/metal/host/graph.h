// A graph as the planner sees it: plain values and nodes, without the runtime.
#ifndef BITNET_METAL_HOST_GRAPH_H_
#define BITNET_METAL_HOST_GRAPH_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace bitnet::metal {

enum class Type { kFloat, kInt8, kUint8, kInt32, kInt64, kOther };

size_t SizeOf(Type type);

using Shape = std::vector<int64_t>;  // -1: not known before the call

constexpr int kNone = -1;  // an input that is not there, a value that no node makes

// Where the bytes of a constant are: in memory, or in a file.
struct Constant {
  const void* data = nullptr;
  size_t bytes = 0;
  std::string path;  // empty: at `data`
  int64_t offset = 0;
};

struct Value {
  std::string name;
  Type type = Type::kOther;
  Shape shape;
  bool is_constant = false;
  bool is_graph_output = false;
  Constant constant;
  int producer = kNone;
  std::vector<int> consumers;
};

struct Node {
  std::string name, op, domain;
  std::vector<int> inputs, outputs;  // places in Graph::values
  std::map<std::string, int64_t> ints;
  std::map<std::string, float> floats;
  std::map<std::string, std::string> strings;
  std::map<std::string, std::vector<int64_t>> lists;

  int64_t Int(const char* field, int64_t otherwise) const;
  float Float(const char* field, float otherwise) const;
  bool Has(size_t input) const { return input < inputs.size() && inputs[input] != kNone; }
};

struct Graph {
  std::vector<Value> values;
  std::vector<Node> nodes;  // each behind those that it reads

  const Value* Input(const Node& node, size_t index) const {
    return node.Has(index) ? &values[static_cast<size_t>(node.inputs[index])] : nullptr;
  }
};

// Dimensions multiplied; throws where the product leaves 62 bits.
int64_t Product(const Shape& shape, size_t count);
inline int64_t Product(const Shape& shape) { return Product(shape, shape.size()); }

std::string ToString(const Shape& shape);

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_GRAPH_H_
