#include "ort/node.h"

#include <limits>

#include "bitnet_ops.h"

namespace bitnet::ort {
namespace {

constexpr size_t kAlignment = 64;

const char* TypeName(ElementType type) {
  switch (type) {
    case kFloat:
      return "float";
    case kUint8:
      return "uint8";
    case kInt8:
      return "int8";
    case kInt64:
      return "int64";
    case kFloat16:
      return "float16";
    default:
      return "another type";
  }
}

ElementType TypeOf(const Api& api, const TensorTypeAndShapeInfo& info) {
  ElementType type = kUndefined;
  Check(api, api.GetTensorElementType(&info, &type));
  return type;
}

}  // namespace

void Check(const Api& api, Status* status) {
  if (status == nullptr) {
    return;
  }
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

TensorView View(const Api& api, const Value* value) {
  TensorTypeAndShapeInfo* raw = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &raw));
  struct Holder {
    const Api& api;
    TensorTypeAndShapeInfo* info;
    ~Holder() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } const holder{api, raw};
  TensorView view{TypeOf(api, *raw), {}, nullptr};
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(raw, &rank));
  view.shape.resize(rank);
  Check(api, api.GetDimensions(raw, view.shape.data(), rank));
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(const_cast<Value*>(value), &data));
  view.data = data;
  return view;
}

int64_t Product(const std::vector<int64_t>& shape, size_t count) {
  int64_t product = 1;
  for (size_t i = 0; i < count; ++i) {
    if (shape[i] < 0 || (shape[i] > 0 && product > std::numeric_limits<int64_t>::max() / shape[i])) {
      throw std::runtime_error("shape " + ToString(shape) + " has too many elements");
    }
    product *= shape[i];
  }
  return product;
}

