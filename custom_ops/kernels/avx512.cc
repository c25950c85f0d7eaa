// AVX-512 without VNNI: what avx2.cc does, in 512 bits.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "x86_512.h"
#include "x86_panel.h"

namespace bitnet {
namespace {

struct Avx512 : Vectors512, Sums16 {
  static Int Dot(Int sum, Int digits, Int q) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(digits, q)); }

  static Int AddQuarter(Int sum, Int quadruple) {
    return _mm512_add_epi16(sum, _mm512_srai_epi16(quadruple, 2));
  }

  static void Flush(Int sum, int shift, bool start, int32_t* to) {
    Store(_mm512_madd_epi16(sum, _mm512_set1_epi16(static_cast<int16_t>(1 << shift))), start, to);
  }
};

}  // namespace

const Kernels kAvx512Kernels = {"avx512", NormalizeAvx2, QuantizeAvx2, X86Panels<Avx512>};

}  // namespace bitnet
