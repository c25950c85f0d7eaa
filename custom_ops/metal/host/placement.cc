#include "metal/host/placement.h"

#include <cstdint>
#include <cstring>

namespace bitnet::metal {

void Placement::Input(int value) {
  Tensor& tensor = call_.At(value);
  if (tensor.bytes == 0) {
    empty_.push_back(value);
  } else if (!FindDirectly(tensor)) {
    Stage(value);
  }
  at_address_.emplace(tensor.host, value);
}

void Placement::Output(int value, void* memory) {
  Tensor& tensor = call_.At(value);
  if (tensor.bytes == 0) {
    return;
  }
  tensor.host = memory;
  if (tensor.root != value) {
    copied_out_.push_back(value);
    return;
  }
  const auto same = at_address_.find(memory);
  const bool in_place = same != at_address_.end() && call_.At(same->second).bytes == tensor.bytes;
  if (in_place) {
    in_place_.emplace_back(value, same->second);
  }
  if (in_place ? call_.At(same->second).place.buffer == nullptr : !FindDirectly(tensor)) {
    copied_out_.push_back(value);
  }
}

void Placement::Contents() {
  for (size_t value = 0; value < call_.tensors.size(); ++value) {
    if (!call_.tensors[value].content.empty()) {
      Stage(static_cast<int>(value));
    }
  }
}

size_t Placement::CopyIn(gpu::Buffer& staging) {
  size_t bytes = 0;
  for (const int value : staged_) {
    Tensor& tensor = call_.At(value);
    tensor.place.buffer = &staging;
    const void* source = tensor.content.empty() ? tensor.host : tensor.content.data();
    std::memcpy(AddressOf(tensor.place), source, tensor.bytes);
    bytes += tensor.bytes;
  }
  for (const int value : empty_) {
    call_.At(value).place = {&staging, 0};
  }
  for (const auto& [value, source] : in_place_) {
    call_.At(value).place = call_.At(source).place;
  }
  return bytes;
}

size_t Placement::CopyOut() const {
  size_t bytes = 0;
  for (const int value : copied_out_) {
    const Tensor& tensor = call_.At(value);
    std::memcpy(tensor.host, AddressOf(call_.At(tensor.root).place) + tensor.offset, tensor.bytes);
    bytes += tensor.bytes;
  }
  return bytes;
}

// In what the provider allocated, or, on whole pages, wrapped for this call.
bool Placement::FindDirectly(Tensor& tensor) {
  tensor.place = context_.allocations().Find(tensor.host, tensor.bytes);
  const bool pages =
      reinterpret_cast<uintptr_t>(tensor.host) % PageSize() == 0 && tensor.bytes % PageSize() == 0;
  if (tensor.place.buffer == nullptr && pages && tensor.host != nullptr) {
    wrapped_.push_back(context_.device().wrap(tensor.host, tensor.bytes));
    tensor.place = {wrapped_.back().get(), 0};
  }
  return tensor.place.buffer != nullptr;
}

void Placement::Stage(int value) {
  call_.At(value).place = {nullptr, staging_bytes_};
  staged_.push_back(value);
  staging_bytes_ += Aligned(call_.At(value).bytes);
}

}  // namespace bitnet::metal
