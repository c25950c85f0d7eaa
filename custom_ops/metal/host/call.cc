#include "metal/host/call.h"

#include <limits>
#include <stdexcept>

namespace bitnet::metal {

const gpu::Pipeline& Kernel::Pipeline(gpu::Device& device) const {
  if (pipeline_ == nullptr) {
    pipeline_ = device.pipeline(function_, constants_);
  }
  return *pipeline_;
}

void Call::SetShape(int value, Shape shape) {
  Tensor& tensor = At(value);
  tensor.bytes = static_cast<size_t>(Product(shape)) * SizeOf(values_[static_cast<size_t>(value)].type);
  tensor.shape = std::move(shape);
}

void Call::SetContent(int value, std::vector<int32_t> content) {
  Tensor& tensor = At(value);
  tensor.bytes = content.size() * sizeof(int32_t);
  tensor.content = std::move(content);
}

void Call::SetView(int value, Shape shape, int of, size_t offset) {
  SetShape(value, std::move(shape));
  Tensor& tensor = At(value);
  tensor.root = At(of).root;
  tensor.offset = At(of).offset + offset;
}

const void* Call::Host(int value) const {
  const Tensor& tensor = At(value);
  if (tensor.host == nullptr && tensor.bytes != 0) {
    throw std::runtime_error("BitNetMetal: " + values_[static_cast<size_t>(value)].name +
                             " cannot be read here");
  }
  return tensor.host;
}

void Call::Use(const Kernel& kernel) { commands->use(kernel.Pipeline(device_)); }

void Call::Bind(uint32_t index, int value, size_t offset) {
  const Tensor& tensor = At(value);
  const gpu::Binding& root = At(tensor.root).place;
  commands->buffer(index, {root.buffer, root.offset + tensor.offset + offset});
}

void Call::Dispatch(int64_t x, int64_t y, int64_t z, uint32_t simdgroups) {
  if (x == 0 || y == 0 || z == 0) {
    return;
  }
  commands->dispatch({Count(x), Count(y), Count(z)}, {32 * simdgroups, 1, 1});
  ++dispatches;
}

void Step::Fail(const std::string& what) const { throw std::runtime_error(label + ": " + what); }

uint32_t Count(int64_t number) {
  if (number < 0 || number > std::numeric_limits<uint32_t>::max()) {
    throw std::runtime_error("BitNetMetal: " + std::to_string(number) +
                             " elements are more than 32 bits count");
  }
  return static_cast<uint32_t>(number);
}

}  // namespace bitnet::metal
