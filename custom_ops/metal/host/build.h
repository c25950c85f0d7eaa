// From nodes to steps.
#ifndef BITNET_METAL_HOST_BUILD_H_
#define BITNET_METAL_HOST_BUILD_H_

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "metal/host/call.h"
#include "metal/host/graph.h"

namespace bitnet::metal {

// Codes of one input, which all layers that read it share.
struct Codes {
  int codes, factor, sums;
};

class Builder {
 public:
  explicit Builder(Graph source) : graph(std::move(source)) {}

  int Workspace();                                   // a value of its own, sized in each call
  int Columns(const std::vector<int32_t>& columns);  // a constant of its own
  // A constant of integers; nothing where `value` is none, or is not one.
  std::optional<std::vector<int64_t>> Ints(const Value* value) const;
  std::optional<float> Scalar(const Value* value) const;  // a constant of one float

  template <typename S>
  S& Add(std::unique_ptr<S> step, const Node& node) {
    step->label = node.op + " '" + node.name + "'";
    S& added = *step;
    steps.push_back(std::move(step));
    return added;
  }

  const Value* Input(const Node& node, size_t index) const { return graph.Input(node, index); }
  bool IsFloat(const Node& node, size_t index) const;
  bool IsConstant(const Node& node, size_t index, Type type, const std::vector<Shape>& shapes) const;

  Graph graph;
  std::vector<std::unique_ptr<Step>> steps;
  using CodesKey = std::tuple<int, int, float, int64_t>;  // x, norm_weight, epsilon, group_size
  std::map<CodesKey, Codes> codes;

 private:
  std::vector<std::unique_ptr<std::vector<int32_t>>> columns_;
};

// RMSNorm in plain operators, as converters write it.
struct PlainNorm {
  std::array<size_t, 6> nodes;
  int x, weight;
  float epsilon;
};
std::optional<PlainNorm> FindPlainNorm(const Builder& builder, size_t last);

// Adds the steps of one operator; false where the shaders lack this variant, or it is not what the contract
// says: then the node stays on the CPU, which runs or refuses it.
using Maker = bool (*)(Builder&, const Node&);
bool MakeBitLinear(Builder& builder, const Node& node);
bool MakeBitEmbedding(Builder& builder, const Node& node);
bool MakeAttention(Builder& builder, const Node& node);
bool MakeGated(Builder& builder, const Node& node);
bool MakeUnary(Builder& builder, const Node& node);
bool MakeBinary(Builder& builder, const Node& node);
bool MakeNorm(Builder& builder, const Node& node);
void MakePlainNorm(Builder& builder, const Node& last, const PlainNorm& norm);
bool MakeReshape(Builder& builder, const Node& node);
bool MakeSplit(Builder& builder, const Node& node);
bool MakeSlice(Builder& builder, const Node& node);
bool MakePad(Builder& builder, const Node& node);
bool MakeGather(Builder& builder, const Node& node);

// The steps of a node, or of the plain norm that ends there; false where there are none.
bool Make(Builder& builder, size_t node);

// Which nodes a device can run.
std::vector<bool> Supported(Builder& builder);
// Parts of the graph that can each be one node: the fewest, each as large as can be. Parts without any heavy
// operator are left out: they would only add ways between the processors.
std::vector<std::vector<size_t>> Claim(const Graph& graph);

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_BUILD_H_
