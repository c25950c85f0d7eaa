// Compares custom_ops/metal/provider/ep_abi.h with the official headers; compiling this file is the test.
#include <onnxruntime_c_api.h>

#include <cstddef>

#include "metal/provider/ep_abi.h"

namespace ours = bitnet::ep;

#define SAME(type, official, name)                                                                         \
  static_assert(offsetof(ours::type, name) == offsetof(::official, name), "position of " #type "." #name); \
  static_assert(sizeof(ours::type::name) == sizeof(::official::name), "size of " #type "." #name)
#define SAME_VALUE(name, official) \
  static_assert(static_cast<int>(ours::name) == static_cast<int>(::official), "value of " #name)

SAME(Api, OrtApi, CreateStatus);
SAME(Api, OrtApi, GetErrorMessage);
SAME(Api, OrtApi, GetTensorMutableData);
SAME(Api, OrtApi, CastTypeInfoToTensorInfo);
SAME(Api, OrtApi, GetTensorElementType);
SAME(Api, OrtApi, GetDimensionsCount);
SAME(Api, OrtApi, GetDimensions);
SAME(Api, OrtApi, GetTensorTypeAndShape);
SAME(Api, OrtApi, KernelContext_GetInput);
SAME(Api, OrtApi, KernelContext_GetOutput);
SAME(Api, OrtApi, ReleaseStatus);
SAME(Api, OrtApi, ReleaseMemoryInfo);
SAME(Api, OrtApi, ReleaseValue);
SAME(Api, OrtApi, ReleaseTensorTypeAndShapeInfo);
SAME(Api, OrtApi, HasSessionConfigEntry);
SAME(Api, OrtApi, GetSessionConfigEntry);
SAME(Api, OrtApi, ReadOpAttr);
SAME(Api, OrtApi, GetValueInfoName);
SAME(Api, OrtApi, GetValueInfoTypeInfo);
SAME(Api, OrtApi, CreateKeyValuePairs);
SAME(Api, OrtApi, AddKeyValuePair);
SAME(Api, OrtApi, ReleaseKeyValuePairs);
SAME(Api, OrtApi, HardwareDevice_Type);
SAME(Api, OrtApi, GetEpApi);
SAME(Api, OrtApi, GetTensorSizeInBytes);
SAME(Api, OrtApi, CreateMemoryInfo_V2);
SAME(Api, OrtApi, ValueInfo_GetInitializerValue);
SAME(Api, OrtApi, ValueInfo_GetExternalInitializerInfo);
SAME(Api, OrtApi, ValueInfo_IsGraphOutput);
SAME(Api, OrtApi, ValueInfo_IsConstantInitializer);
SAME(Api, OrtApi, Graph_GetModelPath);
SAME(Api, OrtApi, Graph_GetNumNodes);
SAME(Api, OrtApi, Graph_GetNodes);
SAME(Api, OrtApi, Graph_GetParentNode);
SAME(Api, OrtApi, Node_GetName);
SAME(Api, OrtApi, Node_GetOperatorType);
SAME(Api, OrtApi, Node_GetDomain);
SAME(Api, OrtApi, Node_GetNumInputs);
SAME(Api, OrtApi, Node_GetInputs);
SAME(Api, OrtApi, Node_GetNumOutputs);
SAME(Api, OrtApi, Node_GetOutputs);
SAME(Api, OrtApi, Node_GetNumAttributes);
SAME(Api, OrtApi, Node_GetAttributes);
SAME(Api, OrtApi, OpAttr_GetType);
SAME(Api, OrtApi, OpAttr_GetName);
SAME(Api, OrtApi, Node_GetNumSubgraphs);
SAME(Api, OrtApi, ReleaseExternalInitializerInfo);
SAME(Api, OrtApi, ExternalInitializerInfo_GetFilePath);
SAME(Api, OrtApi, ExternalInitializerInfo_GetFileOffset);
SAME(Api, OrtApi, ExternalInitializerInfo_GetByteSize);
SAME(Api, OrtApi, GetTensorData);

SAME(EpApi, OrtEpApi, CreateEpDevice);
SAME(EpApi, OrtEpApi, ReleaseEpDevice);
SAME(EpApi, OrtEpApi, EpGraphSupportInfo_AddNodesToFuse);
SAME(EpApi, OrtEpApi, EpDevice_AddAllocatorInfo);
SAME(EpApi, OrtEpApi, CreateHardwareDevice);
SAME(EpApi, OrtEpApi, ReleaseHardwareDevice);

SAME(Allocator, OrtAllocator, Alloc);
SAME(Allocator, OrtAllocator, Free);
SAME(Allocator, OrtAllocator, Info);
SAME(Allocator, OrtAllocator, Reserve);
SAME(Allocator, OrtAllocator, GetStats);
SAME(Allocator, OrtAllocator, AllocOnStream);

SAME(NodeComputeInfo, OrtNodeComputeInfo, CreateState);
SAME(NodeComputeInfo, OrtNodeComputeInfo, Compute);
SAME(NodeComputeInfo, OrtNodeComputeInfo, ReleaseState);

SAME(Ep, OrtEp, GetName);
SAME(Ep, OrtEp, GetCapability);
SAME(Ep, OrtEp, Compile);
SAME(Ep, OrtEp, ReleaseNodeComputeInfos);
SAME(Ep, OrtEp, GetPreferredDataLayout);
SAME(Ep, OrtEp, ShouldConvertDataLayoutForOp);
SAME(Ep, OrtEp, SetDynamicOptions);
SAME(Ep, OrtEp, OnRunStart);
SAME(Ep, OrtEp, OnRunEnd);
SAME(Ep, OrtEp, CreateAllocator);
SAME(Ep, OrtEp, CreateSyncStreamForDevice);
SAME(Ep, OrtEp, GetCompiledModelCompatibilityInfo);
SAME(Ep, OrtEp, GetKernelRegistry);
SAME(Ep, OrtEp, IsConcurrentRunSupported);

SAME(Factory, OrtEpFactory, GetName);
SAME(Factory, OrtEpFactory, GetVendor);
SAME(Factory, OrtEpFactory, GetSupportedDevices);
SAME(Factory, OrtEpFactory, CreateEp);
SAME(Factory, OrtEpFactory, ReleaseEp);
SAME(Factory, OrtEpFactory, GetVendorId);
SAME(Factory, OrtEpFactory, GetVersion);
SAME(Factory, OrtEpFactory, ValidateCompiledModelCompatibilityInfo);
SAME(Factory, OrtEpFactory, CreateAllocator);
SAME(Factory, OrtEpFactory, ReleaseAllocator);
SAME(Factory, OrtEpFactory, CreateDataTransfer);
SAME(Factory, OrtEpFactory, IsStreamAware);
SAME(Factory, OrtEpFactory, CreateSyncStreamForDevice);
SAME(Factory, OrtEpFactory, GetHardwareDeviceIncompatibilityDetails);
SAME(Factory, OrtEpFactory, CreateExternalResourceImporterForDevice);
SAME(Factory, OrtEpFactory, GetNumCustomOpDomains);
SAME(Factory, OrtEpFactory, GetCustomOpDomains);

SAME(FusionOptions, OrtNodeFusionOptions, drop_constant_initializers);
static_assert(sizeof(ours::FusionOptions) == sizeof(::OrtNodeFusionOptions), "size of FusionOptions");
static_assert(sizeof(ours::NodeComputeInfo) == sizeof(::OrtNodeComputeInfo), "size of NodeComputeInfo");

SAME_VALUE(kFail, ORT_FAIL);
SAME_VALUE(kInvalidArgument, ORT_INVALID_ARGUMENT);
SAME_VALUE(kUndefined, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
SAME_VALUE(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
SAME_VALUE(kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
SAME_VALUE(kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
SAME_VALUE(kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
SAME_VALUE(kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
SAME_VALUE(kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
SAME_VALUE(kAttributeInt, ORT_OP_ATTR_INT);
SAME_VALUE(kAttributeInts, ORT_OP_ATTR_INTS);
SAME_VALUE(kAttributeFloat, ORT_OP_ATTR_FLOAT);
SAME_VALUE(kAttributeString, ORT_OP_ATTR_STRING);
SAME_VALUE(kCpu, OrtHardwareDeviceType_CPU);
SAME_VALUE(kGpu, OrtHardwareDeviceType_GPU);
SAME_VALUE(kCpuMemory, OrtMemoryInfoDeviceType_CPU);
SAME_VALUE(kGpuMemory, OrtMemoryInfoDeviceType_GPU);
SAME_VALUE(kHostAccessible, OrtDeviceMemoryType_HOST_ACCESSIBLE);
SAME_VALUE(kDeviceAllocator, OrtDeviceAllocator);
