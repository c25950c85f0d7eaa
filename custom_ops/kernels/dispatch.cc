// The choice of kernels, made once in a process: what the processor has, what the environment asks for, and
// what the self-test says.
#include <cstdlib>
#include <cstring>

#include "bitlinear.h"
#include "float_kernels.h"

#if defined(BITNET_HAVE_AVX2)
#include "x86_cpu.h"
#endif

#if defined(BITNET_HAVE_DOTPROD)
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace bitnet {
namespace {

#if defined(BITNET_HAVE_AVX2)
bool AllOf(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

// The compilers' own builtin for this needs a run-time library that not every tool chain has.
bool CpuHasAvx2() {
  constexpr uint32_t kOsXsave = 1u << 27, kAvx = 1u << 28, kAvx2 = 1u << 5, kXmmAndYmm = 0x6;
  return Cpuid(0, 0).eax >= 7 && AllOf(Cpuid(1, 0).ecx, kOsXsave | kAvx) && AllOf(EnabledState(), kXmmAndYmm) &&
         AllOf(Cpuid(7, 0).ebx, kAvx2);
}
#endif

#if defined(BITNET_HAVE_AVXVNNI)
bool CpuHasAvxVnni() {
  constexpr uint32_t kAvxVnni = 1u << 4;
  return CpuHasAvx2() && Cpuid(7, 0).eax >= 1 && AllOf(Cpuid(7, 1).eax, kAvxVnni);
}
#endif

#if defined(BITNET_HAVE_AVX512)
// All parts that a compiler may use for the files; every processor with BW has the others.
bool CpuHasAvx512() {
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;
  constexpr uint32_t kMaskAndZmm = 0xE0;
  return CpuHasAvx2() && AllOf(EnabledState(), kMaskAndZmm) &&
         AllOf(Cpuid(7, 0).ebx, kF | kDq | kCd | kBw | kVl);
}
#endif

#if defined(BITNET_HAVE_AVX512VNNI)
bool CpuHasAvx512Vnni() {
  constexpr uint32_t kVnni = 1u << 11;
  return CpuHasAvx512() && AllOf(Cpuid(7, 0).ecx, kVnni);
}
#endif

#if defined(BITNET_HAVE_DOTPROD)
// One feature of an Arm processor under the names of the systems: a bit of an entry of the auxiliary vector for
// Linux and Android, a sysctl for Apple, and a number for Windows.
struct ArmFeature {
  unsigned long linux_entry;
  unsigned linux_bit;
  const char* apple_name;
  unsigned windows_number;
};

bool CpuHas([[maybe_unused]] const ArmFeature& feature) {
#if defined(_WIN32)
  return IsProcessorFeaturePresent(feature.windows_number) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature.apple_name, &value, &size, nullptr, 0) == 0 && value != 0;
#elif defined(__linux__)
  return (getauxval(feature.linux_entry) >> feature.linux_bit & 1) != 0;
#else
  return false;
#endif
}

// Written out: older headers do not name all of them. 16 is AT_HWCAP, 26 is AT_HWCAP2.
bool CpuHasDotprod() { return CpuHas({16, 20, "hw.optional.arm.FEAT_DotProd", 43}); }
#endif

#if defined(BITNET_HAVE_I8MM)
// The file is compiled for both, and uses both.
bool CpuHasI8mm() { return CpuHasDotprod() && CpuHas({26, 13, "hw.optional.arm.FEAT_I8MM", 66}); }
#endif

bool Always() { return true; }

struct Candidate {
  const Kernels* kernels;
  bool (*usable)();
};

// Best first; the last one is usable everywhere.
//
// On x86 the order follows the instructions for one product, and only then the width of the vectors: 512-bit
// vectors lowered the clock of the first processors that had them, those with `avx512` and nothing better.
// Later ones, which have `avx512vnni`, lose little or nothing by them.
constexpr Candidate kCandidates[] = {
#if defined(BITNET_HAVE_AVX512VNNI)
    {&kAvx512VnniKernels, CpuHasAvx512Vnni},
#endif
#if defined(BITNET_HAVE_AVXVNNI)
    {&kAvxVnniKernels, CpuHasAvxVnni},
#endif
#if defined(BITNET_HAVE_AVX512)
    {&kAvx512Kernels, CpuHasAvx512},
#endif
#if defined(BITNET_HAVE_AVX2)
    {&kAvx2Kernels, CpuHasAvx2},
#endif
#if defined(BITNET_HAVE_I8MM)
    {&kI8mmKernels, CpuHasI8mm},
#endif
#if defined(BITNET_HAVE_DOTPROD)
    {&kDotprodKernels, CpuHasDotprod},
#endif
#if defined(BITNET_HAVE_NEON)
    {&kNeonKernels, Always},
#endif
    {&kScalarKernels, Always},
};

std::string KnownIsas() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    names += (names.empty() ? "" : ", ") + std::string(candidate.kernels->isa);
  }
  return names;
}

