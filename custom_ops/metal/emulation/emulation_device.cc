// bitnet::gpu::Device on the host.
//
// As strict as a device may be: a batch runs when it is waited for and not before, fresh buffers are full of
// NaN, arguments are copies of their own, and every buffer is a heap allocation, so that AddressSanitizer sees
// what runs over its end.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "emulation.h"
#include "grid.h"

namespace bitnet::emulation {
namespace {

constexpr std::size_t kMaxArgumentBytes = 4096;
constexpr std::size_t kMaxThreadgroupBytes = 32768;
constexpr std::uint32_t kSimdgroupsConstant = 0;
constexpr std::size_t kAlignment = 64;

class HostBuffer : public gpu::Buffer {
 public:
  explicit HostBuffer(std::size_t bytes)
      : data_(::operator new(bytes, std::align_val_t{kAlignment})), bytes_(bytes), owned_(true) {
    std::memset(data_, 0xFF, bytes);
  }
  HostBuffer(void* memory, std::size_t bytes) : data_(memory), bytes_(bytes), owned_(false) {}
  ~HostBuffer() override {
    if (owned_) {
      ::operator delete(data_, std::align_val_t{kAlignment});
    }
  }
  void* contents() override { return data_; }
  std::size_t size() const override { return bytes_; }

 private:
  void* data_;
  std::size_t bytes_;
  bool owned_;
};

class HostPipeline : public gpu::Pipeline {
 public:
  HostPipeline(const Kernel& kernel, std::map<std::uint32_t, std::uint32_t> constants)
      : kernel_(kernel), constants_(std::move(constants)) {}
  std::uint32_t max_threads() const override { return kMaxThreads; }
  const Kernel& kernel() const { return kernel_; }
  void SetConstants() const {
    for (FunctionConstant* constant : kernel_.constants) {
      const auto found = constants_.find(constant->index);
      constant->set = found != constants_.end();
      constant->current = constant->set ? found->second : 0;
    }
  }
  void CheckThreads(gpu::Grid threads) const {
    const auto found = constants_.find(kSimdgroupsConstant);
    if (found != constants_.end() &&
        (threads.x != found->second * kSimdLanes || threads.y != 1 || threads.z != 1)) {
      throw std::runtime_error("kernel " + std::string(kernel_.name) + " is made for " +
                               std::to_string(found->second) + " SIMD groups and dispatched with {" +
                               std::to_string(threads.x) + ", " + std::to_string(threads.y) + ", " +
                               std::to_string(threads.z) + "} threads");
    }
  }

 private:
  const Kernel& kernel_;
  std::map<std::uint32_t, std::uint32_t> constants_;
};

struct Dispatch {
  const HostPipeline* pipeline = nullptr;
  GridRun run{};
  std::vector<std::shared_ptr<void>> arguments;  // what `bytes` has copied
};

struct Batch {
  std::vector<Dispatch> dispatches;
  bool done = false;
  std::string error;
};

// A test may want to see what becomes of an error: the environment variable names the kernel that fails.
void FailWhereAsked(const std::string& kernel) {
  const char* name = std::getenv("BITNET_ONNX_EMULATION_FAULT");
  if (name != nullptr && kernel == name) {
    throw std::runtime_error("kernel " + kernel + " fails as asked");
  }
}

// Batches run in the order in which they were committed.
class Queue {
 public:
  void Add(std::shared_ptr<Batch> batch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(std::move(batch));
  }

  void RunUntil(const Batch& last) {
    // Function constants and fibers are shared by all devices.
    static std::mutex running;
    const std::lock_guard<std::mutex> one(running);
    while (!last.done) {
      std::shared_ptr<Batch> batch;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (waiting_.empty()) {
          throw std::runtime_error("wait() without commit()");
        }
        batch = std::move(waiting_.front());
        waiting_.pop_front();
      }
      try {
        for (const Dispatch& dispatch : batch->dispatches) {
          FailWhereAsked(dispatch.pipeline->kernel().name);
          dispatch.pipeline->SetConstants();
          Run(dispatch.run, Seed());
        }
      } catch (const std::exception& error) {
        batch->error = error.what();
      }
      batch->dispatches.clear();
      batch->done = true;
    }
  }

 private:
  std::mutex mutex_;
  std::deque<std::shared_ptr<Batch>> waiting_;
};

class HostCommands : public gpu::Commands {
 public:
  explicit HostCommands(std::shared_ptr<Queue> queue)
      : queue_(std::move(queue)), batch_(std::make_shared<Batch>()) {}

  void use(const gpu::Pipeline& pipeline) override {
    next_ = {};
    next_.pipeline = dynamic_cast<const HostPipeline*>(&pipeline);
    if (next_.pipeline == nullptr) {
      throw std::runtime_error("the pipeline is of another device");
    }
    next_.run.kernel = &next_.pipeline->kernel();
  }

