// The plugin execution provider BitNetMetal.
#ifndef BITNET_METAL_PROVIDER_PROVIDER_H_
#define BITNET_METAL_PROVIDER_PROVIDER_H_

#include <filesystem>
#include <memory>

#include "metal/host/memory.h"
#include "metal/provider/ep_abi.h"

namespace bitnet::ep {

constexpr const char* kName = "BitNetMetal";
constexpr const char* kVendor = "bitnet-onnx";

// What all sessions of the process share: the runtime's tables, and the device.
struct Shared {
  const Api& api;
  const EpApi& ep;
  std::shared_ptr<metal::Context> context;
};

// The device of this build, opened once in the process and never closed; throws where there is none.
const std::shared_ptr<metal::Context>& OpenDevice();

// `folder`: where the session keeps weights, where it says so.
Ep* MakeEp(std::shared_ptr<const Shared> shared, std::filesystem::path folder);
void ReleaseEp(Ep* ep);

// Memory of the device for tensors of the runtime.
Allocator* MakeAllocator(std::shared_ptr<const Shared> shared, const MemoryInfo* info);
void ReleaseAllocator(Allocator* allocator);

}  // namespace bitnet::ep

#endif  // BITNET_METAL_PROVIDER_PROVIDER_H_
