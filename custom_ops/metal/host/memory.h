// Memory that the device sees: what the provider allocated, mapped files, and what is wrapped for one call.
#ifndef BITNET_METAL_HOST_MEMORY_H_
#define BITNET_METAL_HOST_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "metal/device.h"

namespace bitnet::metal {

size_t PageSize();

// What the provider allocated for others, by address: caches of keys and values live here, so that a call finds
// the buffer behind a tensor and copies nothing.
class Allocations {
 public:
  explicit Allocations(gpu::Device& device) : device_(device) {}
  void* Allocate(size_t bytes);
  void Free(void* memory);
  // The buffer that holds all of `bytes` at `memory`, or null.
  gpu::Binding Find(const void* memory, size_t bytes) const;

 private:
  gpu::Device& device_;
  mutable std::mutex mutex_;
  std::map<uintptr_t, std::unique_ptr<gpu::Buffer>> buffers_;  // by the last byte's address
};

// A file of weights, mapped and wrapped once for all sessions.
class MappedFile {
 public:
  MappedFile(gpu::Device& device, const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Throws where the file does not hold all of it.
  const void* At(int64_t offset, size_t bytes) const;
  // The same in a buffer; the start must lie on a multiple of `kAlignment`.
  gpu::Binding Bind(int64_t offset, size_t bytes);

  static constexpr int64_t kAlignment = 16;

 private:
  gpu::Device& device_;
  std::string path_;
  void* memory_ = nullptr;
  size_t size_ = 0, mapped_ = 0;
  std::mutex mutex_;
  std::unique_ptr<gpu::Buffer> whole_;
  std::vector<std::unique_ptr<gpu::Buffer>> parts_;  // where the device takes no buffer of that size
};

// The device with all memory that outlives one session.
class Context {
 public:
  explicit Context(std::unique_ptr<gpu::Device> device) : device_(std::move(device)), allocations_(*device_) {}
  gpu::Device& device() { return *device_; }
  Allocations& allocations() { return allocations_; }
  std::shared_ptr<MappedFile> Open(const std::string& path);

 private:
  std::unique_ptr<gpu::Device> device_;
  Allocations allocations_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<MappedFile>> files_;
};

// A buffer that grows when asked for more; what it held is lost then.
class Growing {
 public:
  gpu::Buffer& AtLeast(gpu::Device& device, size_t bytes);
  size_t size() const { return buffer_ == nullptr ? 0 : buffer_->size(); }

 private:
  std::unique_ptr<gpu::Buffer> buffer_;
};

}  // namespace bitnet::metal

#endif  // BITNET_METAL_HOST_MEMORY_H_
