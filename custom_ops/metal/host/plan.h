// A part of a graph made ready for the device, and its calls.
#ifndef BITNET_METAL_HOST_PLAN_H_
#define BITNET_METAL_HOST_PLAN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "metal/host/build.h"
#include "metal/host/memory.h"

namespace bitnet::metal {

struct InputTensor {
  Shape shape;
  void* data;
};

// What calls did, for tests and for the curious; sums over the process.
struct Counters {
  uint64_t calls, dispatches;
  uint64_t copied_in, copied_out;               // bytes between tensors and the device's memory
  uint64_t constants_mapped, constants_copied;  // bytes of weights
  uint64_t cache_address;                       // of the last call's first cache, as the device sees it
  uint64_t work_bytes;                          // of the last call's intermediate results
};
Counters ReadCounters();

class Plan {
 public:
  // Inputs and outputs by name, in the runtime's order; constants among the inputs are never read.
  // Constants of `graph` are copied or mapped: their memory may go afterwards.
  Plan(std::shared_ptr<Context> context, Graph graph, const std::vector<std::string>& inputs,
       const std::vector<std::string>& outputs);
  ~Plan();

  // Makes the output `index` of a shape, and gives its memory.
  using MakeOutput = std::function<void*(size_t index, const Shape& shape)>;
  using ReadInput = std::function<InputTensor(size_t index)>;
  // One call; throws the user's line, or what the device reported.
  void Run(const ReadInput& input, const MakeOutput& output);

 private:
  void StoreConstants();
  // The tensors of a call: constants where they are, inputs by shape and address.
  void Begin(Call& call, const ReadInput& input) const;
  // Places what steps compute for each other in one buffer.
  void PlaceWork(Call& call);
  // Runs the steps as one batch.
  void Submit(Call& call) const;

  std::shared_ptr<Context> context_;
  Builder builder_;
  std::vector<int> inputs_, outputs_;  // values; none for what the steps do not know
  std::vector<bool> device_reads_;     // by value
  std::vector<gpu::Binding> constants_;
  std::vector<std::shared_ptr<MappedFile>> files_;
  std::unique_ptr<gpu::Buffer> small_constants_;
  std::mutex mutex_;  // of what follows: one call at a time
  Growing work_, staging_;
};

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_PLAN_H_
