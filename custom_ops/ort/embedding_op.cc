// bitnet::BitEmbedding as an operator of ONNX Runtime.
#include <algorithm>
#include <cstring>
#include <memory>

#include "ort/node.h"

namespace bitnet::ort {
namespace {

enum Input : size_t { kIds, kW, kScale, kInputCount };

constexpr int64_t kRowsPerItem = 8;

struct Kernel {
  const Api& api;
  Linear linear;
  std::string label;
};

std::unique_ptr<Kernel> Create(const Api& api, const KernelInfo& info) {
  const Node node(api, info, "BitEmbedding");
  const Linear linear = node.ReadMatrix(kW, node.ReadMatrixAttributes());
  return std::unique_ptr<Kernel>(new Kernel{api, linear, node.label()});
}

struct Call {
  const Linear* linear;
  const int64_t* ids;
  int64_t count;
  float* y;
};

void GatherItem(void* arg, size_t item) {
  const Call& call = *static_cast<const Call*>(arg);
  const int64_t first = static_cast<int64_t>(item) * kRowsPerItem;
  const int64_t count = std::min(kRowsPerItem, call.count - first);
  GatherRows(*call.linear, call.ids + first, count, call.y + first * call.linear->attributes.in_features);
}

void Compute(const Kernel& kernel, KernelContext& context) {
  const Api& api = kernel.api;
  const Attributes& a = kernel.linear.attributes;
  const Value* value = nullptr;
  Check(api, api.KernelContext_GetInput(&context, kIds, &value));
  TensorView view = View(api, value);
  const int64_t count = Product(view.shape, view.shape.size());
  view.shape.push_back(a.in_features);
  Product(view.shape, view.shape.size());
  // Copied, because the ids are checked before they become addresses and the caller owns their memory.
  std::vector<int64_t> ids(static_cast<size_t>(count));
  if (count != 0) {
    std::memcpy(ids.data(), view.data, ids.size() * sizeof(int64_t));
  }
  for (const int64_t id : ids) {
    if (id < 0 || id >= a.out_features) {
      throw std::runtime_error(kernel.label + ": ids holds " + std::to_string(id) + "; it must be from 0 to " +
                               std::to_string(a.out_features - 1));
    }
  }
  Value* y = nullptr;
  Check(api, api.KernelContext_GetOutput(&context, 0, view.shape.data(), view.shape.size(), &y));
  if (count == 0) {
    return;
  }
  void* out = nullptr;
  Check(api, api.GetTensorMutableData(y, &out));
  Call call{&kernel.linear, ids.data(), count, static_cast<float*>(out)};
  if (count <= kRowsPerItem) {
    GatherItem(&call, 0);
    return;
  }
  PoolExecutor pool(api, context);
  const Executor executor = pool.executor();
  const auto items = static_cast<size_t>((count - 1) / kRowsPerItem + 1);
  if (!executor.parallel_for(executor.self, items, GatherItem, &call)) {
    Check(api, pool.status());
  }
}

CustomOp MakeOp() {
  CustomOp op = OpWithKernel<Kernel, Create, Compute>();
  op.GetName = [](const CustomOp*) { return "BitEmbedding"; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputCount; };
  op.GetInputType = [](const CustomOp*, size_t i) { return i == kIds ? kInt64 : i == kW ? kUint8 : kFloat; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  return op;
}

}  // namespace

const CustomOp kBitEmbeddingOp = MakeOp();

}  // namespace bitnet::ort
