// The float kernels, compiled for any processor.
#include "attention_kernel.h"
#include "float_kernels.h"
#include "gated_kernel.h"

namespace bitnet {

const FloatKernels kScalarFloatKernels = {
    "scalar",          vec_scalar::Attend<float>, vec_scalar::Attend<int8_t>,
    vec_scalar::Merge, vec_scalar::Quantize,      vec_scalar::GateFor};

}  // namespace bitnet
