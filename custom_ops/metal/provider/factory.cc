// What the library exports: the factory for the runtime, and memory and counters for Python.
#include <memory>
#include <string>

#include "metal/host/plan.h"
#include "metal/provider/graph_reader.h"
#include "metal/provider/provider.h"

#if defined(_WIN32)
#define BITNET_EXPORT extern "C" __declspec(dllexport)
#else
#define BITNET_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bitnet::ep {
namespace {

constexpr uint32_t kAppleVendor = 0x106B;
constexpr size_t kPage = 16384;

struct ProviderFactory : Factory {
  std::shared_ptr<const Shared> shared;
  std::string name;
  MemoryInfo* memory = nullptr;  // of what the allocator gives: the host and the device both see it

  ~ProviderFactory() {
    if (memory != nullptr) {
      shared->api.ReleaseMemoryInfo(memory);
    }
  }
};

const ProviderFactory& Self(const Factory* factory) { return *static_cast<const ProviderFactory*>(factory); }

// The GPU where the runtime knows of one, else the processor: an emulated device, or a runtime that finds no
// GPU.
Status* GetSupportedDevices(Factory* factory, const HardwareDevice* const* devices, size_t count,
                            EpDevice** found, size_t most, size_t* found_count) {
  const ProviderFactory& self = Self(factory);
  const Shared& shared = *self.shared;
  *found_count = 0;
  return Guard(shared.api, [&] {
    const bool on_gpu = shared.context->device().kind() == gpu::Kind::metal;
    const HardwareDevice* chosen = nullptr;
    for (size_t i = 0; i < count; ++i) {
      const HardwareType type = shared.api.HardwareDevice_Type(devices[i]);
      if ((type == kGpu && on_gpu) || (type == kCpu && chosen == nullptr)) {
        chosen = devices[i];
      }
      if (type == kGpu && on_gpu) {
        break;
      }
    }
    if (chosen == nullptr || most == 0) {
      return;
    }
    KeyValuePairs* metadata = nullptr;
    shared.api.CreateKeyValuePairs(&metadata);
    shared.api.AddKeyValuePair(metadata, "device", shared.context->device().name().c_str());
    Status* status = shared.ep.CreateEpDevice(factory, chosen, metadata, nullptr, found);
    shared.api.ReleaseKeyValuePairs(metadata);
    Check(shared.api, status);
    Check(shared.api, shared.ep.EpDevice_AddAllocatorInfo(*found, self.memory));
    *found_count = 1;
  });
}

// The folder of the weights of a model that is given as bytes.
std::filesystem::path WeightsFolder(const Api& api, const SessionOptions& options) {
  constexpr const char* kKey = "session.model_external_initializers_file_folder_path";
  int has = 0;
  Check(api, api.HasSessionConfigEntry(&options, kKey, &has));
  if (has == 0) {
    return {};
  }
  size_t size = 0;
  Check(api, api.GetSessionConfigEntry(&options, kKey, nullptr, &size));
  std::string text(size, '\0');
  Check(api, api.GetSessionConfigEntry(&options, kKey, text.data(), &size));
  return std::filesystem::u8path(text.c_str());
}

std::unique_ptr<ProviderFactory> MakeFactory(const Api& api, const char* name) {
  auto factory = std::make_unique<ProviderFactory>();
  factory->shared = std::make_shared<const Shared>(Shared{api, *api.GetEpApi(), OpenDevice()});
  factory->name = kName;
  (void)name;  // the name of the registration, which only the runtime uses
  Check(api, api.CreateMemoryInfo_V2(kName, kGpuMemory, kAppleVendor, 0, kHostAccessible, kPage,
                                     kDeviceAllocator, &factory->memory));
  factory->ort_version_supported = kApiVersion;
  factory->GetName = [](const Factory*) { return kName; };
  factory->GetVendor = [](const Factory*) { return kVendor; };
  factory->GetVendorId = [](const Factory*) { return kAppleVendor; };
  factory->GetVersion = [](const Factory*) { return BITNET_OPS_VERSION; };
  factory->GetSupportedDevices = GetSupportedDevices;
  factory->CreateEp = [](Factory* self, const HardwareDevice* const*, const KeyValuePairs* const*, size_t count,
                         const SessionOptions* options, const Logger*, Ep** ep) -> Status* {
    const Shared& shared = *Self(self).shared;
    return Guard(shared.api, [&] {
      if (count != 1) {
        throw std::runtime_error("BitNetMetal: a session runs on one device, not on " + std::to_string(count));
      }
      *ep = MakeEp(Self(self).shared, WeightsFolder(shared.api, *options));
    });
  };
  factory->ReleaseEp = [](Factory*, Ep* ep) { ReleaseEp(ep); };
  factory->ValidateCompiledModelCompatibilityInfo = [](Factory*, const HardwareDevice* const*, size_t,
                                                       const char*, int* compatibility) -> Status* {
    *compatibility = 0;  // not applicable: nothing is compiled ahead
    return nullptr;
  };
  factory->CreateAllocator = [](Factory* self, const MemoryInfo* info, const KeyValuePairs*,
                                Allocator** allocator) -> Status* {
    return Guard(Self(self).shared->api, [&] {
      *allocator = info == nullptr ? nullptr : MakeAllocator(Self(self).shared, Self(self).memory);
    });
  };
  factory->ReleaseAllocator = [](Factory*, Allocator* allocator) { ReleaseAllocator(allocator); };
  // Nothing is to be transferred: the runtime reads and writes this memory itself.
  factory->CreateDataTransfer = [](Factory*, DataTransfer** transfer) -> Status* {
    *transfer = nullptr;
    return nullptr;
  };
  factory->IsStreamAware = [](const Factory*) { return false; };
  factory->CreateSyncStreamForDevice = [](Factory* self, const MemoryDevice*, const KeyValuePairs*,
                                          SyncStreamImpl**) -> Status* {
    return Self(self).shared->api.CreateStatus(kFail, "BitNetMetal has no streams");
  };
  factory->GetHardwareDeviceIncompatibilityDetails = [](Factory*, const HardwareDevice*,
                                                        IncompatibilityDetails*) -> Status* { return nullptr; };
  factory->CreateExternalResourceImporterForDevice = [](Factory*, const EpDevice*,
                                                        ResourceImporter** importer) -> Status* {
    *importer = nullptr;
    return nullptr;
  };
  // The operators are those of the operator library, or function bodies.
  factory->GetNumCustomOpDomains = [](Factory*, size_t* count) -> Status* {
    *count = 0;
    return nullptr;
  };
  factory->GetCustomOpDomains = [](Factory*, CustomOpDomain**, size_t) -> Status* { return nullptr; };
  return factory;
}

}  // namespace

