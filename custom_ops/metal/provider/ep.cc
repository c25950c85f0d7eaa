// One session's provider: which nodes it takes, and what becomes of them.
#include <memory>
#include <utility>
#include <vector>

#include "metal/host/plan.h"
#include "metal/provider/graph_reader.h"
#include "metal/provider/provider.h"

namespace bitnet::ep {
namespace {

// The runtime reads the base, we the rest.
struct Provider : Ep {
  std::shared_ptr<const Shared> shared;
  std::filesystem::path folder;
};

struct Fused : NodeComputeInfo {
  std::shared_ptr<const Shared> shared;
  std::unique_ptr<metal::Plan> plan;
};

const Provider& Self(const Ep* ep) { return *static_cast<const Provider*>(ep); }

void GetCapability(const Provider& self, const Graph& graph, GraphSupportInfo& info) {
  const Shared& shared = *self.shared;
  const Node* parent = nullptr;
  Check(shared.api, shared.api.Graph_GetParentNode(&graph, &parent));
  if (parent != nullptr) {
    return;  // the body of a loop or a branch
  }
  const ReadGraph read = Read(shared.api, graph, self.folder);
  FusionOptions options{};
  options.ort_version_supported = kApiVersion;
  options.drop_constant_initializers = true;
  for (const std::vector<size_t>& part : metal::Claim(read.graph)) {
    std::vector<const Node*> nodes;
    for (const size_t place : part) {
      nodes.push_back(read.nodes[place]);
    }
    Check(shared.api, shared.ep.EpGraphSupportInfo_AddNodesToFuse(&info, nodes.data(), nodes.size(), &options));
  }
}

void Compute(const Fused& fused, KernelContext& context) {
  const Api& api = fused.shared->api;
  fused.plan->Run(
      [&](size_t index) {
        const Value* value = nullptr;
        Check(api, api.KernelContext_GetInput(&context, index, &value));
        if (value == nullptr) {
          throw std::runtime_error("BitNetMetal: input " + std::to_string(index) +
                                   " of the fused node is missing");
        }
        const void* data = nullptr;
        Check(api, api.GetTensorData(value, &data));
        return metal::InputTensor{View(api, value).shape, const_cast<void*>(data)};
      },
      [&](size_t index, const metal::Shape& shape) {
        Value* value = nullptr;
        Check(api, api.KernelContext_GetOutput(&context, index, shape.data(), shape.size(), &value));
        void* data = nullptr;
        Check(api, api.GetTensorMutableData(value, &data));
        return data;
      });
}

std::unique_ptr<Fused> Compile(const Provider& provider, const Graph& graph, const Node& node) {
  const std::shared_ptr<const Shared>& shared = provider.shared;
  ReadGraph read = Read(shared->api, graph, provider.folder);
  auto fused = std::make_unique<Fused>();
  fused->ort_version_supported = kApiVersion;
  fused->CreateState = [](NodeComputeInfo* self, NodeComputeContext*, void** state) -> Status* {
    *state = self;
    return nullptr;
  };
  fused->Compute = [](NodeComputeInfo*, void* state, KernelContext* context) -> Status* {
    const Fused& self = *static_cast<const Fused*>(state);
    return Guard(self.shared->api, [&] { Compute(self, *context); });
  };
  fused->ReleaseState = [](NodeComputeInfo*, void*) {};
  fused->shared = shared;
  fused->plan = std::make_unique<metal::Plan>(shared->context, std::move(read.graph),
                                              InputNames(shared->api, node), OutputNames(shared->api, node));
  return fused;
}

}  // namespace

Ep* MakeEp(std::shared_ptr<const Shared> shared, std::filesystem::path folder) {
  auto provider = std::make_unique<Provider>();
  provider->shared = std::move(shared);
  provider->folder = std::move(folder);
  provider->ort_version_supported = kApiVersion;
  provider->GetName = [](const Ep*) { return kName; };
  provider->GetCapability = [](Ep* ep, const Graph* graph, GraphSupportInfo* info) -> Status* {
    return Guard(Self(ep).shared->api, [&] { GetCapability(Self(ep), *graph, *info); });
  };
  provider->Compile = [](Ep* ep, const Graph** graphs, const Node** nodes, size_t count,
                         NodeComputeInfo** infos, Node**) -> Status* {
    return Guard(Self(ep).shared->api, [&] {
      std::vector<std::unique_ptr<Fused>> made;
      for (size_t i = 0; i < count; ++i) {
        made.push_back(Compile(Self(ep), *graphs[i], *nodes[i]));
      }
      for (size_t i = 0; i < count; ++i) {
        infos[i] = made[i].release();
      }
    });
  };
  provider->ReleaseNodeComputeInfos = [](Ep*, NodeComputeInfo** infos, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      delete static_cast<Fused*>(infos[i]);
    }
  };
  // The layout of images, which is nothing to us.
  provider->GetPreferredDataLayout = [](Ep*, int* layout) -> Status* {
    *layout = 0;
    return nullptr;
  };
  provider->ShouldConvertDataLayoutForOp = [](Ep*, const char*, const char*, int, int* convert) -> Status* {
    *convert = 0;
    return nullptr;
  };
  provider->SetDynamicOptions = [](Ep*, const char* const*, const char* const*, size_t) -> Status* {
    return nullptr;
  };
  provider->OnRunStart = [](Ep*, const RunOptions*) -> Status* { return nullptr; };
  provider->OnRunEnd = [](Ep*, const RunOptions*, bool) -> Status* { return nullptr; };
  provider->GetCompiledModelCompatibilityInfo = [](Ep*, const Graph*) { return ""; };
  provider->GetKernelRegistry = [](Ep*, const KernelRegistry** registry) -> Status* {
    *registry = nullptr;
    return nullptr;
  };
  // A plan has a lock of its own.
  provider->IsConcurrentRunSupported = [](Ep*, bool* supported) -> Status* {
    *supported = true;
    return nullptr;
  };
  return provider.release();
}

void ReleaseEp(Ep* ep) { delete static_cast<Provider*>(ep); }

}  // namespace bitnet::ep
