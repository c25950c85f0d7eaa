// Integer sums of one panel on x86, written once for all its vector sets.
//
// V is a vector set: its vectors (x86_256.h, x86_512.h), how long its sums last before they must be flushed
// (`Sums16`, `Sums32`), how digits meet activations (`Dot`), and how its sums get to memory: `AddQuarter(sum,
// quadruple)` is sum + quadruple / 4, which leaves no rest, and `Flush` multiplies by 2^shift.
//
// A digit is a part of a weight that is an unsigned byte: two bits, a nibble, or the whole byte where V's
// products can hold it. `Get<F>` gives the digits of columns F, 4 + F, 8 + F and 12 + F of a unit, the four
// that stand together in the activations; its argument is the word of the first of V::kRows rows in the unit's
// first block.
//
// In the innermost loops every sum is a variable of its own, and the functions are not inlined: GCC moves the
// elements of arrays and structs to memory when loops that index them are unrolled, which costs a third of the
// speed.
#ifndef BITNET_KERNELS_X86_PANEL_H_
#define BITNET_KERNELS_X86_PANEL_H_

#include "avx2.h"
#include "panel.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define BITNET_NOINLINE __declspec(noinline)
#else
#define BITNET_NOINLINE __attribute__((noinline))
#endif

namespace bitnet {
namespace {

constexpr int64_t kManyRows = 4;  // rows of activations from which on unpacking once pays

// Units that are unpacked at a time: ten kilobytes of digits, to stay in the first cache with the activations.
template <class V>
constexpr int64_t kChunkUnits = 160 / V::kRows;

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Vector sets with `vpmaddubsw`: what goes into one 16-bit sum must stay below 2^15.
struct Sums16 {
  static constexpr bool kWholeBytes = false;
  // A sum gains at most 2 * 2 * 12 * 128 = 6144 from one unit.
  static constexpr int64_t kUnitsPerCodeFlush = 5;

  // A sum gains at most 4 * 2 * kLargest * 128 from one unit.
  template <class D>
  static constexpr int64_t UnitsPerFlush() {
    return 32767 / (4 * 2 * D::kLargest * 128);
  }
};

// Vector sets with `vpdpbusd`, whose sums have 32 bits.
struct Sums32 {
  static constexpr bool kWholeBytes = true;
  // A sum gains at most 2 * 4 * 12 * 128 = 12288 from one unit.
  static constexpr int64_t kUnitsPerCodeFlush = 2147483647 / 12288;

