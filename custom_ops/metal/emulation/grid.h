// Kernels by name, and the run of one grid.
#ifndef BITNET_METAL_EMULATION_GRID_H_
#define BITNET_METAL_EMULATION_GRID_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "../device.h"
#include "threads.h"

namespace bitnet::emulation {

const Kernel* FindKernel(const std::string& name);

// One dispatch; memory of the threadgroup is in bytes by index.
struct GridRun {
  const Kernel* kernel;
  std::array<void*, kMaxBindings> buffers;
  std::array<std::size_t, kMaxBindings> memory;
  gpu::Grid threadgroups, threads;
};

// Throws std::runtime_error.
void Run(const GridRun& run, std::uint64_t seed);

}  // namespace bitnet::emulation

#endif  // BITNET_METAL_EMULATION_GRID_H_
