// AVX2: `vpmaddubsw`, whose 16-bit sums are flushed to 32 bits before they could overflow.
//
// Only intrinsics and local functions here, for the reason given in avx2_activations.cc.
#include "x86_256.h"
#include "x86_panel.h"

namespace bitnet {
namespace {

struct Avx2 : Vectors256, Sums16 {
  static Int Dot(Int sum, Int digits, Int q) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(digits, q)); }

  static Int AddQuarter(Int sum, Int quadruple) {
    return _mm256_add_epi16(sum, _mm256_srai_epi16(quadruple, 2));
  }

  static void Flush(Int sum, int shift, bool start, int32_t* to) {
    Store(_mm256_madd_epi16(sum, _mm256_set1_epi16(static_cast<int16_t>(1 << shift))), start, to);
  }
};

}  // namespace

const Kernels kAvx2Kernels = {"avx2", NormalizeAvx2, QuantizeAvx2, X86Panels<Avx2>};

}  // namespace bitnet
