// An allocator of the runtime whose tensors a call finds as buffers of the device.
#include "metal/provider/provider.h"

namespace bitnet::ep {
namespace {

struct DeviceAllocator : Allocator {
  std::shared_ptr<const Shared> shared;
  const MemoryInfo* info;
};

const DeviceAllocator& Self(const Allocator* allocator) {
  return *static_cast<const DeviceAllocator*>(allocator);
}

void* Allocate(Allocator* allocator, size_t bytes) {
  try {
    return Self(allocator).shared->context->allocations().Allocate(bytes);
  } catch (...) {
    return nullptr;  // the runtime reports it
  }
}

}  // namespace

Allocator* MakeAllocator(std::shared_ptr<const Shared> shared, const MemoryInfo* info) {
  auto made = std::make_unique<DeviceAllocator>();
  made->shared = std::move(shared);
  made->info = info;
  made->version = kApiVersion;
  made->Alloc = Allocate;
  made->Reserve = Allocate;
  made->AllocOnStream = [](Allocator* self, size_t bytes, SyncStream*) { return Allocate(self, bytes); };
  made->Free = [](Allocator* self, void* memory) {
    if (memory != nullptr) {
      Self(self).shared->context->allocations().Free(memory);
    }
  };
  made->Info = [](const Allocator* self) { return Self(self).info; };
  made->GetStats = [](const Allocator* self, KeyValuePairs** pairs) -> Status* {
    Self(self).shared->api.CreateKeyValuePairs(pairs);
    return nullptr;
  };
  return made.release();
}

void ReleaseAllocator(Allocator* allocator) { delete static_cast<DeviceAllocator*>(allocator); }

}  // namespace bitnet::ep
