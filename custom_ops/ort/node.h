// Reading a node at kernel creation, and the other thin wrappers around the C interface.
//
// Inside the library an error is an exception whose text is the user's line; `Guard` turns it into a status at
// the C boundary, which no exception crosses.
#ifndef BITNET_ORT_NODE_H_
#define BITNET_ORT_NODE_H_

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/bitlinear.h"
#include "ort/ort_abi.h"

namespace bitnet::ort {

// Throws when a call of the runtime failed.
void Check(const Api& api, Status* status);

template <typename F>
Status* Guard(const Api& api, F body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return api.CreateStatus(kInvalidArgument, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "bitnet-onnx: unknown error");
  }
}

struct TensorView {
  ElementType type;
  std::vector<int64_t> shape;
  const void* data;
};

TensorView View(const Api& api, const Value* value);

// Dimensions multiplied; throws when the product leaves 64 bits.
int64_t Product(const std::vector<int64_t>& shape, size_t count);

std::string ToString(const std::vector<int64_t>& shape);

// One node: every method throws an error that names operator, node and field.
class Node {
 public:
  Node(const Api& api, const KernelInfo& info, const char* op);

  [[noreturn]] void Fail(const std::string& what) const;

  // Matrix attributes and the constants W (input `first`) and scale (the next input), all checked.
  Linear ReadMatrix(size_t first, Attributes attributes) const;
  // Attributes that both operators have.
  Attributes ReadMatrixAttributes() const;

  int64_t Int(const char* field, int64_t otherwise) const;
  float Float(const char* field, float otherwise) const;
  std::string RequiredString(const char* field) const;
  int64_t RequiredInt(const char* field) const;

  ElementType InputType(size_t index) const;
  bool HasInput(size_t index) const;
  // A constant input; `shapes` are those allowed.
  TensorView Constant(size_t index, const char* field, ElementType type,
                      const std::vector<std::vector<int64_t>>& shapes) const;

  const std::string& label() const { return label_; }

 private:
  bool Succeeded(Status* status) const;

  const Api& api_;
  const KernelInfo& info_;
  std::string label_;
};

// Runs the pieces of one call on the session's thread pool, and keeps the status of a failed hand-out.
class PoolExecutor {
 public:
  PoolExecutor(const Api& api, const KernelContext& context) : api_(api), context_(context) {}
  Executor executor() { return {this, ParallelFor}; }
  Status* status() const { return status_; }

 private:
  static bool ParallelFor(void* self, size_t n, void (*fn)(void*, size_t), void* arg);

  const Api& api_;
  const KernelContext& context_;
  Status* status_ = nullptr;
};

// Temporary memory of one call from the session's allocator, aligned to 64 bytes.
class Scratch {
 public:
  Scratch(const Api& api, const KernelContext& context, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  const Api& api_;
  Allocator* allocator_ = nullptr;
  void* block_ = nullptr;
  void* data_ = nullptr;
};

// What all operators have in common as the runtime sees them, but for their kernels.
CustomOp BaseOp();

// An operator whose kernels are made by `Create` and run by `Compute`; a Kernel has a member `api`.
template <typename Kernel, std::unique_ptr<Kernel> (*Create)(const Api&, const KernelInfo&),
          void (*Compute)(const Kernel&, KernelContext&)>
CustomOp OpWithKernel() {
  CustomOp op = BaseOp();
  op.CreateKernelV2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) -> Status* {
    return Guard(*api, [&] { *kernel = Create(*api, *info).release(); });
  };
  op.KernelComputeV2 = [](void* kernel, KernelContext* context) -> Status* {
    const Kernel& self = *static_cast<const Kernel*>(kernel);
    return Guard(self.api, [&] { Compute(self, *context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

extern const CustomOp kBitLinearOp;
extern const CustomOp kBitEmbeddingOp;
extern const CustomOp kGroupQueryAttentionOp;
extern const CustomOp kInt8GroupQueryAttentionOp;  // the same operator with int8 keys and values
extern const CustomOp kGatedActivationOp;

}  // namespace bitnet::ort

#endif  // BITNET_ORT_NODE_H_
