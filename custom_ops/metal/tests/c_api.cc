// The emulation for tests that are written in Python: plain C entries over bitnet::gpu::Device.
#include <cstdio>
#include <exception>

#include "../arguments.h"
#include "../emulation/emulation.h"

using namespace bitnet::gpu;

namespace {

template <typename Function>
int Guarded(char* error, std::size_t error_bytes, Function function) {
  try {
    function();
    return 0;
  } catch (const std::exception& caught) {
    std::snprintf(error, error_bytes, "%s", caught.what());
    return 1;
  }
}

}  // namespace

extern "C" {

void* BitnetMetalOpen() { return open_emulation().release(); }
void BitnetMetalClose(void* device) { delete static_cast<Device*>(device); }
void BitnetMetalSeed(std::uint64_t seed) { bitnet::emulation::SetSeed(seed); }

void* BitnetMetalAllocate(void* device, std::size_t bytes) {
  return static_cast<Device*>(device)->allocate(bytes).release();
}
void* BitnetMetalContents(void* buffer) { return static_cast<Buffer*>(buffer)->contents(); }
void BitnetMetalFree(void* buffer) { delete static_cast<Buffer*>(buffer); }

// One dispatch, from `begin` to `wait`. Buffer `indices[i]` is `buffers[i]`; arguments are at index 0. 1 with a
// text in `error` if something was wrong.
int BitnetMetalRun(void* device, const char* kernel, const Constant* constants, std::size_t constant_count,
                   const std::uint32_t* indices, void* const* buffers, const std::size_t* offsets,
                   std::size_t buffer_count, const void* arguments, std::size_t argument_bytes,
                   const std::uint32_t* grid, std::uint32_t threads, char* error, std::size_t error_bytes) {
  return Guarded(error, error_bytes, [&] {
    Device& self = *static_cast<Device*>(device);
    const auto pipeline = self.pipeline(kernel, {constants, constants + constant_count});
    const auto commands = self.begin();
    commands->use(*pipeline);
    commands->bytes(0, arguments, argument_bytes);
    for (std::size_t i = 0; i < buffer_count; ++i) {
      commands->buffer(indices[i], {static_cast<Buffer*>(buffers[i]), offsets[i]});
    }
    commands->dispatch({grid[0], grid[1], grid[2]}, {threads, 1, 1});
    commands->commit();
    commands->wait();
  });
}

// Doubles one float twice in a first batch and once in a second, both committed and only the second waited for;
// `seen` is the float before the wait.
int BitnetMetalTwoBatches(void* device, void* buffer, float* seen, char* error, std::size_t error_bytes) {
  return Guarded(error, error_bytes, [&] {
    Device& self = *static_cast<Device*>(device);
    const auto pipeline = self.pipeline(
        "unary", {{kConstantSimdgroups, 1}, {kConstantHalf, 0}, {kConstantOperation, kUnaryScale}});
    const UnaryArguments arguments{1, 2.0f};
    const auto batch = [&](int count) {
      auto commands = self.begin();
      commands->use(*pipeline);
      commands->bytes(kUnaryArguments, &arguments, sizeof arguments);
      commands->buffer(kUnaryX, {static_cast<Buffer*>(buffer), 0});
      commands->buffer(kUnaryY, {static_cast<Buffer*>(buffer), 0});
      for (int i = 0; i < count; ++i) {
        commands->dispatch({1, 1, 1}, {32, 1, 1});
      }
      commands->commit();
      return commands;
    };
    const auto first = batch(2), second = batch(1);
    *seen = *static_cast<float*>(static_cast<Buffer*>(buffer)->contents());
    second->wait();
  });
}

}  // extern "C"
