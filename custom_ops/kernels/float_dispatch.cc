// The float kernels that go with the integer kernels.
#include <cstring>

#include "float_kernels.h"

namespace bitnet {

const FloatKernels& FloatKernelsFor([[maybe_unused]] const Kernels& kernels) {
#if defined(BITNET_HAVE_AVX2)
  if (std::strncmp(kernels.isa, "avx", 3) == 0) {
    return kAvx2FloatKernels;
  }
#elif defined(BITNET_HAVE_NEON)
  // All other names are extensions of NEON.
  if (std::strcmp(kernels.isa, "scalar") != 0) {
    return kNeonFloatKernels;
  }
#endif
  return kScalarFloatKernels;
}

const FloatKernels& ChosenFloatKernels() {
  const Kernels* chosen = ChosenKernels().kernels;
  return FloatKernelsFor(chosen == nullptr ? kScalarKernels : *chosen);
}

}  // namespace bitnet
