#include "metal/provider/graph_reader.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

namespace bitnet::ep {
namespace {

template <typename T>
std::vector<T> List(const Api& api, const Node& node, Call<const Node*, size_t*> count_of,
                    Call<const Node*, T*, size_t> fill) {
  size_t count = 0;
  Check(api, count_of(&node, &count));
  std::vector<T> list(count);
  if (count != 0) {
    Check(api, fill(&node, list.data(), count));
  }
  return list;
}

std::vector<const ValueInfo*> Inputs(const Api& api, const Node& node) {
  return List<const ValueInfo*>(api, node, api.Node_GetNumInputs, api.Node_GetInputs);
}

std::vector<const ValueInfo*> Outputs(const Api& api, const Node& node) {
  return List<const ValueInfo*>(api, node, api.Node_GetNumOutputs, api.Node_GetOutputs);
}

std::string NameOf(const Api& api, const ValueInfo* info) {
  const char* name = nullptr;
  if (info != nullptr) {
    Check(api, api.GetValueInfoName(info, &name));
  }
  return name == nullptr ? "" : name;
}

TensorView Described(const Api& api, const TensorTypeAndShapeInfo& info) {
  TensorView view{kUndefined, {}};
  Check(api, api.GetTensorElementType(&info, &view.type));
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(&info, &rank));
  view.shape.resize(rank);
  Check(api, api.GetDimensions(&info, view.shape.data(), rank));
  return view;
}

class Reader {
 public:
  Reader(const Api& api, ReadGraph& result, std::filesystem::path folder)
      : api_(api), graph_(result.graph), folder_(std::move(folder)) {}

  void Add(const Node& source) {
    metal::Node node;
    const char* text = nullptr;
    Check(api_, api_.Node_GetName(&source, &text));
    node.name = text;
    Check(api_, api_.Node_GetOperatorType(&source, &text));
    node.op = text;
    Check(api_, api_.Node_GetDomain(&source, &text));
    node.domain = text;
    const int place = static_cast<int>(graph_.nodes.size());
    for (const ValueInfo* info : Inputs(api_, source)) {
      node.inputs.push_back(ValueOf(info));
      if (node.inputs.back() != metal::kNone) {
        graph_.values[static_cast<size_t>(node.inputs.back())].consumers.push_back(place);
      }
    }
    for (const ValueInfo* info : Outputs(api_, source)) {
      node.outputs.push_back(ValueOf(info));
      if (node.outputs.back() != metal::kNone) {
        graph_.values[static_cast<size_t>(node.outputs.back())].producer = place;
      }
    }
    for (const OpAttr* attribute :
         List<const OpAttr*>(api_, source, api_.Node_GetNumAttributes, api_.Node_GetAttributes)) {
      ReadAttribute(*attribute, node);
    }
    graph_.nodes.push_back(std::move(node));
  }

 private:
  void ReadAttribute(const OpAttr& attribute, metal::Node& node) {
    const char* name = nullptr;
    Check(api_, api_.OpAttr_GetName(&attribute, &name));
    AttributeType type{};
    Check(api_, api_.OpAttr_GetType(&attribute, &type));
    size_t size = 0;
    if (type == kAttributeInt) {
      Check(api_, api_.ReadOpAttr(&attribute, type, &node.ints[name], sizeof(int64_t), &size));
    } else if (type == kAttributeFloat) {
      Check(api_, api_.ReadOpAttr(&attribute, type, &node.floats[name], sizeof(float), &size));
    } else if (type == kAttributeString || type == kAttributeInts) {
      // Asked with no room it tells the size, and calls that an error.
      Status* status = api_.ReadOpAttr(&attribute, type, nullptr, 0, &size);
      if (status != nullptr) {
        api_.ReleaseStatus(status);
      }
      if (type == kAttributeString) {
        std::string& text = node.strings[name];
        text.resize(size);
        if (size != 0) {
          Check(api_, api_.ReadOpAttr(&attribute, type, text.data(), size, &size));
        }
        text.resize(std::char_traits<char>::length(text.c_str()));
      } else {
        std::vector<int64_t>& list = node.lists[name];
        list.resize(size / sizeof(int64_t));
        if (size != 0) {
          Check(api_, api_.ReadOpAttr(&attribute, type, list.data(), size, &size));
        }
      }
    }
  }

  int ValueOf(const ValueInfo* info) {
    const std::string name = NameOf(api_, info);
    if (name.empty()) {
      return metal::kNone;
    }
    const auto [found, is_new] = places_.try_emplace(name, static_cast<int>(graph_.values.size()));
    if (is_new) {
      graph_.values.push_back(ReadValue(*info, name));
    }
    return found->second;
  }

