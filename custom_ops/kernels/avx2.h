// The parts of the AVX2 kernels that all x86 kernels share.
#ifndef BITNET_KERNELS_AVX2_H_
#define BITNET_KERNELS_AVX2_H_

#include "bitlinear.h"

namespace bitnet {

// The functions of `Kernels`. Within each 16 columns `QuantizeAvx2` stores columns 0 4 8 12, 1 5 9 13, ...: the
// fours that stand side by side in the words of the weights.
void NormalizeAvx2(const Linear& linear, const float* x, float* out);
void QuantizeAvx2(const Linear& linear, const float* x, const Token& token);
// The panel with float activations.
void FloatPanelAvx2(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y);

}  // namespace bitnet

#endif  // BITNET_KERNELS_AVX2_H_