// Test hooks: kernels that are wrong in one bit of one value, to show that the self-test sees it.
const Kernels* corrupted = nullptr;

void FlipLastBit(float* y) {
  uint32_t bits;
  std::memcpy(&bits, y, sizeof bits);
  bits ^= 1u;
  std::memcpy(y, &bits, sizeof bits);
}

void CorruptedPanels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
  corrupted->panels(linear, tokens, count, panels, y);
  FlipLastBit(y);
}

void CorruptedAttend(const AttentionBlock<float>& block, int64_t begin, int64_t end, const Partial& sums) {
  FloatKernelsFor(*corrupted).attend(block, begin, end, sums);
  FlipLastBit(sums.values);
}

// What disagrees between the kernels of one instruction set and the scalar ones; empty when nothing does.
std::string TestAll(const Kernels& kernels) {
  Kernels tested = kernels;
  FloatKernels tested_float = FloatKernelsFor(kernels);
  corrupted = &kernels;
  const char* corrupt = std::getenv("BITNET_ONNX_TEST_CORRUPT");
  if (corrupt != nullptr && std::strcmp(corrupt, "1") == 0) {
    tested.panels = CorruptedPanels;
  } else if (corrupt != nullptr && std::strcmp(corrupt, "float") == 0) {
    tested_float.attend = CorruptedAttend;
  }
  const std::string disagreement = SelfTest(tested);
  return disagreement.empty() ? SelfTest(tested_float) : disagreement;
}

Choice Choose() {
  Choice choice;
  const char* forced = std::getenv("BITNET_ONNX_ISA");
  if (forced != nullptr && *forced == '\0') {
    forced = nullptr;
  }
  for (const Candidate& candidate : kCandidates) {
    if (forced == nullptr ? candidate.usable() : std::strcmp(forced, candidate.kernels->isa) == 0) {
      if (!candidate.usable()) {
        choice.error = std::string("BITNET_ONNX_ISA is '") + forced + "', which this processor does not have";
        return choice;
      }
      choice.kernels = candidate.kernels;
      break;
    }
  }
  if (choice.kernels == nullptr) {
    choice.error = std::string("BITNET_ONNX_ISA is '") + forced + "'; known values are " + KnownIsas();
    return choice;
  }
  const std::string disagreement = TestAll(*choice.kernels);
  if (!disagreement.empty()) {
    choice.warning = std::string("bitnet-onnx: the ") + choice.kernels->isa +
                     " kernels fail their self-test (" + disagreement +
                     "); the slow scalar kernels are used instead";
    choice.kernels = &kScalarKernels;
  }
  return choice;
}

}  // namespace

const Choice& ChosenKernels() {
  static const Choice choice = Choose();
  return choice;
}

std::vector<const Kernels*> UsableKernels() {
  std::vector<const Kernels*> usable;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.usable()) {
      usable.push_back(candidate.kernels);
    }
  }
  return usable;
}

}  // namespace bitnet
