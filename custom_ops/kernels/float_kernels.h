// The float kernels of one instruction set: attention and gated activation.
#ifndef BITNET_KERNELS_FLOAT_KERNELS_H_
#define BITNET_KERNELS_FLOAT_KERNELS_H_

#include <string>
#include <type_traits>

#include "attention.h"
#include "gated.h"

namespace bitnet {

struct FloatKernels {
  const char* isa;
  // Sums over the keys from `begin` to `end`, at most kChunkKeys of them, for all rows of the block.
  void (*attend)(const AttentionBlock<float>&, int64_t begin, int64_t end, const Partial& sums);
  void (*attend_int8)(const AttentionBlock<int8_t>&, int64_t begin, int64_t end, const Partial& sums);
  // Adds the sums of a later chunk.
  void (*merge)(const Partial& sums, const Partial& later, int64_t rows, int64_t head_dim);
  // codes[i] = the integer nearest to x[i] * inverse[i], half to even, from -128 to 127; 127 for NaN. `count`
  // is a multiple of kHeadMultiple.
  void (*quantize)(const float* x, const float* inverse, int64_t count, int8_t* codes);
  // y[i] = act(gate[i]) * up[i]
  void (*gate)(Activation, const float* gate, const float* up, int64_t count, float* y);
};

extern const FloatKernels kScalarFloatKernels;
#if defined(BITNET_HAVE_AVX2)
extern const FloatKernels kAvx2FloatKernels;
#endif
#if defined(BITNET_HAVE_NEON)
extern const FloatKernels kNeonFloatKernels;
#endif

// `attend` or `attend_int8`.
template <typename T>
auto ChunkFunction(const FloatKernels& kernels) {
  if constexpr (std::is_same_v<T, float>) {
    return kernels.attend;
  } else {
    return kernels.attend_int8;
  }
}

// The kernels of the instruction set of `kernels`.
const FloatKernels& FloatKernelsFor(const Kernels& kernels);
// Those of the instruction set that `ChosenKernels` chose.
const FloatKernels& ChosenFloatKernels();

// What disagrees between `kernels` and the scalar twin; empty when nothing does.
std::string SelfTest(const FloatKernels& kernels);

}  // namespace bitnet

#endif  // BITNET_KERNELS_FLOAT_KERNELS_H_