std::string ToString(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

Node::Node(const Api& api, const KernelInfo& info, const char* op) : api_(api), info_(info), label_(op) {
  size_t size = 0;
  if (Succeeded(api.KernelInfo_GetNodeName(&info, nullptr, &size)) && size > 1) {
    std::string name(size, '\0');
    Check(api, api.KernelInfo_GetNodeName(&info, name.data(), &size));
    name.resize(size - 1);  // without the terminating zero
    label_ += " '" + name + "'";
  }
  // The runtime hands a node to any registered version of its operator, whatever the model imports: so the node
  // says which it needs.
  constexpr int64_t kOldest = BITNET_OPS_OLDEST_OPERATOR_VERSION, kNewest = BITNET_OPS_OPERATOR_VERSION;
  const int64_t needed = Int("operator_version", 1);
  if (needed < kOldest || needed > kNewest) {
    std::string runs = "version " + std::to_string(kNewest);
    if (kOldest != kNewest) {
      runs = "versions " + std::to_string(kOldest) + " to " + std::to_string(kNewest);
    }
    Fail("operator_version is " + std::to_string(needed) + ", and bitnet_ops " BITNET_OPS_VERSION " runs " +
         runs + ": register the library of " + (needed > kNewest ? "a newer" : "an older") +
         " bitnet-onnx, or none, for the model's function bodies");
  }
}

void Node::Fail(const std::string& what) const { throw std::runtime_error(label_ + ": " + what); }

bool Node::Succeeded(Status* status) const {
  if (status == nullptr) {
    return true;
  }
  api_.ReleaseStatus(status);
  return false;
}

int64_t Node::Int(const char* field, int64_t otherwise) const {
  int64_t value = 0;
  if (Succeeded(api_.KernelInfoGetAttribute_int64(&info_, field, &value))) {
    return value;
  }
  float wrong = 0.0f;
  if (Succeeded(api_.KernelInfoGetAttribute_float(&info_, field, &wrong))) {
    Fail(std::string(field) + " is a float attribute; it must be an int");
  }
  return otherwise;
}

int64_t Node::RequiredInt(const char* field) const {
  constexpr int64_t kAbsent = std::numeric_limits<int64_t>::min();
  const int64_t value = Int(field, kAbsent);
  if (value == kAbsent) {
    Fail("attribute " + std::string(field) + " is missing; it must be an int");
  }
  return value;
}

float Node::Float(const char* field, float otherwise) const {
  float value = 0.0f;
  if (Succeeded(api_.KernelInfoGetAttribute_float(&info_, field, &value))) {
    return value;
  }
  int64_t wrong = 0;
  if (Succeeded(api_.KernelInfoGetAttribute_int64(&info_, field, &wrong))) {
    Fail(std::string(field) + " is an int attribute; it must be a float");
  }
  return otherwise;
}

std::string Node::RequiredString(const char* field) const {
  size_t size = 0;
  if (!Succeeded(api_.KernelInfoGetAttribute_string(&info_, field, nullptr, &size)) || size == 0) {
    Fail("attribute " + std::string(field) + " is missing; it must be a string");
  }
  std::string value(size, '\0');
  Check(api_, api_.KernelInfoGetAttribute_string(&info_, field, value.data(), &size));
  value.resize(size - 1);  // without the terminating zero
  return value;
}

ElementType Node::InputType(size_t index) const {
  TypeInfo* info = nullptr;
  Check(api_, api_.KernelInfo_GetInputTypeInfo(&info_, index, &info));
  struct Holder {
    const Api& api;
    TypeInfo* info;
    ~Holder() { api.ReleaseTypeInfo(info); }
  } const holder{api_, info};
  const TensorTypeAndShapeInfo* tensor = nullptr;
  Check(api_, api_.CastTypeInfoToTensorInfo(info, &tensor));
  return tensor == nullptr ? kUndefined : TypeOf(api_, *tensor);
}

bool Node::HasInput(size_t index) const {
  size_t count = 0;
  Check(api_, api_.KernelInfo_GetInputCount(&info_, &count));
  if (index >= count) {
    return false;
  }
  size_t size = 0;
  Check(api_, api_.KernelInfo_GetInputName(&info_, index, nullptr, &size));
  return size > 1;  // an input that is left out has an empty name
}

TensorView Node::Constant(size_t index, const char* field, ElementType type,
                          const std::vector<std::vector<int64_t>>& shapes) const {
  const Value* value = nullptr;
  int is_constant = 0;
  if (!HasInput(index)) {
    Fail(std::string(field) + " is missing");
  }
  Check(api_, api_.KernelInfoGetConstantInput_tensor(&info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    Fail(std::string(field) + " is not constant; it must be an initializer");
  }
  TensorView view = View(api_, value);
  if (view.type != type) {
    Fail(std::string(field) + " has " + TypeName(view.type) + " elements; it must have " + TypeName(type));
  }
  std::string allowed;
  bool matches = false;
  for (const std::vector<int64_t>& shape : shapes) {
    matches = matches || view.shape == shape;
    allowed += (allowed.empty() ? "" : " or ") + ToString(shape);
  }
  if (!matches) {
    Fail(std::string(field) + " has shape " + ToString(view.shape) + "; it must be " + allowed);
  }
  if (type == kFloat && reinterpret_cast<uintptr_t>(view.data) % alignof(float) != 0) {
    Fail(std::string(field) + " lies at an address that is not a multiple of 4; align its external data");
  }
  return view;
}

Attributes Node::ReadMatrixAttributes() const {
  Attributes a;
  a.in_features = RequiredInt("in_features");
  a.out_features = RequiredInt("out_features");
  a.bits = Int("bits", a.bits);
  a.zero_point = Int("zero_point", a.zero_point);
  a.group_size = Int("group_size", a.group_size);
  return a;
}

Linear Node::ReadMatrix(size_t first, Attributes attributes) const {
  const std::string wrong = Validate(attributes);
  if (!wrong.empty()) {
    Fail(wrong);
  }
  Linear linear = MakeLinear(attributes);
  const std::vector<int64_t> weight_shape{linear.panels, linear.panel_bytes / linear.unit_bytes,
                                          linear.unit_bytes};
  linear.weight = static_cast<const uint8_t*>(Constant(first, "W", kUint8, {weight_shape}).data);
  const int64_t rows = attributes.out_features;
  std::vector<std::vector<int64_t>> scale_shapes{{linear.panels, linear.groups, kPanelRows}};
  if (attributes.group_size == 0) {
    scale_shapes = {{1}, {rows}};
  }
  const TensorView scale = Constant(first + 1, "scale", kFloat, scale_shapes);
  linear.scale = static_cast<const float*>(scale.data);
  linear.scale_per_row = attributes.group_size == 0 && scale.shape[0] == rows;
  return linear;
}

bool PoolExecutor::ParallelFor(void* self, size_t n, void (*fn)(void*, size_t), void* arg) {
  PoolExecutor& pool = *static_cast<PoolExecutor*>(self);
  pool.status_ = pool.api_.KernelContext_ParallelFor(&pool.context_, fn, n, 0, arg);
  return pool.status_ == nullptr;
}

Scratch::Scratch(const Api& api, const KernelContext& context, size_t bytes) : api_(api) {
  MemoryInfo* info = nullptr;
  Check(api, api.CreateCpuMemoryInfo(kDeviceAllocator, kMemTypeDefault, &info));
  Status* status = api.KernelContext_GetAllocator(&context, info, &allocator_);
  api.ReleaseMemoryInfo(info);
  Check(api, status);
  status = api.AllocatorAlloc(allocator_, bytes + kAlignment, &block_);
  if (status != nullptr || block_ == nullptr) {
    api.ReleaseAllocator(allocator_);
    Check(api, status);
    throw std::runtime_error("no memory for " + std::to_string(bytes) + " bytes of work space");
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(block_);
  data_ = static_cast<unsigned char*>(block_) + (kAlignment - address % kAlignment) % kAlignment;
}

Scratch::~Scratch() {
  if (Status* status = api_.AllocatorFree(allocator_, block_)) {
    api_.ReleaseStatus(status);
  }
  api_.ReleaseAllocator(allocator_);
}

CustomOp BaseOp() {
  // InferOutputShapeFn stays empty: with any, ONNX Runtime 1.21 reads the type of an optional input that is
  // left out and crashes.
  CustomOp op{};
  op.version = kApiVersion;
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // CPU
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace bitnet::ort