  metal::Value ReadValue(const ValueInfo& info, const std::string& name) {
    metal::Value value;
    value.name = name;
    const TypeInfo* type = nullptr;
    Check(api_, api_.GetValueInfoTypeInfo(&info, &type));
    const TensorTypeAndShapeInfo* tensor = nullptr;
    if (type != nullptr) {
      Check(api_, api_.CastTypeInfoToTensorInfo(type, &tensor));
    }
    if (tensor != nullptr) {
      const TensorView view = Described(api_, *tensor);
      value.type = TypeOf(view.type);
      value.shape = view.shape;
    }
    Check(api_, api_.ValueInfo_IsGraphOutput(&info, &value.is_graph_output));
    Check(api_, api_.ValueInfo_IsConstantInitializer(&info, &value.is_constant));
    if (value.is_constant) {
      ReadConstant(info, value);
    }
    return value;
  }

  void ReadConstant(const ValueInfo& info, metal::Value& value) {
    // This asks the runtime to map what lies in a file, and with that to check where the file is.
    const Value* tensor = nullptr;
    Check(api_, api_.ValueInfo_GetInitializerValue(&info, &tensor));
    if (tensor == nullptr) {
      throw std::runtime_error("BitNetMetal: the runtime has no value for the constant " + value.name);
    }
    value.shape = View(api_, tensor).shape;
    Check(api_, api_.GetTensorData(tensor, &value.constant.data));
    Check(api_, api_.GetTensorSizeInBytes(tensor, &value.constant.bytes));
    ExternalInitializerInfo* external = nullptr;
    Check(api_, api_.ValueInfo_GetExternalInitializerInfo(&info, &external));
    if (external == nullptr) {
      return;
    }
    const std::unique_ptr<ExternalInitializerInfo, Release<ExternalInitializerInfo>> holder(
        external, api_.ReleaseExternalInitializerInfo);
    const std::filesystem::path location = api_.ExternalInitializerInfo_GetFilePath(external);
    const int64_t offset = api_.ExternalInitializerInfo_GetFileOffset(external);
    const std::filesystem::path path = folder_ / location;
    std::error_code error;
    if (api_.ExternalInitializerInfo_GetByteSize(external) == value.constant.bytes && location.is_relative() &&
        std::find(location.begin(), location.end(), "..") == location.end() &&
        std::filesystem::is_regular_file(path, error)) {
      value.constant.path = path.string();
      value.constant.offset = offset;
    }
  }

  const Api& api_;
  metal::Graph& graph_;
  const std::filesystem::path folder_;
  std::unordered_map<std::string, int> places_;
};

std::vector<std::string> Names(const Api& api, const std::vector<const ValueInfo*>& infos) {
  std::vector<std::string> names;
  for (const ValueInfo* info : infos) {
    names.push_back(NameOf(api, info));
  }
  return names;
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

metal::Type TypeOf(ElementType type) {
  switch (type) {
    case kFloat:
      return metal::Type::kFloat;
    case kInt8:
      return metal::Type::kInt8;
    case kUint8:
      return metal::Type::kUint8;
    case kInt32:
      return metal::Type::kInt32;
    case kInt64:
      return metal::Type::kInt64;
    default:
      return metal::Type::kOther;
  }
}

TensorView View(const Api& api, const Value* value) {
  TensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<TensorTypeAndShapeInfo, Release<TensorTypeAndShapeInfo>> holder(
      info, api.ReleaseTensorTypeAndShapeInfo);
  return Described(api, *info);
}

ReadGraph Read(const Api& api, const Graph& source, const std::filesystem::path& folder) {
  ReadGraph result;
  const PathChar* model = nullptr;
  Check(api, api.Graph_GetModelPath(&source, &model));
  const std::filesystem::path file = model == nullptr ? std::filesystem::path() : std::filesystem::path(model);
  size_t count = 0;
  Check(api, api.Graph_GetNumNodes(&source, &count));
  result.nodes.resize(count);
  if (count != 0) {
    Check(api, api.Graph_GetNodes(&source, result.nodes.data(), count));
  }
  Reader reader(api, result, folder.empty() ? file.parent_path() : folder);
  for (const Node* node : result.nodes) {
    reader.Add(*node);
  }
  return result;
}

std::vector<std::string> InputNames(const Api& api, const Node& node) { return Names(api, Inputs(api, node)); }
std::vector<std::string> OutputNames(const Api& api, const Node& node) {
  return Names(api, Outputs(api, node));
}

}  // namespace bitnet::ep
