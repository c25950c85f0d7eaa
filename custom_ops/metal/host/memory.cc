#include "metal/host/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <stdexcept>

namespace bitnet::metal {
namespace {

size_t ToPages(size_t bytes) { return (bytes + PageSize() - 1) / PageSize() * PageSize(); }

// What tells one state of a file from another.
std::string Identity(const std::string& path, const struct stat& status) {
  return path + ":" + std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino) + ":" +
         std::to_string(status.st_size) + ":" + std::to_string(status.st_mtime);
}

[[noreturn]] void FailFile(const std::string& path, const char* what) {
  throw std::runtime_error(path + ": " + what + ": " + std::strerror(errno));
}

}  // namespace

size_t PageSize() {
  static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

void* Allocations::Allocate(size_t bytes) {
  std::unique_ptr<gpu::Buffer> buffer = device_.allocate(std::max<size_t>(bytes, 1));
  void* const memory = buffer->contents();
  const std::lock_guard<std::mutex> lock(mutex_);
  buffers_[reinterpret_cast<uintptr_t>(memory) + buffer->size() - 1] = std::move(buffer);
  return memory;
}

void Allocations::Free(void* memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = buffers_.lower_bound(reinterpret_cast<uintptr_t>(memory));
  if (found != buffers_.end() && found->second->contents() == memory) {
    buffers_.erase(found);
  }
}

gpu::Binding Allocations::Find(const void* memory, size_t bytes) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const auto found = buffers_.lower_bound(address);
  if (memory == nullptr || found == buffers_.end()) {
    return {nullptr, 0};
  }
  gpu::Buffer& buffer = *found->second;
  const auto start = reinterpret_cast<uintptr_t>(buffer.contents());
  if (address < start || buffer.size() < bytes || address - start > buffer.size() - bytes ||
      (address - start) % 4 != 0) {
    return {nullptr, 0};
  }
  return {&buffer, address - start};
}

MappedFile::MappedFile(gpu::Device& device, const std::string& path) : device_(device), path_(path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    FailFile(path, "cannot be opened");
  }
  struct stat status{};
  if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    size_ = static_cast<size_t>(status.st_size);
    mapped_ = ToPages(size_);
    memory_ = mmap(nullptr, mapped_, PROT_READ, MAP_SHARED, file, 0);
  }
  close(file);
  if (mapped_ == 0) {
    throw std::runtime_error(path + ": not a file with anything in it");
  }
  if (memory_ == MAP_FAILED) {
    memory_ = nullptr;
    FailFile(path, "cannot be mapped");
  }
}

MappedFile::~MappedFile() {
  parts_.clear();
  whole_.reset();
  if (memory_ != nullptr) {
    munmap(memory_, mapped_);
  }
}

const void* MappedFile::At(int64_t offset, size_t bytes) const {
  if (offset < 0 || static_cast<uint64_t>(offset) > size_ || bytes > size_ - static_cast<size_t>(offset)) {
    throw std::runtime_error(path_ + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                             " are not in the file, which has " + std::to_string(size_));
  }
  return static_cast<const char*>(memory_) + offset;
}

gpu::Binding MappedFile::Bind(int64_t offset, size_t bytes) {
  At(offset, bytes);
  const auto start = static_cast<size_t>(offset);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (whole_ == nullptr && parts_.empty()) {
    try {
      whole_ = device_.wrap(memory_, mapped_);
    } catch (const std::runtime_error&) {
      // Larger than one buffer may be.
    }
  }
  if (whole_ != nullptr) {
    return {whole_.get(), start};
  }
  const size_t first = start / PageSize() * PageSize();
  parts_.push_back(device_.wrap(static_cast<char*>(memory_) + first, ToPages(start + bytes - first)));
  return {parts_.back().get(), start - first};
}

std::shared_ptr<MappedFile> Context::Open(const std::string& path) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    FailFile(path, "cannot be read");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto file = files_.begin(); file != files_.end();) {
    file = file->second.expired() ? files_.erase(file) : std::next(file);
  }
  std::weak_ptr<MappedFile>& known = files_[Identity(path, status)];
  std::shared_ptr<MappedFile> file = known.lock();
  if (file == nullptr) {
    file = std::make_shared<MappedFile>(device(), path);
    known = file;
  }
  return file;
}

gpu::Buffer& Growing::AtLeast(gpu::Device& device, size_t bytes) {
  if (buffer_ == nullptr || buffer_->size() < bytes) {
    const size_t more = std::max({bytes, size() * 3 / 2, PageSize()});
    buffer_.reset();
    buffer_ = device.allocate(ToPages(more));
  }
  return *buffer_;
}

}  // namespace bitnet::metal
