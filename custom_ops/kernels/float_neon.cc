// The float kernels, compiled for NEON.
#define BITNET_VEC_NEON
#include "attention_kernel.h"
#include "float_kernels.h"
#include "gated_kernel.h"

namespace bitnet {

const FloatKernels kNeonFloatKernels = {"neon",          vec_neon::Attend<float>, vec_neon::Attend<int8_t>,
                                        vec_neon::Merge, vec_neon::Quantize,      vec_neon::GateFor};

}  // namespace bitnet
