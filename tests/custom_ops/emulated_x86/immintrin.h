// Stands in for the compiler's header: the intrinsics that the x86 kernels use, from SIMDe in portable C.
#ifndef BITNET_TESTS_EMULATED_IMMINTRIN_H_
#define BITNET_TESTS_EMULATED_IMMINTRIN_H_

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
// All of AVX-512 would take four times as long to compile.
#include <simde/x86/avx512/add.h>
#include <simde/x86/avx512/and.h>
#include <simde/x86/avx512/dpbusd.h>
#include <simde/x86/avx512/load.h>
#include <simde/x86/avx512/loadu.h>
#include <simde/x86/avx512/madd.h>
#include <simde/x86/avx512/maddubs.h>
#include <simde/x86/avx512/set1.h>
#include <simde/x86/avx512/setzero.h>
#include <simde/x86/avx512/sll.h>
#include <simde/x86/avx512/srai.h>
#include <simde/x86/avx512/srli.h>
#include <simde/x86/avx512/store.h>

// The instruction under its AVX-VNNI name, which SIMDe does not have.
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

// SIMDe 0.7.4 gives this name to a function with four arguments, and does not have the next one at all.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

#undef _mm512_srai_epi32
#define _mm512_srai_epi32(a, count) EmulatedShiftRight32(a, count)
static inline simde__m512i EmulatedShiftRight32(simde__m512i a, int count) {
  simde__m512i_private lanes = simde__m512i_to_private(a);
  for (int i = 0; i < 16; ++i) {
    lanes.i32[i] >>= count;
  }
  return simde__m512i_from_private(lanes);
}

#endif  // BITNET_TESTS_EMULATED_IMMINTRIN_H_