const std::shared_ptr<metal::Context>& OpenDevice() {
  // Never destroyed: allocations may outlive what the end of the process destroys first.
#if defined(BITNET_METAL_EMULATION)
  static const auto& context = *new std::shared_ptr<metal::Context>(new metal::Context(gpu::open_emulation()));
#else
  static const auto& context = *new std::shared_ptr<metal::Context>(new metal::Context(gpu::open_metal()));
#endif
  return context;
}

}  // namespace bitnet::ep

namespace ep = bitnet::ep;

BITNET_EXPORT ep::Status* CreateEpFactories(const char* name, const ep::ApiBase* base, const ep::Logger*,
                                            ep::Factory** factories, size_t most, size_t* count) {
  *count = 0;
  const ep::Api* api = base->GetApi(ep::kApiVersion);
  if (api == nullptr) {
    // The first entries are the same in every version.
    const std::string text = std::string("BitNetMetal needs ONNX Runtime 1.") +
                             std::to_string(ep::kApiVersion) + " or later, and this is " +
                             base->GetVersionString() + ": upgrade onnxruntime";
    return base->GetApi(1)->CreateStatus(ep::kFail, text.c_str());
  }
  return ep::Guard(*api, [&] {
    if (most < 1) {
      throw std::runtime_error("BitNetMetal: the runtime has no room for a factory");
    }
    factories[0] = ep::MakeFactory(*api, name).release();
    *count = 1;
  });
}

BITNET_EXPORT ep::Status* ReleaseEpFactory(ep::Factory* factory) {
  delete static_cast<ep::ProviderFactory*>(factory);
  return nullptr;
}

BITNET_EXPORT const char* BitnetMetalVersion() { return BITNET_OPS_VERSION; }

// Memory for tensors that the device sees; null where there is none to be had.
BITNET_EXPORT void* BitnetMetalAllocate(size_t bytes) {
  try {
    return ep::OpenDevice()->allocations().Allocate(bytes);
  } catch (...) {
    return nullptr;
  }
}

BITNET_EXPORT void BitnetMetalFree(void* memory) {
  try {
    ep::OpenDevice()->allocations().Free(memory);
  } catch (...) {
    // Where no device opens, nothing was allocated.
  }
}

// host/plan.h has the names of the eight numbers.
BITNET_EXPORT void BitnetMetalCounters(uint64_t* numbers) {
  const bitnet::metal::Counters c = bitnet::metal::ReadCounters();
  const uint64_t list[] = {c.calls,         c.dispatches,       c.copied_in,
                           c.copied_out,    c.constants_mapped, c.constants_copied,
                           c.cache_address, c.work_bytes};
  for (size_t i = 0; i < sizeof list / sizeof *list; ++i) {
    numbers[i] = list[i];
  }
}