  // The whole row: its sum fits 32 bits, or `Validate` would not have let it pass.
  template <class D>
  static constexpr int64_t UnitsPerFlush() {
    return int64_t{1} << 31;
  }
};

// Two-bit weights, and the upper two bits of six: block B.
template <class V, int B>
struct Code {
  static constexpr int kLargest = 3;
  template <int F>
  static inline typename V::Int Get(const uint8_t* w) {
    return V::And(V::template ShiftRight<2 * F>(V::Load(w + B * kBlockBytes)), V::Bytes(3));
  }
};

// Four-bit weights, and the lower four bits of six.
template <class V>
struct Nibble {
  static constexpr int kLargest = 15;
  template <int F>
  static inline typename V::Int Get(const uint8_t* w) {
    return V::And(V::template ShiftRight<F % 2 * 4>(V::Load(w + F / 2 * kBlockBytes)), V::Bytes(15));
  }
};

// One half of eight-bit weights.
template <class V, int Shift>
struct HalfByte {
  static constexpr int kLargest = 15;
  template <int F>
  static inline typename V::Int Get(const uint8_t* w) {
    return V::And(V::template ShiftRight<Shift>(V::Load(w + F * kBlockBytes)), V::Bytes(15));
  }
};

// Eight-bit weights whole.
template <class V>
struct Byte {
  static constexpr int kLargest = 255;
  template <int F>
  static inline typename V::Int Get(const uint8_t* w) {
    return V::Load(w + F * kBlockBytes);
  }
};

// To GCC an instruction that changes the sum in its place: it would else copy sums between registers, and some
// to memory, in every round of a loop.
template <class Int>
inline void Keep([[maybe_unused]] Int& sum) {
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX2__)
  __asm__("" : "+v"(sum));
#endif
}

template <class V>
inline typename V::Int Zero() {
  typename V::Int sum = V::Zero();
  Keep(sum);
  return sum;
}

template <class V>
inline void Add(typename V::Int digits, typename V::Int q, typename V::Int& sum) {
  sum = V::Dot(sum, digits, q);
  Keep(sum);
}

// The sums of four vectors, in memory: weight times a sum is stored or added.
template <class V>
inline void Flush(typename V::Int a, typename V::Int b, typename V::Int c, typename V::Int d, int shift,
                  bool start, int32_t* to) {
  V::Flush(a, shift, start, to);
  V::Flush(b, shift, start, to + V::kRows);
  V::Flush(c, shift, start, to + 2 * V::kRows);
  V::Flush(d, shift, start, to + 3 * V::kRows);
}

// One step for one row of activations: columns F, 4 + F, ... of four vectors of rows.
template <class V, class D, int F>
inline void Step(const uint8_t* w, const int8_t* q, typename V::Int& a, typename V::Int& b, typename V::Int& c,
                 typename V::Int& d) {
  const typename V::Int four = V::Four(q + 4 * F);
  Add<V>(D::template Get<F>(w), four, a);
  Add<V>(D::template Get<F>(w + 4 * V::kRows), four, b);
  Add<V>(D::template Get<F>(w + 8 * V::kRows), four, c);
  Add<V>(D::template Get<F>(w + 12 * V::kRows), four, d);
}

// The same for two.
template <class V, class D, int F>
inline void Step2(const uint8_t* w, const int8_t* q0, const int8_t* q1, typename V::Int& a0,
                  typename V::Int& b0, typename V::Int& c0, typename V::Int& d0, typename V::Int& a1,
                  typename V::Int& b1, typename V::Int& c1, typename V::Int& d1) {
  const typename V::Int first = V::Four(q0 + 4 * F), second = V::Four(q1 + 4 * F);
  const typename V::Int a = D::template Get<F>(w);
  Add<V>(a, first, a0);
  Add<V>(a, second, a1);
  const typename V::Int b = D::template Get<F>(w + 4 * V::kRows);
  Add<V>(b, first, b0);
  Add<V>(b, second, b1);
  const typename V::Int c = D::template Get<F>(w + 8 * V::kRows);
  Add<V>(c, first, c0);
  Add<V>(c, second, c1);
  const typename V::Int d = D::template Get<F>(w + 12 * V::kRows);
  Add<V>(d, first, d0);
  Add<V>(d, second, d1);
}

// Units of one strip of rows, straight from the packed weights, meet one row of activations.
template <class V, class D>
BITNET_NOINLINE void MultiplyPacked(const uint8_t* w, int64_t unit_bytes, int64_t units, const int8_t* q,
                                    int shift, bool start, int32_t* sums) {
  using Int = typename V::Int;
  for (int64_t first = 0; first < units; first += V::template UnitsPerFlush<D>()) {
    Int a = Zero<V>(), b = Zero<V>(), c = Zero<V>(), d = Zero<V>();
    const int64_t last = Min(first + V::template UnitsPerFlush<D>(), units);
    for (int64_t u = first; u < last; ++u) {
      const uint8_t* unit = w + u * unit_bytes;
      Step<V, D, 0>(unit, q + u * kStep, a, b, c, d);
      Step<V, D, 1>(unit, q + u * kStep, a, b, c, d);
      Step<V, D, 2>(unit, q + u * kStep, a, b, c, d);
      Step<V, D, 3>(unit, q + u * kStep, a, b, c, d);
    }
    Flush<V>(a, b, c, d, shift, start && first == 0, sums);
  }
}

template <class V, int Shift>
inline void CodeStep(const uint8_t* words, const int8_t* q, typename V::Int low, typename V::Int high,
                     typename V::Int& a, typename V::Int& b, typename V::Int& c, typename V::Int& d,
                     typename V::Int& a4, typename V::Int& b4, typename V::Int& c4, typename V::Int& d4) {
  using Int = typename V::Int;
  const Int first = V::Four(q), second = V::Four(q + 4);
  const Int wa = V::template ShiftRight<Shift>(V::Load(words));
  Add<V>(V::And(wa, low), first, a);
  Add<V>(V::And(wa, high), second, a4);
  const Int wb = V::template ShiftRight<Shift>(V::Load(words + 4 * V::kRows));
  Add<V>(V::And(wb, low), first, b);
  Add<V>(V::And(wb, high), second, b4);
  const Int wc = V::template ShiftRight<Shift>(V::Load(words + 8 * V::kRows));
  Add<V>(V::And(wc, low), first, c);
  Add<V>(V::And(wc, high), second, c4);
  const Int wd = V::template ShiftRight<Shift>(V::Load(words + 12 * V::kRows));
  Add<V>(V::And(wd, low), first, d);
  Add<V>(V::And(wd, high), second, d4);
}

// The same for codes of two bits with fewer shifts: every other column's code stays where it is, worth four
// times as much, with sums of its own that are divided at the end.
template <class V, int B>
BITNET_NOINLINE void MultiplyCodes(const uint8_t* w, int64_t unit_bytes, int64_t units, const int8_t* q,
                                   int shift, bool start, int32_t* sums) {
  using Int = typename V::Int;
  const Int low = V::Bytes(3), high = V::Bytes(12);
  for (int64_t first = 0; first < units; first += V::kUnitsPerCodeFlush) {
    Int a = Zero<V>(), b = Zero<V>(), c = Zero<V>(), d = Zero<V>(), a4 = Zero<V>(), b4 = Zero<V>(),
        c4 = Zero<V>(), d4 = Zero<V>();
    const int64_t last = Min(first + V::kUnitsPerCodeFlush, units);
    for (int64_t u = first; u < last; ++u) {
      const uint8_t* unit = w + u * unit_bytes;
      const uint8_t* words = unit + B * kBlockBytes;
      CodeStep<V, 0>(words, q + u * kStep, low, high, a, b, c, d, a4, b4, c4, d4);
      CodeStep<V, 4>(words, q + u * kStep + 8, low, high, a, b, c, d, a4, b4, c4, d4);
    }
    Flush<V>(V::AddQuarter(a, a4), V::AddQuarter(b, b4), V::AddQuarter(c, c4), V::AddQuarter(d, d4), shift,
             start && first == 0, sums);
  }
}

// Two rows of activations.
template <class V, class D>
BITNET_NOINLINE void MultiplyPacked2(const uint8_t* w, int64_t unit_bytes, int64_t units, const int8_t* q0,
                                     const int8_t* q1, int shift, bool start, int32_t* sums0, int32_t* sums1) {
  using Int = typename V::Int;
  for (int64_t first = 0; first < units; first += V::template UnitsPerFlush<D>()) {
    Int a0 = Zero<V>(), b0 = Zero<V>(), c0 = Zero<V>(), d0 = Zero<V>(), a1 = Zero<V>(), b1 = Zero<V>(),
        c1 = Zero<V>(), d1 = Zero<V>();
    const int64_t last = Min(first + V::template UnitsPerFlush<D>(), units);
    for (int64_t u = first; u < last; ++u) {
      const uint8_t* unit = w + u * unit_bytes;
      const int8_t *p0 = q0 + u * kStep, *p1 = q1 + u * kStep;
      Step2<V, D, 0>(unit, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 1>(unit, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 2>(unit, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 3>(unit, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
    }
    Flush<V>(a0, b0, c0, d0, shift, start && first == 0, sums0);
    Flush<V>(a1, b1, c1, d1, shift, start && first == 0, sums1);
  }
}

// Four vectors of digits for each four columns, unpacked.
template <class V>
struct Quad {
  typename V::Int a, b, c, d;
};

template <class V, class D, int F>
inline void Unpack(const uint8_t* w, Quad<V>* to) {
  to[F] = {D::template Get<F>(w), D::template Get<F>(w + 4 * V::kRows), D::template Get<F>(w + 8 * V::kRows),
           D::template Get<F>(w + 12 * V::kRows)};
}

// Unpacked digits meet two rows of activations.
template <class V>
BITNET_NOINLINE void MultiplyUnpacked2(const Quad<V>* digits, int64_t quads, int64_t quads_per_flush,
                                       const int8_t* q0, const int8_t* q1, int shift, bool start,
                                       int32_t* sums0, int32_t* sums1) {
  using Int = typename V::Int;
  for (int64_t first = 0; first < quads; first += quads_per_flush) {
    Int a0 = Zero<V>(), b0 = Zero<V>(), c0 = Zero<V>(), d0 = Zero<V>(), a1 = Zero<V>(), b1 = Zero<V>(),
        c1 = Zero<V>(), d1 = Zero<V>();
    const int64_t last = Min(first + quads_per_flush, quads);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4  // without it every sum is copied once in each round
#endif
    for (int64_t quad = first; quad < last; ++quad) {
      const Int one = V::Four(q0 + 4 * quad), two = V::Four(q1 + 4 * quad);
      const Int a = digits[quad].a;
      a0 = V::Dot(a0, a, one);
      a1 = V::Dot(a1, a, two);
      const Int b = digits[quad].b;
      b0 = V::Dot(b0, b, one);
      b1 = V::Dot(b1, b, two);
      const Int c = digits[quad].c;
      c0 = V::Dot(c0, c, one);
      c1 = V::Dot(c1, c, two);
      const Int d = digits[quad].d;
      d0 = V::Dot(d0, d, one);
      d1 = V::Dot(d1, d, two);
    }
    Flush<V>(a0, b0, c0, d0, shift, start && first == 0, sums0);
    Flush<V>(a1, b1, c1, d1, shift, start && first == 0, sums1);
  }
}

// Adds one digit of the weights, worth 2^shift, of one strip of rows and some units to the sums of all rows of
// activations; `column` is the first row of the strip.
template <class V, class D>
void MultiplyMany(const uint8_t* w, int64_t unit_bytes, UnitRange units, const Digits* digits, int64_t count,
                  int shift, bool start, Sums sums, int64_t column) {
  Quad<V> unpacked[kChunkUnits<V> * 4];
  for (int64_t first = units.first; first < units.last; first += kChunkUnits<V>) {
    const int64_t chunk = Min(kChunkUnits<V>, units.last - first);
    for (int64_t u = 0; u < chunk; ++u) {
      const uint8_t* unit = w + (first + u) * unit_bytes;
      Unpack<V, D, 0>(unit, unpacked + 4 * u);
      Unpack<V, D, 1>(unit, unpacked + 4 * u);
      Unpack<V, D, 2>(unit, unpacked + 4 * u);
      Unpack<V, D, 3>(unit, unpacked + 4 * u);
    }
    alignas(64) int32_t unused[4 * V::kRows];
    for (int64_t t = 0; t < count; t += 2) {
      // A last row without a companion is its own; the second copy of its sums is never read.
      const bool pair = t + 1 < count;
      MultiplyUnpacked2<V>(unpacked, 4 * chunk, 4 * V::template UnitsPerFlush<D>(), digits[t].q + first * kStep,
                           digits[pair ? t + 1 : t].q + first * kStep, shift, start, sums[t] + column,
                           pair ? sums[t + 1] + column : unused);
    }
    start = false;
  }
}

template <class V, class D>
struct IsCode {
  static constexpr bool kValue = false;
};

template <class V, int B>
struct IsCode<V, Code<V, B>> {
  static constexpr bool kValue = true;
  static constexpr int kBlock = B;
};

// The same for a few rows of activations, without a detour.
template <class V, class D>
void MultiplyFew(const uint8_t* w, int64_t unit_bytes, UnitRange units, const Digits* digits, int64_t count,
                 int shift, bool start, Sums sums, int64_t column) {
  const int64_t length = units.last - units.first;
  const int64_t at = units.first * kStep;
  w += units.first * unit_bytes;
  int64_t t = 0;
  for (; t + 2 <= count; t += 2) {
    MultiplyPacked2<V, D>(w, unit_bytes, length, digits[t].q + at, digits[t + 1].q + at, shift, start,
                          sums[t] + column, sums[t + 1] + column);
  }
  if (t < count) {
    if constexpr (IsCode<V, D>::kValue) {
      MultiplyCodes<V, IsCode<V, D>::kBlock>(w, unit_bytes, length, digits[t].q + at, shift, start,
                                             sums[t] + column);
    } else {
      MultiplyPacked<V, D>(w, unit_bytes, length, digits[t].q + at, shift, start, sums[t] + column);
    }
  }
}

// Calls use(digit, shift) for every digit of the weights; a digit is worth 2^shift.
template <class V, class F>
void EachDigit(int64_t bits, F use) {
  if (bits == 2) {
    use(Code<V, 0>(), 0);
  } else if (bits == 4) {
    use(Nibble<V>(), 0);
  } else if (bits == 6) {
    use(Nibble<V>(), 0);
    use(Code<V, 2>(), 4);
  } else if constexpr (V::kWholeBytes) {
    use(Byte<V>(), 0);
  } else {
    use(HalfByte<V, 0>(), 0);
    use(HalfByte<V, 4>(), 4);
  }
}

template <class V>
void SumPanels(const Linear& linear, const Digits* digits, int64_t rows, int64_t panel, int64_t panels,
               UnitRange units, Sums sums) {
  constexpr int64_t kStripRows = 4 * V::kRows;
  const int64_t unit_bytes = linear.unit_bytes;
  const uint8_t* weight = linear.weight + panel * linear.panel_bytes;
  if (panels == 1 && rows >= kManyRows) {
    for (int64_t column = 0; column < kPanelRows; column += kStripRows) {
      EachDigit<V>(linear.attributes.bits, [&](auto digit, int shift) {
        MultiplyMany<V, decltype(digit)>(weight + 4 * column, unit_bytes, units, digits, rows, shift,
                                         shift == 0, sums, column);
      });
    }
    return;
  }
  // Panels take turns after about a kilobyte each, and their strips of rows within it.
  const int64_t chunk_units = linear.attributes.bits == 2 ? 5 : 2;
  for (int64_t at = units.first; at < units.last; at += chunk_units) {
    const UnitRange chunk{at, Min(at + chunk_units, units.last)};
    for (int64_t p = 0; p < panels; ++p) {
      const uint8_t* w = weight + p * linear.panel_bytes;
      EachDigit<V>(linear.attributes.bits, [&](auto digit, int shift) {
        for (int64_t column = 0; column < kPanelRows; column += kStripRows) {
          MultiplyFew<V, decltype(digit)>(w + 4 * column, unit_bytes, chunk, digits, rows, shift,
                                          shift == 0 && at == units.first, sums + p * rows, column);
        }
      });
    }
  }
}

template <class V>
void X86Panels(const Linear& linear, const Token* tokens, int64_t count, int64_t first, int64_t panels,
               float* y) {
  if (linear.quantized()) {
    IntegerPanels(linear, tokens, count, first, panels, y, SumPanels<V>);
    return;
  }
  for (int64_t p = 0; p < panels; ++p) {
    FloatPanelAvx2(linear, tokens, count, first + p, y + p * count * kPanelRows);
  }
}

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_X86_PANEL_H_
