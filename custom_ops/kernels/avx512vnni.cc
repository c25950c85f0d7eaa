// AVX-512 VNNI: `vpdpbusd` in 512 bits.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "x86_512.h"
#include "x86_panel.h"

namespace bitnet {
namespace {

struct Avx512Vnni : Vectors512, Sums32 {
  static Int Dot(Int sum, Int digits, Int q) { return _mm512_dpbusd_epi32(sum, digits, q); }

  static Int AddQuarter(Int sum, Int quadruple) {
    return _mm512_add_epi32(sum, _mm512_srai_epi32(quadruple, 2));
  }

  static void Flush(Int sum, int shift, bool start, int32_t* to) {
    Store(_mm512_sll_epi32(sum, _mm_cvtsi32_si128(shift)), start, to);
  }
};

}  // namespace

const Kernels kAvx512VnniKernels = {"avx512vnni", NormalizeAvx2, QuantizeAvx2, X86Panels<Avx512Vnni>};

}  // namespace bitnet
