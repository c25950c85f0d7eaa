// The float kernels that go with the chosen integer kernels.
#include <cstring>

#include "float_kernels.h"

namespace bitnet {

const FloatKernels& ChosenFloatKernels() {
  [[maybe_unused]] const Kernels* chosen = ChosenKernels().kernels;
#if defined(BITNET_HAVE_AVX2)
  if (chosen != nullptr && std::strncmp(chosen->isa, "avx", 3) == 0) {
    return kAvx2FloatKernels;
  }
#elif defined(BITNET_HAVE_NEON)
  // All other names are extensions of NEON.
  if (chosen != nullptr && std::strcmp(chosen->isa, "scalar") != 0) {
    return kNeonFloatKernels;
  }
#endif
  return kScalarFloatKernels;
}

}  // namespace bitnet
