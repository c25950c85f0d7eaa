// Continues a prompt greedily with a packaged model in the ONNX Runtime that a library holds:
//   bitnet_decode libonnxruntime.so MODEL.onnx OPERATORS COUNT ID [ID ...]
// OPERATORS is the operator library, or `-` for the function bodies of the model. Prints the new ids. ONNX
// Runtime is opened at run time and its interface called by position, so that this builds for any processor
// without its headers and its library.
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort/ort_abi.h"

namespace {

using namespace bitnet::ort;
struct Env;
struct Session;

// Positions in the interface of what only this program calls.
enum Position : size_t {
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSessionGetInputCount = 30,
  kSessionGetOutputCount = 31,
  kSessionGetInputName = 36,
  kSessionGetOutputName = 37,
  kCreateTensorAsOrtValue = 48,
  kGetAllocatorWithDefaultOptions = 78,
  kReleaseValue = 96,
  kRegisterCustomOpsLibrary = 228,
};

const Api* api;

void Try(Status* status) {
  if (status != nullptr) {
    throw std::runtime_error(api->GetErrorMessage(status));
  }
}

template <typename... Arguments>
void CallAt(Position position, Arguments... arguments) {
  using Function = Status*(BITNET_ORT_CALL*)(Arguments...);
  Function function;
  std::memcpy(&function, reinterpret_cast<const char*>(api) + position * sizeof(void*), sizeof function);
  Try(function(arguments...));
}

template <typename T>
Value* Tensor(Allocator* allocator, const std::vector<int64_t>& shape, ElementType type,
              const std::vector<T>& values) {
  Value* value = nullptr;
  CallAt(kCreateTensorAsOrtValue, allocator, shape.data(), shape.size(), type, &value);
  void* data = nullptr;
  Try(api->GetTensorMutableData(value, &data));
  if (!values.empty()) {
    std::memcpy(data, values.data(), values.size() * sizeof(T));
  }
  return value;
}

std::vector<const char*> Names(Session* session, Allocator* allocator, Position count_of, Position name_of) {
  size_t count = 0;
  CallAt(count_of, session, &count);
  std::vector<const char*> names;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    CallAt(name_of, session, i, allocator, &name);
    names.push_back(name);
  }
  return names;
}

std::vector<int64_t> ShapeOf(const Value* value) {
  TensorTypeAndShapeInfo* info = nullptr;
  Try(api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  Try(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  Try(api->GetDimensions(info, shape.data(), rank));
  api->ReleaseTensorTypeAndShapeInfo(info);
  return shape;
}

int64_t LargestOfLastRow(Value* logits) {
  const std::vector<int64_t> shape = ShapeOf(logits);
  void* data = nullptr;
  Try(api->GetTensorMutableData(logits, &data));
  const float* row = static_cast<const float*>(data) + (shape[1] - 1) * shape[2];
  return std::max_element(row, row + shape[2]) - row;
}

void Release(Value* value) {
  using Function = void(BITNET_ORT_CALL*)(Value*);
  Function function;
  std::memcpy(&function, reinterpret_cast<const char*>(api) + kReleaseValue * sizeof(void*), sizeof function);
  function(value);
}

SessionOptions* Options(const std::string& operators) {
  SessionOptions* options = nullptr;
  CallAt(kCreateSessionOptions, &options);
  if (operators != "-") {
    // ONNX Runtime wants paths in the characters of the system, as the standard library does.
    CallAt(kRegisterCustomOpsLibrary, options, std::filesystem::path(operators).c_str());
  }
  return options;
}

const ApiBase* OpenRuntime(const char* path) {
#if defined(_WIN32)
  const HMODULE library = LoadLibraryW(std::filesystem::path(path).c_str());
  void* entry =
      library == nullptr ? nullptr : reinterpret_cast<void*>(GetProcAddress(library, "OrtGetApiBase"));
  const char* reason = "it does not load, or is not ONNX Runtime";
#else
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  void* entry = library == nullptr ? nullptr : dlsym(library, "OrtGetApiBase");
  const char* reason = entry == nullptr ? dlerror() : "";
#endif
  if (entry == nullptr) {
    throw std::runtime_error(std::string(path) + ": " + reason);
  }
  return reinterpret_cast<const ApiBase*(BITNET_ORT_CALL*)()>(entry)();
}

void Decode(const char* model, const std::string& operators, int count, std::vector<int64_t> ids) {
  Env* env = nullptr;
  CallAt(kCreateEnv, 2, "decode", &env);  // warnings and worse are printed
  Session* session = nullptr;
  CallAt(kCreateSession, env, std::filesystem::path(model).c_str(), Options(operators), &session);
  Allocator* allocator = nullptr;
  CallAt(kGetAllocatorWithDefaultOptions, &allocator);
  const std::vector<const char*> inputs =
      Names(session, allocator, kSessionGetInputCount, kSessionGetInputName);
  const std::vector<const char*> outputs =
      Names(session, allocator, kSessionGetOutputCount, kSessionGetOutputName);

  // input_ids, attention_mask and the cache in; logits and the longer cache out.
  std::vector<Value*> cache;
  constexpr int64_t kKvHeads = 2, kHeadSize = 64;  // of the zoo's bitnet-tiny
  for (size_t i = 2; i < inputs.size(); ++i) {
    cache.push_back(Tensor<float>(allocator, {1, kKvHeads, 0, kHeadSize}, kFloat, {}));
  }
  int64_t total = 0;
  for (int step = 0; step < count; ++step) {
    const int64_t length = static_cast<int64_t>(ids.size());
    total += length;
    const std::vector<int64_t> mask(static_cast<size_t>(total), 1);
    std::vector<Value*> given{Tensor(allocator, {1, length}, kInt64, ids),
                              Tensor(allocator, {1, total}, kInt64, mask)};
    given.insert(given.end(), cache.begin(), cache.end());
    std::vector<Value*> found(outputs.size(), nullptr);
    CallAt(kRun, session, static_cast<void*>(nullptr), inputs.data(), given.data(), given.size(),
           outputs.data(), outputs.size(), found.data());
    ids = {LargestOfLastRow(found[0])};
    std::printf("%lld%c", static_cast<long long>(ids[0]), step + 1 == count ? '\n' : ' ');
    std::for_each(given.begin(), given.end(), Release);
    Release(found[0]);
    cache.assign(found.begin() + 1, found.end());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 6) {
    throw std::runtime_error("usage: bitnet_decode libonnxruntime.so MODEL.onnx OPERATORS COUNT ID [ID ...]");
  }
  const ApiBase* base = OpenRuntime(argv[1]);
  api = base->GetApi(kApiVersion);
  std::vector<int64_t> ids;
  for (int i = 5; i < argc; ++i) {
    ids.push_back(std::atoll(argv[i]));
  }
  Decode(argv[2], argv[3], std::atoi(argv[4]), ids);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
