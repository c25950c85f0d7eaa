// Compares custom_ops/ort/ort_abi.h with the official header; compiling this file is the test.
#include <onnxruntime_c_api.h>

#include <cstddef>

#include "ort/ort_abi.h"

namespace ours = bitnet::ort;

#define SAME_ENTRY(name)                                                                      \
  static_assert(offsetof(ours::Api, name) == offsetof(::OrtApi, name), "position of " #name); \
  static_assert(sizeof(ours::Api::name) == sizeof(::OrtApi::name), "size of " #name)
#define SAME_CALLBACK(name) \
  static_assert(offsetof(ours::CustomOp, name) == offsetof(::OrtCustomOp, name), "position of " #name)
#define SAME_VALUE(name, official) \
  static_assert(static_cast<int>(ours::name) == static_cast<int>(::official), "value of " #name)

SAME_ENTRY(CreateStatus);
SAME_ENTRY(GetErrorMessage);
SAME_ENTRY(CreateCustomOpDomain);
SAME_ENTRY(CustomOpDomain_Add);
SAME_ENTRY(AddCustomOpDomain);
SAME_ENTRY(GetTensorMutableData);
SAME_ENTRY(CastTypeInfoToTensorInfo);
SAME_ENTRY(GetTensorElementType);
SAME_ENTRY(GetDimensionsCount);
SAME_ENTRY(GetDimensions);
SAME_ENTRY(GetTensorTypeAndShape);
SAME_ENTRY(CreateCpuMemoryInfo);
SAME_ENTRY(AllocatorAlloc);
SAME_ENTRY(AllocatorFree);
SAME_ENTRY(KernelInfoGetAttribute_float);
SAME_ENTRY(KernelInfoGetAttribute_int64);
SAME_ENTRY(KernelInfoGetAttribute_string);
SAME_ENTRY(KernelContext_GetInput);
SAME_ENTRY(KernelContext_GetOutput);
SAME_ENTRY(ReleaseStatus);
SAME_ENTRY(ReleaseMemoryInfo);
SAME_ENTRY(ReleaseTypeInfo);
SAME_ENTRY(ReleaseTensorTypeAndShapeInfo);
SAME_ENTRY(ReleaseCustomOpDomain);
SAME_ENTRY(AddSessionConfigEntry);
SAME_ENTRY(ReleaseAllocator);
SAME_ENTRY(KernelInfo_GetInputCount);
SAME_ENTRY(KernelInfo_GetInputName);
SAME_ENTRY(KernelInfo_GetInputTypeInfo);
SAME_ENTRY(HasSessionConfigEntry);
SAME_ENTRY(KernelInfo_GetNodeName);
SAME_ENTRY(KernelInfoGetConstantInput_tensor);
SAME_ENTRY(KernelContext_GetAllocator);
SAME_ENTRY(KernelContext_ParallelFor);

SAME_CALLBACK(version);
SAME_CALLBACK(CreateKernel);
SAME_CALLBACK(GetName);
SAME_CALLBACK(GetExecutionProviderType);
SAME_CALLBACK(GetInputType);
SAME_CALLBACK(GetInputTypeCount);
SAME_CALLBACK(GetOutputType);
SAME_CALLBACK(GetOutputTypeCount);
SAME_CALLBACK(KernelCompute);
SAME_CALLBACK(KernelDestroy);
SAME_CALLBACK(GetInputCharacteristic);
SAME_CALLBACK(GetOutputCharacteristic);
SAME_CALLBACK(GetInputMemoryType);
SAME_CALLBACK(GetVariadicInputMinArity);
SAME_CALLBACK(GetVariadicInputHomogeneity);
SAME_CALLBACK(GetVariadicOutputMinArity);
SAME_CALLBACK(GetVariadicOutputHomogeneity);
SAME_CALLBACK(CreateKernelV2);
SAME_CALLBACK(KernelComputeV2);
SAME_CALLBACK(InferOutputShapeFn);
SAME_CALLBACK(GetStartVersion);
SAME_CALLBACK(GetEndVersion);
SAME_CALLBACK(GetMayInplace);
SAME_CALLBACK(ReleaseMayInplace);
SAME_CALLBACK(GetAliasMap);
SAME_CALLBACK(ReleaseAliasMap);
static_assert(sizeof(ours::CustomOp) == sizeof(::OrtCustomOp), "size of the operator's description");

static_assert(offsetof(ours::ApiBase, GetApi) == offsetof(::OrtApiBase, GetApi), "position of GetApi");

SAME_VALUE(kFail, ORT_FAIL);
SAME_VALUE(kInvalidArgument, ORT_INVALID_ARGUMENT);
SAME_VALUE(kUndefined, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
SAME_VALUE(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
SAME_VALUE(kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
SAME_VALUE(kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
SAME_VALUE(kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
SAME_VALUE(kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
SAME_VALUE(kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
SAME_VALUE(kDeviceAllocator, OrtDeviceAllocator);
SAME_VALUE(kMemTypeDefault, OrtMemTypeDefault);
SAME_VALUE(kRequired, INPUT_OUTPUT_REQUIRED);
SAME_VALUE(kOptional, INPUT_OUTPUT_OPTIONAL);
static_assert(sizeof(ours::ElementType) == sizeof(::ONNXTensorElementDataType), "enumerations travel as int");
