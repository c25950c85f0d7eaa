// Where the tensors of one call are: in memory that the device sees as it is, or copied into a buffer of the
// plan.
#ifndef BITNET_METAL_HOST_PLACEMENT_H_
#define BITNET_METAL_HOST_PLACEMENT_H_

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "metal/host/call.h"
#include "metal/host/memory.h"

namespace bitnet::metal {

constexpr size_t kAlignment = 256;  // of what lies side by side in one buffer
inline size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
inline char* AddressOf(const gpu::Binding& binding) {
  return static_cast<char*>(binding.buffer->contents()) + binding.offset;
}

// Inputs first, then outputs, then contents; what steps compute for each other is placed by the plan.
class Placement {
 public:
  Placement(Context& context, Call& call) : context_(context), call_(call) {}

  void Input(int value);
  // `memory` is the runtime's. That of an input makes both one tensor: a cache that is read and written in
  // place.
  void Output(int value, void* memory);
  // What the host writes before the batch.
  void Contents();

  size_t staging_bytes() const { return staging_bytes_; }
  // Copies what is not where the device sees it; gives the bytes.
  size_t CopyIn(gpu::Buffer& staging);
  // The same for results, behind the batch.
  size_t CopyOut() const;

 private:
  bool FindDirectly(Tensor& tensor);
  void Stage(int value);

  Context& context_;
  Call& call_;
  std::vector<std::unique_ptr<gpu::Buffer>> wrapped_;
  std::unordered_map<const void*, int> at_address_;
  std::vector<int> staged_, empty_, copied_out_;
  std::vector<std::pair<int, int>> in_place_;  // an output, and the input that it is
  size_t staging_bytes_ = kAlignment;          // the first bytes are for tensors without any
};

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_PLACEMENT_H_