  void buffer(std::uint32_t index, gpu::Binding binding) override {
    CheckIndex(index);
    if (binding.buffer == nullptr || binding.offset % 4 != 0 || binding.offset > binding.buffer->size()) {
      throw std::runtime_error("buffer " + std::to_string(index) + " of kernel " + Name() +
                               " is bound at offset " + std::to_string(binding.offset) +
                               ": it must be a multiple of 4 within a buffer that is there");
    }
    next_.run.buffers[index] = static_cast<unsigned char*>(binding.buffer->contents()) + binding.offset;
  }

  void bytes(std::uint32_t index, const void* data, std::size_t size) override {
    CheckIndex(index);
    if (size == 0 || size > kMaxArgumentBytes) {
      throw std::runtime_error("argument " + std::to_string(index) + " of kernel " + Name() + " has " +
                               std::to_string(size) + " bytes: from 1 to 4096 are possible");
    }
    std::shared_ptr<void> copy(::operator new(size), [](void* memory) { ::operator delete(memory); });
    std::memcpy(copy.get(), data, size);
    next_.run.buffers[index] = copy.get();
    next_.arguments.push_back(std::move(copy));
  }

  void threadgroup(std::uint32_t index, std::size_t size) override {
    CheckIndex(index);
    if (size > kMaxThreadgroupBytes || size % 16 != 0) {
      throw std::runtime_error("threadgroup memory of kernel " + Name() + " has " + std::to_string(size) +
                               " bytes: multiples of 16 up to 32768 are possible");
    }
    next_.run.memory[index] = size;
  }

  void dispatch(gpu::Grid threadgroups, gpu::Grid threads) override {
    CheckIndex(0);
    next_.pipeline->CheckThreads(threads);
    next_.run.threadgroups = threadgroups;
    next_.run.threads = threads;
    batch_->dispatches.push_back(next_);
  }

  void commit() override {
    if (committed_) {
      throw std::runtime_error("commit() was called twice");
    }
    committed_ = true;
    queue_->Add(batch_);
  }

  void wait() override {
    queue_->RunUntil(*batch_);
    if (!batch_->error.empty()) {
      throw std::runtime_error(batch_->error);
    }
  }

 private:
  std::string Name() const { return next_.pipeline->kernel().name; }
  void CheckIndex(std::uint32_t index) const {
    if (next_.pipeline == nullptr) {
      throw std::runtime_error("no pipeline is in use");
    }
    if (committed_) {
      throw std::runtime_error("the batch has been committed");
    }
    if (index >= kMaxBindings) {
      throw std::runtime_error("buffer index " + std::to_string(index) + " of kernel " + Name() +
                               ": there are 0 to 30");
    }
  }

  std::shared_ptr<Queue> queue_;
  std::shared_ptr<Batch> batch_;
  Dispatch next_{};
  bool committed_ = false;
};

class HostDevice : public gpu::Device {
 public:
  gpu::Kind kind() const override { return gpu::Kind::emulation; }
  std::string name() const override { return "emulation on the host"; }
  std::unique_ptr<gpu::Buffer> allocate(std::size_t bytes) override {
    if (bytes == 0) {
      throw std::runtime_error("a buffer of 0 bytes");
    }
    return std::make_unique<HostBuffer>(bytes);
  }
  std::unique_ptr<gpu::Buffer> wrap(void* memory, std::size_t bytes) override {
    constexpr std::size_t kPage = 4096;
    if (memory == nullptr || bytes == 0 || reinterpret_cast<std::uintptr_t>(memory) % kPage != 0 ||
        bytes % kPage != 0) {
      throw std::runtime_error("wrap() wants whole pages: " + std::to_string(bytes) + " bytes are not");
    }
    return std::make_unique<HostBuffer>(memory, bytes);
  }
  std::shared_ptr<gpu::Pipeline> pipeline(const std::string& function,
                                          const std::vector<gpu::Constant>& constants) override {
    std::map<std::uint32_t, std::uint32_t> values;
    for (const gpu::Constant& constant : constants) {
      values[constant.index] = constant.value;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<gpu::Pipeline>& found = pipelines_[{function, values}];
    if (found == nullptr) {
      const Kernel* kernel = FindKernel(function);
      if (kernel == nullptr) {
        pipelines_.erase({function, values});
        throw std::runtime_error("there is no kernel " + function);
      }
      found = std::make_shared<HostPipeline>(*kernel, values);
    }
    return found;
  }
  std::unique_ptr<gpu::Commands> begin() override { return std::make_unique<HostCommands>(queue_); }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::string, std::map<std::uint32_t, std::uint32_t>>, std::shared_ptr<gpu::Pipeline>>
      pipelines_;
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
};

std::uint64_t& TheSeed() {
  static std::uint64_t seed = [] {
    const char* text = std::getenv("BITNET_ONNX_EMULATION_SEED");
    return text == nullptr ? std::uint64_t{0} : std::strtoull(text, nullptr, 10);
  }();
  return seed;
}

}  // namespace

void SetSeed(std::uint64_t seed) { TheSeed() = seed; }
std::uint64_t Seed() { return TheSeed(); }

}  // namespace bitnet::emulation

namespace bitnet::gpu {

std::unique_ptr<Device> open_emulation() { return std::make_unique<emulation::HostDevice>(); }

}  // namespace bitnet::gpu
