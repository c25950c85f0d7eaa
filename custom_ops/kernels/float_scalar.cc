// The float kernels, compiled for any processor.
#include "attention_kernel.h"
#include "float_kernels.h"
#include "gated_kernel.h"

namespace bitnet {

const FloatKernels kScalarFloatKernels = {"scalar", vec_scalar::Attend, vec_scalar::Merge, vec_scalar::GateFor};

}  // namespace bitnet
