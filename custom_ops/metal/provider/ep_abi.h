// The part of ONNX Runtime's C interface that the provider calls and implements, declared by position.
//
// As ort/ort_abi.h, which is for the operator library: entries are only ever appended to the tables, so a
// position never changes its meaning. Only entries up to API version 24 are used. tests/metal/ep_abi_offsets.cc
// compares every position and value with the official headers wherever those are installed.
#ifndef BITNET_METAL_PROVIDER_EP_ABI_H_
#define BITNET_METAL_PROVIDER_EP_ABI_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define BITNET_EP_CALL __stdcall
#else
#define BITNET_EP_CALL
#endif

namespace bitnet::ep {

constexpr uint32_t kApiVersion = 24;

// Opaque types of the runtime.
struct CustomOpDomain;
struct EpDevice;
struct ExternalInitializerInfo;
struct Graph;
struct GraphSupportInfo;
struct HardwareDevice;
struct IncompatibilityDetails;
struct KernelContext;
struct KeyValuePairs;
struct Logger;
struct MemoryDevice;
struct MemoryInfo;
struct Node;
struct NodeComputeContext;
struct OpAttr;
struct ResourceImporter;
struct RunOptions;
struct SessionOptions;
struct Status;
struct SyncStream;
struct TensorTypeAndShapeInfo;
struct TypeInfo;
struct Value;
struct ValueInfo;

#if defined(_WIN32)
using PathChar = wchar_t;
#else
using PathChar = char;
#endif

// C enumerations travel as int.
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
};
enum AttributeType : int { kAttributeInt = 1, kAttributeInts = 2, kAttributeFloat = 3, kAttributeString = 5 };
enum HardwareType : int { kCpu = 0, kGpu = 1 };
enum MemoryDeviceType : int { kCpuMemory = 0, kGpuMemory = 1 };
enum DeviceMemoryType : int { kHostAccessible = 5 };
enum AllocatorType : int { kDeviceAllocator = 0 };

using Slot = void (*)();  // an entry that is not called

template <typename... Args>
using Call = Status*(BITNET_EP_CALL*)(Args...);
template <typename T>
using Release = void(BITNET_EP_CALL*)(T*);

struct EpApi;
struct Factory;
struct FusionOptions;

