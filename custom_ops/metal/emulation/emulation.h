// What a test may change about the emulation.
#ifndef BITNET_METAL_EMULATION_EMULATION_H_
#define BITNET_METAL_EMULATION_EMULATION_H_

#include <cstdint>

#include "../device.h"

namespace bitnet::emulation {

// The order in which threads, SIMD groups and threadgroups run follows from the seed. At first it is that of
// the environment variable BITNET_ONNX_EMULATION_SEED, or 0.
void SetSeed(std::uint64_t seed);
std::uint64_t Seed();

}  // namespace bitnet::emulation

#endif  // BITNET_METAL_EMULATION_EMULATION_H_
