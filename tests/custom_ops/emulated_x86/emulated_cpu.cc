// Takes the place of x86_cpu.cc: a processor with the features that EMULATED_CPU names, separated by spaces.
#include <cstdlib>
#include <sstream>
#include <string>

#include "kernels/x86_cpu.h"

namespace bitnet {
namespace {

bool Has(const char* feature) {
  const char* names = std::getenv("EMULATED_CPU");
  std::istringstream words(names == nullptr ? "" : names);
  for (std::string word; words >> word;) {
    if (word == feature) {
      return true;
    }
  }
  return false;
}

uint32_t Bit(int bit, const char* feature) { return Has(feature) ? 1u << bit : 0u; }

}  // namespace

// Intel's manual, volume 2, CPUID: "Structured Extended Feature Flags".
CpuidResult Cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidResult r{0, 0, 0, 0};
  if (leaf == 0) {
    r.eax = Has("no-leaf-7") ? 6 : 7;
  } else if (leaf == 1) {
    r.ecx = Bit(27, "osxsave") | Bit(28, "avx");
  } else if (leaf == 7 && subleaf == 0) {
    r.eax = Has("no-subleaf-1") ? 0 : 1;
    r.ebx = Bit(5, "avx2") | Bit(16, "avx512f") | Bit(17, "avx512dq") | Bit(28, "avx512cd") |
            Bit(30, "avx512bw") | Bit(31, "avx512vl");
    r.ecx = Bit(11, "avx512_vnni");
  } else if (leaf == 7 && subleaf == 1) {
    r.eax = Bit(4, "avx_vnni");
  }
  return r;
}

uint32_t EnabledState() {
  return 1u | Bit(1, "xmm") | Bit(2, "ymm") | Bit(5, "opmask") | Bit(6, "zmm") | Bit(7, "zmm16");
}

}  // namespace bitnet
