// bitnet::gpu::Device on Apple's Metal, by metal-cpp. It has been type-checked on Linux only:
// docs/metal-provider.md.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "metal/device.h"

namespace bitnet::gpu {

extern const char kShaders[];  // the text of all shaders; the build writes it

namespace {

template <typename T>
using Ref = NS::SharedPtr<T>;

// Objects that Cocoa returns without ownership live until the pool goes.
class Pool {
 public:
  Pool() : pool_(NS::AutoreleasePool::alloc()->init()) {}
  ~Pool() { pool_->release(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  NS::AutoreleasePool* pool_;
};

NS::String* Text(const std::string& text) { return NS::String::string(text.c_str(), NS::UTF8StringEncoding); }

std::string Describe(const NS::Error* error) {
  return error == nullptr ? "no reason is given" : error->localizedDescription()->utf8String();
}

MTL::Size SizeOf(Grid grid) { return MTL::Size::Make(grid.x, grid.y, grid.z); }

class MetalBuffer final : public Buffer {
 public:
  explicit MetalBuffer(Ref<MTL::Buffer> buffer) : buffer_(std::move(buffer)) {}
  void* contents() override { return buffer_->contents(); }
  std::size_t size() const override { return buffer_->length(); }
  const MTL::Buffer* get() const { return buffer_.get(); }

 private:
  Ref<MTL::Buffer> buffer_;
};

class MetalPipeline final : public Pipeline {
 public:
  MetalPipeline(std::string name, Ref<MTL::ComputePipelineState> state)
      : name_(std::move(name)), state_(std::move(state)) {}
  std::uint32_t max_threads() const override {
    return static_cast<std::uint32_t>(state_->maxTotalThreadsPerThreadgroup());
  }
  const std::string& name() const { return name_; }
  const MTL::ComputePipelineState* get() const { return state_.get(); }

 private:
  std::string name_;
  Ref<MTL::ComputePipelineState> state_;
};

class MetalCommands final : public Commands {
 public:
  explicit MetalCommands(MTL::CommandQueue& queue) {
    const Pool pool;
    buffer_ = NS::RetainPtr(queue.commandBuffer());
    if (!buffer_) {
      throw std::runtime_error("Metal gives no command buffer");
    }
    // Serial: each dispatch sees what those before it wrote.
    encoder_ = NS::RetainPtr(buffer_->computeCommandEncoder(MTL::DispatchTypeSerial));
    if (!encoder_) {
      throw std::runtime_error("Metal gives no command encoder");
    }
  }

  ~MetalCommands() override { End(); }

  void use(const Pipeline& pipeline) override {
    pipeline_ = &static_cast<const MetalPipeline&>(pipeline);
    encoder_->setComputePipelineState(pipeline_->get());
  }

  void buffer(std::uint32_t index, Binding binding) override {
    encoder_->setBuffer(static_cast<const MetalBuffer*>(binding.buffer)->get(), binding.offset, index);
  }

  void bytes(std::uint32_t index, const void* data, std::size_t size) override {
    encoder_->setBytes(data, size, index);
  }

  void threadgroup(std::uint32_t index, std::size_t bytes) override {
    encoder_->setThreadgroupMemoryLength(bytes, index);
  }

  void dispatch(Grid threadgroups, Grid threads) override {
    const std::uint64_t count = std::uint64_t{threads.x} * threads.y * threads.z;
    if (count > pipeline_->max_threads()) {
      throw std::runtime_error("kernel " + pipeline_->name() + " has at most " +
                               std::to_string(pipeline_->max_threads()) +
                               " threads in a threadgroup on this GPU, not " + std::to_string(count));
    }
    encoder_->dispatchThreadgroups(SizeOf(threadgroups), SizeOf(threads));
  }

  void commit() override {
    End();
    buffer_->commit();
  }

  void wait() override {
    const Pool pool;
    buffer_->waitUntilCompleted();
    if (buffer_->status() == MTL::CommandBufferStatusError) {
      throw std::runtime_error("Metal reports: " + Describe(buffer_->error()));
    }
  }

 private:
  // An encoder must be ended before it goes, whatever has happened.
  void End() {
    if (!ended_) {
      ended_ = true;
      encoder_->endEncoding();
    }
  }

  Ref<MTL::CommandBuffer> buffer_;
  Ref<MTL::ComputeCommandEncoder> encoder_;
  const MetalPipeline* pipeline_ = nullptr;
  bool ended_ = false;
};

class MetalDevice final : public Device {
 public:
  MetalDevice() {
    const Pool pool;
    device_ = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
    if (!device_) {
      throw std::runtime_error("this machine has no Metal device");
    }
    // simdgroup_matrix is there from the M1 on, and everything here counts on one memory.
    if (!device_->supportsFamily(MTL::GPUFamilyApple7) || !device_->hasUnifiedMemory()) {
      throw std::runtime_error(name() + " is no GPU of Apple silicon: the shaders need one");
    }
    queue_ = NS::TransferPtr(device_->newCommandQueue());
    if (!queue_) {
      throw std::runtime_error("Metal gives no command queue");
    }
    const Ref<MTL::CompileOptions> options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
    // The contract fixes every rounding.
    options->setFastMathEnabled(false);
    options->setLanguageVersion(MTL::LanguageVersion3_0);
    NS::Error* error = nullptr;
    library_ = NS::TransferPtr(device_->newLibrary(Text(kShaders), options.get(), &error));
    if (!library_) {
      throw std::runtime_error("Metal does not compile the shaders: " + Describe(error));
    }
  }

  Kind kind() const override { return Kind::metal; }

  std::string name() const override {
    const Pool pool;
    return device_->name()->utf8String();
  }

  std::unique_ptr<Buffer> allocate(std::size_t bytes) override {
    return Own(device_->newBuffer(bytes, MTL::ResourceStorageModeShared), bytes);
  }

  std::unique_ptr<Buffer> wrap(void* memory, std::size_t bytes) override {
    // With a deallocator, were it none: without that argument the memory would be copied.
    return Own(device_->newBuffer(memory, bytes, MTL::ResourceStorageModeShared, nullptr), bytes);
  }

  std::shared_ptr<Pipeline> pipeline(const std::string& function,
                                     const std::vector<Constant>& constants) override {
    std::map<std::uint32_t, std::uint32_t> values;
    for (const Constant& constant : constants) {
      values[constant.index] = constant.value;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<Pipeline>& found = pipelines_[{function, values}];
    if (found == nullptr) {
      found = Make(function, values);
    }
    return found;
  }

  std::unique_ptr<Commands> begin() override { return std::make_unique<MetalCommands>(*queue_.get()); }

 private:
  static std::unique_ptr<Buffer> Own(MTL::Buffer* buffer, std::size_t bytes) {
    if (buffer == nullptr) {
      throw std::runtime_error("Metal gives no buffer of " + std::to_string(bytes) + " bytes");
    }
    return std::make_unique<MetalBuffer>(NS::TransferPtr(buffer));
  }

  std::shared_ptr<Pipeline> Make(const std::string& function,
                                 const std::map<std::uint32_t, std::uint32_t>& constants) {
    const Pool pool;
    const Ref<MTL::FunctionConstantValues> values =
        NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
    for (const auto& [index, value] : constants) {
      values->setConstantValue(&value, MTL::DataTypeUInt, NS::UInteger{index});
    }
    NS::Error* error = nullptr;
    const Ref<MTL::Function> made =
        NS::TransferPtr(library_->newFunction(Text(function), values.get(), &error));
    if (!made) {
      throw std::runtime_error("Metal makes no function " + function + ": " + Describe(error));
    }
    Ref<MTL::ComputePipelineState> state =
        NS::TransferPtr(device_->newComputePipelineState(made.get(), &error));
    if (!state) {
      throw std::runtime_error("Metal makes no pipeline of " + function + ": " + Describe(error));
    }
    return std::make_shared<MetalPipeline>(function, std::move(state));
  }

  Ref<MTL::Device> device_;
  Ref<MTL::CommandQueue> queue_;
  Ref<MTL::Library> library_;
  std::mutex mutex_;
  std::map<std::pair<std::string, std::map<std::uint32_t, std::uint32_t>>, std::shared_ptr<Pipeline>>
      pipelines_;
};

}  // namespace

std::unique_ptr<Device> open_metal() { return std::make_unique<MetalDevice>(); }

}  // namespace bitnet::gpu
