// What the execution provider needs of a GPU, and no more. Metal implements it, and so does an emulation on the
// host that runs the same shader text, so that everything above this line is tested without Apple hardware.
//
// Errors are std::runtime_error, to be caught inside the provider.
#ifndef BITNET_METAL_DEVICE_H_
#define BITNET_METAL_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace bitnet::gpu {

enum class Kind { metal, emulation };

// Memory that both sides see. A fresh buffer holds anything.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* contents() = 0;
  virtual std::size_t size() const = 0;
};

// The value of one function constant (arguments.h); bools are 0 and 1.
struct Constant {
  std::uint32_t index;
  std::uint32_t value;
};

// A kernel with its function constants. Each kernel wants exactly those that arguments.h lists for it; more are
// ignored, a missing one is an error.
class Pipeline {
 public:
  virtual ~Pipeline() = default;
  virtual std::uint32_t max_threads() const = 0;  // of one threadgroup
};

struct Grid {
  std::uint32_t x = 1, y = 1, z = 1;
};

struct Binding {
  Buffer* buffer;
  std::size_t offset;  // bytes, a multiple of 4
};

// One batch. Dispatches run in order, and each sees what those before it wrote. Buffers and pipelines must
// outlive `wait`. Bindings stay from one dispatch to the next, until `use` takes another pipeline: that forgets
// them.
class Commands {
 public:
  virtual ~Commands() = default;
  virtual void use(const Pipeline& pipeline) = 0;
  virtual void buffer(std::uint32_t index, Binding binding) = 0;
  virtual void bytes(std::uint32_t index, const void* data, std::size_t size) = 0;  // at most 4096; copied
  virtual void threadgroup(std::uint32_t index, std::size_t bytes) = 0;
  virtual void dispatch(Grid threadgroups, Grid threads) = 0;
  virtual void commit() = 0;  // starts
  virtual void wait() = 0;    // until done; throws what the device reported
};

class Device {
 public:
  virtual ~Device() = default;
  virtual Kind kind() const = 0;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<Buffer> allocate(std::size_t bytes) = 0;
  // No copy: the start lies on a page, the size is a multiple of a page, and the memory outlives the buffer.
  virtual std::unique_ptr<Buffer> wrap(void* memory, std::size_t bytes) = 0;
  virtual std::shared_ptr<Pipeline> pipeline(const std::string& function,
                                             const std::vector<Constant>& constants) = 0;  // cached
  virtual std::unique_ptr<Commands> begin() = 0;
};

std::unique_ptr<Device> open_metal();      // macOS only
std::unique_ptr<Device> open_emulation();  // emulation/

}  // namespace bitnet::gpu

#endif  // BITNET_METAL_DEVICE_H_