// Numbers in names are positions in the table.
struct Api {
  Status*(BITNET_EP_CALL* CreateStatus)(ErrorCode, const char*);
  Slot reserved_1;
  const char*(BITNET_EP_CALL* GetErrorMessage)(const Status*);
  Slot reserved_3_50[48];
  Call<Value*, void**> GetTensorMutableData;
  Slot reserved_52_54[3];
  Call<const TypeInfo*, const TensorTypeAndShapeInfo**> CastTypeInfoToTensorInfo;
  Slot reserved_56_59[4];
  Call<const TensorTypeAndShapeInfo*, ElementType*> GetTensorElementType;
  Call<const TensorTypeAndShapeInfo*, size_t*> GetDimensionsCount;
  Call<const TensorTypeAndShapeInfo*, int64_t*, size_t> GetDimensions;
  Slot reserved_63_64[2];
  Call<const Value*, TensorTypeAndShapeInfo**> GetTensorTypeAndShape;
  Slot reserved_66_89[24];
  Call<const KernelContext*, size_t, const Value**> KernelContext_GetInput;
  Call<KernelContext*, size_t, const int64_t*, size_t, Value**> KernelContext_GetOutput;
  Slot reserved_92;
  Release<Status> ReleaseStatus;
  Release<MemoryInfo> ReleaseMemoryInfo;
  Slot reserved_95;
  Release<Value> ReleaseValue;
  Slot reserved_97_98[2];
  Release<TensorTypeAndShapeInfo> ReleaseTensorTypeAndShapeInfo;
  Slot reserved_100_236[137];
  Call<const SessionOptions*, const char*, int*> HasSessionConfigEntry;
  Call<const SessionOptions*, const char*, char*, size_t*> GetSessionConfigEntry;
  Slot reserved_239_271[33];
  Call<const OpAttr*, AttributeType, void*, size_t, size_t*> ReadOpAttr;
  Slot reserved_273_288[16];
  Call<const ValueInfo*, const char**> GetValueInfoName;
  Call<const ValueInfo*, const TypeInfo**> GetValueInfoTypeInfo;
  Slot reserved_291_294[4];
  void(BITNET_EP_CALL* CreateKeyValuePairs)(KeyValuePairs**);
  void(BITNET_EP_CALL* AddKeyValuePair)(KeyValuePairs*, const char*, const char*);
  Slot reserved_297_299[3];
  Release<KeyValuePairs> ReleaseKeyValuePairs;
  Slot reserved_301_306[6];
  HardwareType(BITNET_EP_CALL* HardwareDevice_Type)(const HardwareDevice*);
  Slot reserved_308_316[9];
  const EpApi*(BITNET_EP_CALL* GetEpApi)();
  Call<const Value*, size_t*> GetTensorSizeInBytes;
  Slot reserved_319;
  Call<const char*, MemoryDeviceType, uint32_t, int32_t, DeviceMemoryType, size_t, AllocatorType, MemoryInfo**>
      CreateMemoryInfo_V2;
  Slot reserved_321_325[5];
  Call<const ValueInfo*, const Value**> ValueInfo_GetInitializerValue;
  Call<const ValueInfo*, ExternalInitializerInfo**> ValueInfo_GetExternalInitializerInfo;
  Slot reserved_328_329[2];
  Call<const ValueInfo*, bool*> ValueInfo_IsGraphOutput;
  Call<const ValueInfo*, bool*> ValueInfo_IsConstantInitializer;
  Slot reserved_332_333[2];
  Call<const Graph*, const PathChar**> Graph_GetModelPath;
  Slot reserved_335_343[9];
  Call<const Graph*, size_t*> Graph_GetNumNodes;
  Call<const Graph*, const Node**, size_t> Graph_GetNodes;
  Call<const Graph*, const Node**> Graph_GetParentNode;
  Slot reserved_347_348[2];
  Call<const Node*, const char**> Node_GetName;
  Call<const Node*, const char**> Node_GetOperatorType;
  Call<const Node*, const char**> Node_GetDomain;
  Slot reserved_352;
  Call<const Node*, size_t*> Node_GetNumInputs;
  Call<const Node*, const ValueInfo**, size_t> Node_GetInputs;
  Call<const Node*, size_t*> Node_GetNumOutputs;
  Call<const Node*, const ValueInfo**, size_t> Node_GetOutputs;
  Slot reserved_357_358[2];
  Call<const Node*, size_t*> Node_GetNumAttributes;
  Call<const Node*, const OpAttr**, size_t> Node_GetAttributes;
  Slot reserved_361_362[2];
  Call<const OpAttr*, AttributeType*> OpAttr_GetType;
  Call<const OpAttr*, const char**> OpAttr_GetName;
  Call<const Node*, size_t*> Node_GetNumSubgraphs;
  Slot reserved_366_368[3];
  Release<ExternalInitializerInfo> ReleaseExternalInitializerInfo;
  const PathChar*(BITNET_EP_CALL* ExternalInitializerInfo_GetFilePath)(const ExternalInitializerInfo*);
  int64_t(BITNET_EP_CALL* ExternalInitializerInfo_GetFileOffset)(const ExternalInitializerInfo*);
  size_t(BITNET_EP_CALL* ExternalInitializerInfo_GetByteSize)(const ExternalInitializerInfo*);
  Slot reserved_373_377[5];
  Call<const Value*, const void**> GetTensorData;
};

struct ApiBase {
  const Api*(BITNET_EP_CALL* GetApi)(uint32_t);
  const char*(BITNET_EP_CALL* GetVersionString)();
};

struct EpApi {
  Call<Factory*, const HardwareDevice*, const KeyValuePairs*, const KeyValuePairs*, EpDevice**> CreateEpDevice;
  Release<EpDevice> ReleaseEpDevice;
  Call<GraphSupportInfo*, const Node* const*, size_t, const FusionOptions*> EpGraphSupportInfo_AddNodesToFuse;
  Slot reserved_3_4[2];
  Call<EpDevice*, const MemoryInfo*> EpDevice_AddAllocatorInfo;
  Slot reserved_6_15[10];
  Call<HardwareType, uint32_t, uint32_t, const char*, const KeyValuePairs*, HardwareDevice**>
      CreateHardwareDevice;
  Release<HardwareDevice> ReleaseHardwareDevice;
};

struct FusionOptions {
  uint32_t ort_version_supported;
  bool drop_constant_initializers;
};

