// One call of a plan: the shapes of its values, where their bytes are, and the batch that is being recorded.
#ifndef BITNET_METAL_HOST_CALL_H_
#define BITNET_METAL_HOST_CALL_H_

#include <memory>
#include <string>
#include <vector>

#include "metal/device.h"
#include "metal/host/graph.h"

namespace bitnet::metal {

class Call;

// A function of the shaders with its constants; the pipeline is made when it is first used.
class Kernel {
 public:
  Kernel() = default;
  Kernel(std::string function, std::vector<gpu::Constant> constants)
      : function_(std::move(function)), constants_(std::move(constants)) {}
  const gpu::Pipeline& Pipeline(gpu::Device& device) const;
  explicit operator bool() const { return !function_.empty(); }

 private:
  std::string function_;
  std::vector<gpu::Constant> constants_;
  mutable std::shared_ptr<gpu::Pipeline> pipeline_;  // a plan runs one call at a time
};

struct Tensor {
  Shape shape;
  size_t bytes = 0;
  int root = kNone;      // the value whose memory this is a part of; its own place in the list otherwise
  size_t offset = 0;     // in the root's memory
  void* host = nullptr;  // of inputs, outputs and constants: what the runtime gave us
  gpu::Binding place{};  // of roots
  std::vector<int32_t> content;  // what the host writes there before the batch
};

class Call {
 public:
  Call(gpu::Device& device, const std::vector<Value>& values) : device_(device), values_(values) {}

  const Shape& ShapeOf(int value) const { return At(value).shape; }
  // What `value` will be; its memory is found later.
  void SetShape(int value, Shape shape);
  void SetBytes(int value, size_t bytes) { At(value).bytes = bytes; }  // of a workspace
  // A workspace that holds `content`.
  void SetContent(int value, std::vector<int32_t> content);
  // `value` is the bytes of `of` from `offset` on.
  void SetView(int value, Shape shape, int of, size_t offset);
  // Memory that the host may read before the batch runs: inputs and constants.
  const void* Host(int value) const;
  bool SameMemory(int a, int b) const { return At(a).host != nullptr && At(a).host == At(b).host; }

  void Use(const Kernel& kernel);
  void Bind(uint32_t index, int value, size_t offset = 0);
  template <typename T>
  void Arguments(uint32_t index, const T& arguments) {
    commands->bytes(index, &arguments, sizeof arguments);
  }
  // Does nothing where the grid is empty.
  void Dispatch(int64_t x, int64_t y, int64_t z, uint32_t simdgroups);

  Tensor& At(int value) { return tensors[static_cast<size_t>(value)]; }
  const Tensor& At(int value) const { return tensors[static_cast<size_t>(value)]; }

  std::vector<Tensor> tensors;
  gpu::Commands* commands = nullptr;
  uint64_t dispatches = 0;
  int cache = kNone;  // the first cache of keys that is written

 private:
  gpu::Device& device_;
  const std::vector<Value>& values_;
};

// One operator, or a part of one, on the device.
class Step {
 public:
  virtual ~Step() = default;
  // Sets the shapes of what it writes, and checks those of what it reads; throws the user's line.
  virtual void Prepare(Call& call) const = 0;
  virtual void Encode(Call& call) const = 0;

  std::vector<int> reads, writes;  // on the device; workspaces are written
  std::string label;               // operator and node, for errors

 protected:
  [[noreturn]] void Fail(const std::string& what) const;
};

// A number of elements as the shaders count them; throws where it leaves 32 bits.
uint32_t Count(int64_t number);
inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_CALL_H_
