// The part of ONNX Runtime's C interface that this library calls, declared by position.
//
// The interface is one table of function pointers to which entries are only ever appended, so a
// position never changes its meaning. Declaring it here lets the library build without ONNX Runtime's
// headers, which its wheels do not ship. Only entries up to API version 21 are called: the library
// loads on ONNX Runtime 1.21 and later. tests/custom_ops/abi_offsets.cc compares every position and
// value below with the official header wherever that is installed.
#ifndef BITNET_ORT_ORT_ABI_H_
#define BITNET_ORT_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define BITNET_ORT_CALL __stdcall
#else
#define BITNET_ORT_CALL
#endif

namespace bitnet::ort {

constexpr uint32_t kApiVersion = 21;

// Opaque types of the runtime.
struct Allocator;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct SessionOptions;
struct ShapeInferContext;
struct Status;
struct TensorTypeAndShapeInfo;
struct TypeInfo;
struct Value;

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
enum AllocatorType : int { kDeviceAllocator = 0 };
enum MemType : int { kMemTypeDefault = 0 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

using Slot = void (*)();  // an entry that is not called

template <typename... Args>
using Call = Status*(BITNET_ORT_CALL*)(Args...);
template <typename T>
using Release = void(BITNET_ORT_CALL*)(T*);

// Numbers in names are positions in the table.
struct Api {
  Status*(BITNET_ORT_CALL* CreateStatus)(ErrorCode, const char*);
  Slot reserved_1;
  const char*(BITNET_ORT_CALL* GetErrorMessage)(const Status*);
  Slot reserved_3_25[23];
  Call<const char*, CustomOpDomain**> CreateCustomOpDomain;
  Call<CustomOpDomain*, const struct CustomOp*> CustomOpDomain_Add;
  Call<SessionOptions*, CustomOpDomain*> AddCustomOpDomain;
  Slot reserved_29_50[22];
  Call<Value*, void**> GetTensorMutableData;
  Slot reserved_52_54[3];
  Call<const TypeInfo*, const TensorTypeAndShapeInfo**> CastTypeInfoToTensorInfo;
  Slot reserved_56_59[4];
  Call<const TensorTypeAndShapeInfo*, ElementType*> GetTensorElementType;
  Call<const TensorTypeAndShapeInfo*, size_t*> GetDimensionsCount;
  Call<const TensorTypeAndShapeInfo*, int64_t*, size_t> GetDimensions;
  Slot reserved_63_64[2];
  Call<const Value*, TensorTypeAndShapeInfo**> GetTensorTypeAndShape;
  Slot reserved_66_68[3];
  Call<AllocatorType, MemType, MemoryInfo**> CreateCpuMemoryInfo;
  Slot reserved_70_74[5];
  Call<Allocator*, size_t, void**> AllocatorAlloc;
  Call<Allocator*, void*> AllocatorFree;
  Slot reserved_77_84[8];
  Call<const KernelInfo*, const char*, float*> KernelInfoGetAttribute_float;
  Call<const KernelInfo*, const char*, int64_t*> KernelInfoGetAttribute_int64;
  Call<const KernelInfo*, const char*, char*, size_t*> KernelInfoGetAttribute_string;
  Slot reserved_88_89[2];
  Call<const KernelContext*, size_t, const Value**> KernelContext_GetInput;
  Call<KernelContext*, size_t, const int64_t*, size_t, Value**> KernelContext_GetOutput;
  Slot reserved_92;
  Release<Status> ReleaseStatus;
  Release<MemoryInfo> ReleaseMemoryInfo;
  Slot reserved_95_97[3];
  Release<TypeInfo> ReleaseTypeInfo;
  Release<TensorTypeAndShapeInfo> ReleaseTensorTypeAndShapeInfo;
  Slot reserved_100;
  Release<CustomOpDomain> ReleaseCustomOpDomain;
  Slot reserved_102_129[28];
  Call<SessionOptions*, const char*, const char*> AddSessionConfigEntry;
  Slot reserved_131;
  Release<Allocator> ReleaseAllocator;
  Slot reserved_133_229[97];
  Call<const KernelInfo*, size_t*> KernelInfo_GetInputCount;
  Slot reserved_231;
  Call<const KernelInfo*, size_t, char*, size_t*> KernelInfo_GetInputName;
  Slot reserved_233;
  Call<const KernelInfo*, size_t, TypeInfo**> KernelInfo_GetInputTypeInfo;
  Slot reserved_235_236[2];
  Call<const SessionOptions*, const char*, int*> HasSessionConfigEntry;
  Slot reserved_238_243[6];
  Call<const KernelInfo*, char*, size_t*> KernelInfo_GetNodeName;
  Slot reserved_245_248[4];
  Call<const KernelInfo*, size_t, int*, const Value**> KernelInfoGetConstantInput_tensor;
  Slot reserved_250_252[3];
  Call<const KernelContext*, const MemoryInfo*, Allocator**> KernelContext_GetAllocator;
  Slot reserved_254_273[20];
  Call<const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*> KernelContext_ParallelFor;
};

struct ApiBase {
  const Api*(BITNET_ORT_CALL* GetApi)(uint32_t);
  const char*(BITNET_ORT_CALL* GetVersionString)();
};

// The description of one operator, filled in by us and read by the runtime.
struct CustomOp {
  uint32_t version;
  void*(BITNET_ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(BITNET_ORT_CALL* GetName)(const CustomOp*);
  const char*(BITNET_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(BITNET_ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(BITNET_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(BITNET_ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(BITNET_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(BITNET_ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(BITNET_ORT_CALL* KernelDestroy)(void*);
  Characteristic(BITNET_ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic(BITNET_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  MemType(BITNET_ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(BITNET_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(BITNET_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(BITNET_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(BITNET_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(BITNET_ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status*(BITNET_ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(BITNET_ORT_CALL* InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int(BITNET_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(BITNET_ORT_CALL* GetEndVersion)(const CustomOp*);
  size_t(BITNET_ORT_CALL* GetMayInplace)(int**, int**);
  void(BITNET_ORT_CALL* ReleaseMayInplace)(int*, int*);
  size_t(BITNET_ORT_CALL* GetAliasMap)(int**, int**);
  void(BITNET_ORT_CALL* ReleaseAliasMap)(int*, int*);
};

}  // namespace bitnet::ort

#endif  // BITNET_ORT_ORT_ABI_H_