// What follows is filled in by us and read by the runtime: all members that the version has which it says it
// supports.

struct Allocator {
  uint32_t version;
  void*(BITNET_EP_CALL* Alloc)(Allocator*, size_t);
  void(BITNET_EP_CALL* Free)(Allocator*, void*);
  const MemoryInfo*(BITNET_EP_CALL* Info)(const Allocator*);
  void*(BITNET_EP_CALL* Reserve)(Allocator*, size_t);
  Call<const Allocator*, KeyValuePairs**> GetStats;
  void*(BITNET_EP_CALL* AllocOnStream)(Allocator*, size_t, SyncStream*);
};

struct DataTransfer;
struct SyncStreamImpl;
struct KernelRegistry;

struct NodeComputeInfo {
  uint32_t ort_version_supported;
  Call<NodeComputeInfo*, NodeComputeContext*, void**> CreateState;
  Call<NodeComputeInfo*, void*, KernelContext*> Compute;
  void(BITNET_EP_CALL* ReleaseState)(NodeComputeInfo*, void*);
};

struct Ep {
  uint32_t ort_version_supported;
  const char*(BITNET_EP_CALL* GetName)(const Ep*);
  Call<Ep*, const Graph*, GraphSupportInfo*> GetCapability;
  Call<Ep*, const Graph**, const Node**, size_t, NodeComputeInfo**, Node**> Compile;
  void(BITNET_EP_CALL* ReleaseNodeComputeInfos)(Ep*, NodeComputeInfo**, size_t);
  Call<Ep*, int*> GetPreferredDataLayout;
  Call<Ep*, const char*, const char*, int, int*> ShouldConvertDataLayoutForOp;
  Call<Ep*, const char* const*, const char* const*, size_t> SetDynamicOptions;
  Call<Ep*, const RunOptions*> OnRunStart;
  Call<Ep*, const RunOptions*, bool> OnRunEnd;
  Call<Ep*, const MemoryInfo*, Allocator**> CreateAllocator;
  Call<Ep*, const MemoryDevice*, SyncStreamImpl**> CreateSyncStreamForDevice;
  const char*(BITNET_EP_CALL* GetCompiledModelCompatibilityInfo)(Ep*, const Graph*);
  Call<Ep*, const KernelRegistry**> GetKernelRegistry;
  Call<Ep*, bool*> IsConcurrentRunSupported;
};

struct Factory {
  uint32_t ort_version_supported;
  const char*(BITNET_EP_CALL* GetName)(const Factory*);
  const char*(BITNET_EP_CALL* GetVendor)(const Factory*);
  Call<Factory*, const HardwareDevice* const*, size_t, EpDevice**, size_t, size_t*> GetSupportedDevices;
  Call<Factory*, const HardwareDevice* const*, const KeyValuePairs* const*, size_t, const SessionOptions*,
       const Logger*, Ep**>
      CreateEp;
  void(BITNET_EP_CALL* ReleaseEp)(Factory*, Ep*);
  uint32_t(BITNET_EP_CALL* GetVendorId)(const Factory*);
  const char*(BITNET_EP_CALL* GetVersion)(const Factory*);
  Call<Factory*, const HardwareDevice* const*, size_t, const char*, int*>
      ValidateCompiledModelCompatibilityInfo;
  Call<Factory*, const MemoryInfo*, const KeyValuePairs*, Allocator**> CreateAllocator;
  void(BITNET_EP_CALL* ReleaseAllocator)(Factory*, Allocator*);
  Call<Factory*, DataTransfer**> CreateDataTransfer;
  bool(BITNET_EP_CALL* IsStreamAware)(const Factory*);
  Call<Factory*, const MemoryDevice*, const KeyValuePairs*, SyncStreamImpl**> CreateSyncStreamForDevice;
  Call<Factory*, const HardwareDevice*, IncompatibilityDetails*> GetHardwareDeviceIncompatibilityDetails;
  Call<Factory*, const EpDevice*, ResourceImporter**> CreateExternalResourceImporterForDevice;
  Call<Factory*, size_t*> GetNumCustomOpDomains;
  Call<Factory*, CustomOpDomain**, size_t> GetCustomOpDomains;
};

}  // namespace bitnet::ep

#endif  // BITNET_METAL_PROVIDER_EP_ABI_H_
