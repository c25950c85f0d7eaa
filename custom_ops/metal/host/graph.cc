#include "metal/host/graph.h"

#include <stdexcept>

namespace bitnet::metal {

size_t SizeOf(Type type) {
  switch (type) {
    case Type::kFloat:
    case Type::kInt32:
      return 4;
    case Type::kInt64:
      return 8;
    case Type::kInt8:
    case Type::kUint8:
      return 1;
    case Type::kOther:
      break;
  }
  throw std::runtime_error("a tensor of a type that the provider does not know");
}

int64_t Node::Int(const char* field, int64_t otherwise) const {
  const auto found = ints.find(field);
  return found == ints.end() ? otherwise : found->second;
}

float Node::Float(const char* field, float otherwise) const {
  const auto found = floats.find(field);
  return found == floats.end() ? otherwise : found->second;
}

int64_t Product(const Shape& shape, size_t count) {
  constexpr int64_t kLimit = int64_t{1} << 62;
  int64_t product = 1;
  bool empty = false;
  for (size_t i = 0; i < count; ++i) {
    if (shape[i] < 0) {
      throw std::runtime_error("the shape " + ToString(shape) + " is not known");
    }
    empty = empty || shape[i] == 0;
    if (shape[i] != 0 && product > kLimit / shape[i]) {
      throw std::runtime_error("a tensor of shape " + ToString(shape) + " is too large");
    }
    product *= shape[i] == 0 ? 1 : shape[i];
  }
  return empty ? 0 : product;
}

std::string ToString(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace bitnet::metal
