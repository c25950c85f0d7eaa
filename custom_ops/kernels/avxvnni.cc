// AVX-VNNI: `vpdpbusd` in 256 bits, for processors without AVX-512.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "x86_256.h"
#include "x86_panel.h"

namespace bitnet {
namespace {

struct AvxVnni : Vectors256, Sums32 {
  static Int Dot(Int sum, Int digits, Int q) { return _mm256_dpbusd_avx_epi32(sum, digits, q); }

  static Int AddQuarter(Int sum, Int quadruple) {
    return _mm256_add_epi32(sum, _mm256_srai_epi32(quadruple, 2));
  }

  static void Flush(Int sum, int shift, bool start, int32_t* to) {
    Store(_mm256_sll_epi32(sum, _mm_cvtsi32_si128(shift)), start, to);
  }
};

}  // namespace

const Kernels kAvxVnniKernels = {"avxvnni", NormalizeAvx2, QuantizeAvx2, X86Panels<AvxVnni>};

}  // namespace bitnet
