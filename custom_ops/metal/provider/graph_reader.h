// The runtime's graph, read into the planner's.
#ifndef BITNET_METAL_PROVIDER_GRAPH_READER_H_
#define BITNET_METAL_PROVIDER_GRAPH_READER_H_

#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "metal/host/graph.h"
#include "metal/provider/ep_abi.h"

namespace bitnet::ep {

// Throws when a call of the runtime failed.
void Check(const Api& api, Status* status);

// Runs `body`; what it throws becomes a status, because no exception crosses the C boundary. Not with the code
// of a failed provider: Python's sessions would start again without it, and print that.
template <typename F>
Status* Guard(const Api& api, F body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "BitNetMetal: unknown error");
  }
}

struct ReadGraph {
  metal::Graph graph;
  std::vector<const Node*> nodes;  // of the runtime, in the order of `graph.nodes`
};

// Constants point into the runtime's memory, valid as long as `source` is, or to a file of `folder`: where the
// model keeps its weights, or empty for the folder of the model's own file.
ReadGraph Read(const Api& api, const Graph& source, const std::filesystem::path& folder);

// Names of the inputs and outputs of a fused node, in order; an empty name is an input that is not there.
std::vector<std::string> InputNames(const Api& api, const Node& node);
std::vector<std::string> OutputNames(const Api& api, const Node& node);

metal::Type TypeOf(ElementType type);

struct TensorView {
  ElementType type;
  metal::Shape shape;
};
TensorView View(const Api& api, const Value* value);

}  // namespace bitnet::ep

#endif  // BITNET_METAL_PROVIDER_GRAPH_READER_H_
