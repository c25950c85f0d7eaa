// The float kernels, compiled for AVX2.
#define BITNET_VEC_AVX2
#include "attention_kernel.h"
#include "float_kernels.h"
#include "gated_kernel.h"

namespace bitnet {

const FloatKernels kAvx2FloatKernels = {"avx2",          vec_avx2::Attend<float>, vec_avx2::Attend<int8_t>,
                                        vec_avx2::Merge, vec_avx2::Quantize,      vec_avx2::GateFor};

}  // namespace bitnet
