// What the processor and the operating system say about themselves on x86; a file of its own so that a test can
// say something else.
#ifndef BITNET_KERNELS_X86_CPU_H_
#define BITNET_KERNELS_X86_CPU_H_

#include <cstdint>

namespace bitnet {

struct CpuidResult {
  uint32_t eax, ebx, ecx, edx;
};

CpuidResult Cpuid(uint32_t leaf, uint32_t subleaf);

// Register sets that the operating system saves: the low half of XCR0. Only for processors with OSXSAVE.
uint32_t EnabledState();

}  // namespace bitnet

#endif  // BITNET_KERNELS_X86_CPU_H_
