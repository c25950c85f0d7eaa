// What the machine allows: memory read and 8-bit products by themselves, measured beside the kernels. One call
// keeps one thread busy; the caller starts as many threads as it wants and adds up the rates.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if (defined(__x86_64__) && defined(__GNUC__)) || (defined(_M_X64) && defined(__AVX2__))
#define BITNET_ROOFLINE_X86
#include <immintrin.h>
#if !defined(_MSC_VER)
#include <cpuid.h>
#endif
#endif

#if defined(_WIN32)
#define BITNET_EXPORT extern "C" __declspec(dllexport)
#else
#define BITNET_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__GNUC__) && defined(BITNET_ROOFLINE_X86)
#define BITNET_TARGET_AVX2 __attribute__((target("avx2")))
#else
#define BITNET_TARGET_AVX2
#endif

// GCC otherwise stores chains to the stack in every turn.
#if defined(__GNUC__)
#define BITNET_KEEP_IN_REGISTERS(a, b, c, d, e, f, g, h, i, j) \
  __asm__ volatile(""                                          \
                   : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f), "+x"(g), "+x"(h), "+x"(i), "+x"(j))
#else
#define BITNET_KEEP_IN_REGISTERS(...)
#endif

namespace {

using Clock = std::chrono::steady_clock;

// Results go here, or the compiler would drop the loops.
thread_local volatile uint64_t sink;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Bytes read from one stream before the next has its turn.
constexpr size_t kStep = 256;

// These return the sum of `kStreams` runs of memory that are read side by side. Prefetchers follow several at
// once, and one at a time does not fill the memory's queue on every processor.
template <size_t kStreams>
uint64_t SumPortable(const uint8_t* data, size_t bytes) {
  const size_t share = bytes / kStreams;
  uint64_t sums[kStep / sizeof(uint64_t)] = {};
  for (size_t at = 0; at + kStep <= share; at += kStep) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      for (size_t i = 0; i < kStep / sizeof(uint64_t); ++i) {
        uint64_t word;
        std::memcpy(&word, data + stream * share + at + i * sizeof word, sizeof word);
        sums[i] += word;
      }
    }
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) {
    total += sum;
  }
  return total;
}

#if defined(BITNET_ROOFLINE_X86)
bool HasAvx2() {
#if defined(_MSC_VER)
  return true;  // compiled for it
#else
  // The compilers' own builtin for this needs a run-time library that not every tool chain has.
  constexpr unsigned kOsXsave = 1u << 27, kAvx = 1u << 28, kAvx2 = 1u << 5, kXmmAndYmm = 6;
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & (kOsXsave | kAvx)) != (kOsXsave | kAvx)) {
    return false;
  }
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kXmmAndYmm) == kXmmAndYmm && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (ebx & kAvx2) != 0;
#endif
}

template <size_t kStreams>
BITNET_TARGET_AVX2 uint64_t SumAvx2(const uint8_t* data, size_t bytes) {
  const size_t share = bytes / kStreams;
  __m256i sums[kStep / 32] = {};
  for (size_t at = 0; at + kStep <= share; at += kStep) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      for (size_t i = 0; i < kStep / 32; ++i) {
        const uint8_t* from = data + stream * share + at + 32 * i;
        sums[i] = _mm256_add_epi64(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      }
    }
  }
  __m256i total = sums[0];
  for (size_t i = 1; i < kStep / 32; ++i) {
    total = _mm256_add_epi64(total, sums[i]);
  }
  uint64_t lanes[4];
  std::memcpy(lanes, &total, sizeof lanes);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// Ten chains hide the latency of every processor in use and still fit the registers, as variables of their own:
// compilers keep an array in memory.
constexpr int kChains = 10;

BITNET_TARGET_AVX2 void MultiplyAdds(int64_t count) {
  const __m256i one = _mm256_set1_epi8(1);
  __m256i a = one, b = _mm256_set1_epi8(2), c = _mm256_set1_epi8(3), d = _mm256_set1_epi8(4);
  __m256i e = _mm256_set1_epi8(5), f = _mm256_set1_epi8(6), g = _mm256_set1_epi8(7), h = _mm256_set1_epi8(8);
  __m256i i = _mm256_set1_epi8(9), j = _mm256_set1_epi8(10);
  for (int64_t n = 0; n < count; ++n) {
    a = _mm256_maddubs_epi16(a, one);
    b = _mm256_maddubs_epi16(b, one);
    c = _mm256_maddubs_epi16(c, one);
    d = _mm256_maddubs_epi16(d, one);
    e = _mm256_maddubs_epi16(e, one);
    f = _mm256_maddubs_epi16(f, one);
    g = _mm256_maddubs_epi16(g, one);
    h = _mm256_maddubs_epi16(h, one);
    i = _mm256_maddubs_epi16(i, one);
    j = _mm256_maddubs_epi16(j, one);
    BITNET_KEEP_IN_REGISTERS(a, b, c, d, e, f, g, h, i, j);
  }
  // Different starts and a use of every result: otherwise the chains would be made one, or none.
  const __m256i x = _mm256_xor_si256(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)),
                                     _mm256_xor_si256(_mm256_xor_si256(e, f), _mm256_xor_si256(g, h)));
  sink = static_cast<uint64_t>(_mm256_extract_epi64(_mm256_xor_si256(x, _mm256_xor_si256(i, j)), 0));
}
#endif

template <size_t kStreams>
uint64_t Sum(const uint8_t* data, size_t bytes) {
#if defined(BITNET_ROOFLINE_X86)
  if (HasAvx2()) {
    return SumAvx2<kStreams>(data, bytes);
  }
#endif
  return SumPortable<kStreams>(data, bytes);
}

template <size_t kStreams>
double ReadRate(const uint8_t* data, size_t bytes, double seconds) {
  const auto start = Clock::now();
  double read = 0, elapsed = 0;
  do {
    sink = Sum<kStreams>(data, bytes);
    read += static_cast<double>(bytes / kStreams / kStep * kStep * kStreams);
    elapsed = SecondsSince(start);
  } while (elapsed < seconds);
  return read / elapsed;
}

}  // namespace

// Bytes a second that this thread reads from `data` in one stream, over whole passes of at least `seconds`.
BITNET_EXPORT double BitnetRooflineRead(const uint8_t* data, size_t bytes, double seconds) {
  return ReadRate<1>(data, bytes, seconds);
}

// The same in four streams.
BITNET_EXPORT double BitnetRooflineReadStreams(const uint8_t* data, size_t bytes, double seconds) {
  return ReadRate<4>(data, bytes, seconds);
}

// 8-bit products a second that this thread issues with `vpmaddubsw`; 0 where the processor has no such thing.
BITNET_EXPORT double BitnetRooflineMultiplyAdds(double seconds) {
#if defined(BITNET_ROOFLINE_X86)
  if (HasAvx2()) {
    constexpr int64_t kCount = 100000;
    const auto start = Clock::now();
    double products = 0, elapsed = 0;
    do {
      MultiplyAdds(kCount);
      products += static_cast<double>(kCount) * kChains * 32;
      elapsed = SecondsSince(start);
    } while (elapsed < seconds);
    return products / elapsed;
  }
#endif
  static_cast<void>(seconds);
  return 0;
}
