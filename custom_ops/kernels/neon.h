// The parts of the Arm kernels that need NEON only, which every 64-bit Arm processor has: all but the integer
// sums.
#ifndef BITNET_KERNELS_NEON_H_
#define BITNET_KERNELS_NEON_H_

#include "bitlinear.h"

namespace bitnet {

// The functions of `Kernels`. Within each 16 columns `QuantizeNeon` stores columns 0 4 8 12, 1 5 9 13, ...: the
// fours that stand side by side in the words of the weights.
void NormalizeNeon(const Linear& linear, const float* x, float* out);
void QuantizeNeon(const Linear& linear, const float* x, const Token& token);
// The panel with float activations.
void FloatPanelNeon(const Linear& linear, const Token* tokens, int64_t count, int64_t panel, float* y);

}  // namespace bitnet

#endif  // BITNET_KERNELS_NEON_H_
