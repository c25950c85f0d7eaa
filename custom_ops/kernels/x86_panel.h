// Integer sums of some panels on x86, written once for all its vector sets.
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

  // A sum gains at most 4 * 2 * kLargest * 128 from one unit.
  template <class D>
  static constexpr int64_t UnitsPerFlush() {
    return 32767 / (4 * 2 * D::kLargest * 128);
  }
};

// Vector sets with `vpdpbusd`, whose sums have 32 bits.
struct Sums32 {
  static constexpr bool kWholeBytes = true;

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

// One pass: some units of some panels, and one digit of their weights, which is worth 2^shift.
struct Pass {
  const uint8_t* weights;  // of the first panel
  int64_t unit_bytes, units;
  int64_t panels, apart;  // how many, and how far from each other
  int64_t sums_apart;     // how far the sums of the same activations are from each other
  int shift;
  bool start;  // sums are set, not added
};

// Four vectors of rows are taken together: one panel with 256 bits, two with 512.
template <class V>
constexpr int64_t kPanelsTogether = 4 * V::kRows / kPanelRows;

// The third of the four vectors, given the first of panel p. Where there is no second panel the first is
// computed twice, and nobody reads the second sums.
template <class V>
inline const uint8_t* Third(const Pass& pass, int64_t p, const uint8_t* w) {
  return kPanelsTogether<V> == 1 ? w + 8 * V::kRows : p + 1 < pass.panels ? w + pass.apart : w;
}

// The sums of four vectors, in memory: weight times a sum is stored or added.
template <class V>
inline void Flush(const Pass& pass, bool start, typename V::Int a, typename V::Int b, typename V::Int c,
                  typename V::Int d, int32_t* to) {
  V::Flush(a, pass.shift, start, to);
  V::Flush(b, pass.shift, start, to + V::kRows);
  to += kPanelsTogether<V> == 1 ? 2 * V::kRows : pass.sums_apart;
  V::Flush(c, pass.shift, start, to);
  V::Flush(d, pass.shift, start, to + V::kRows);
}

// One step for one row of activations: columns F, 4 + F, ... of four vectors of rows.
template <class V, class D, int F>
inline void Step(const uint8_t* w, const uint8_t* w2, const int8_t* q, typename V::Int& a, typename V::Int& b,
                 typename V::Int& c, typename V::Int& d) {
  const typename V::Int four = V::Four(q + 4 * F);
  Add<V>(D::template Get<F>(w), four, a);
  Add<V>(D::template Get<F>(w + 4 * V::kRows), four, b);
  Add<V>(D::template Get<F>(w2), four, c);
  Add<V>(D::template Get<F>(w2 + 4 * V::kRows), four, d);
}

// The same for two.
template <class V, class D, int F>
inline void Step2(const uint8_t* w, const uint8_t* w2, const int8_t* q0, const int8_t* q1, typename V::Int& a0,
                  typename V::Int& b0, typename V::Int& c0, typename V::Int& d0, typename V::Int& a1,
                  typename V::Int& b1, typename V::Int& c1, typename V::Int& d1) {
  const typename V::Int first = V::Four(q0 + 4 * F), second = V::Four(q1 + 4 * F);
  const typename V::Int a = D::template Get<F>(w);
  Add<V>(a, first, a0);
  Add<V>(a, second, a1);
  const typename V::Int b = D::template Get<F>(w + 4 * V::kRows);
  Add<V>(b, first, b0);
  Add<V>(b, second, b1);
  const typename V::Int c = D::template Get<F>(w2);
  Add<V>(c, first, c0);
  Add<V>(c, second, c1);
  const typename V::Int d = D::template Get<F>(w2 + 4 * V::kRows);
  Add<V>(d, first, d0);
  Add<V>(d, second, d1);
}

// Packed weights, no more units than one flush bears, meet one row of activations.
template <class V, class D>
BITNET_NOINLINE void MultiplyPacked(const Pass& pass, const int8_t* q, int32_t* sums) {
  using Int = typename V::Int;
  for (int64_t p = 0; p < pass.panels; p += kPanelsTogether<V>, sums += kPanelsTogether<V> * pass.sums_apart) {
    const uint8_t* w = pass.weights + p * pass.apart;
    const uint8_t* w2 = Third<V>(pass, p, w);
    Int a = Zero<V>(), b = Zero<V>(), c = Zero<V>(), d = Zero<V>();
    for (int64_t u = 0; u < pass.units; ++u, w += pass.unit_bytes, w2 += pass.unit_bytes) {
      Step<V, D, 0>(w, w2, q + u * kStep, a, b, c, d);
      Step<V, D, 1>(w, w2, q + u * kStep, a, b, c, d);
      Step<V, D, 2>(w, w2, q + u * kStep, a, b, c, d);
      Step<V, D, 3>(w, w2, q + u * kStep, a, b, c, d);
    }
    Flush<V>(pass, pass.start, a, b, c, d, sums);
  }
}

template <class V, int Shift>
inline void CodeStep(const uint8_t* words, const uint8_t* words2, const int8_t* q, typename V::Int low,
                     typename V::Int high, typename V::Int& a, typename V::Int& b, typename V::Int& c,
                     typename V::Int& d, typename V::Int& a4, typename V::Int& b4, typename V::Int& c4,
                     typename V::Int& d4) {
  using Int = typename V::Int;
  const Int first = V::Four(q), second = V::Four(q + 4);
  const Int wa = V::template ShiftRight<Shift>(V::Load(words));
  Add<V>(V::And(wa, low), first, a);
  Add<V>(V::And(wa, high), second, a4);
  const Int wb = V::template ShiftRight<Shift>(V::Load(words + 4 * V::kRows));
  Add<V>(V::And(wb, low), first, b);
  Add<V>(V::And(wb, high), second, b4);
  const Int wc = V::template ShiftRight<Shift>(V::Load(words2));
  Add<V>(V::And(wc, low), first, c);
  Add<V>(V::And(wc, high), second, c4);
  const Int wd = V::template ShiftRight<Shift>(V::Load(words2 + 4 * V::kRows));
  Add<V>(V::And(wd, low), first, d);
  Add<V>(V::And(wd, high), second, d4);
}

// The same for codes of two bits with fewer shifts: every other column's code stays where it is, worth four
// times as much, with sums of its own that are divided at the end.
template <class V, int B>
BITNET_NOINLINE void MultiplyCodes(const Pass& pass, const int8_t* q, int32_t* sums) {
  using Int = typename V::Int;
  const Int low = V::Bytes(3), high = V::Bytes(12);
  for (int64_t p = 0; p < pass.panels; p += kPanelsTogether<V>, sums += kPanelsTogether<V> * pass.sums_apart) {
    const uint8_t* w = pass.weights + p * pass.apart + B * kBlockBytes;
    const uint8_t* w2 = Third<V>(pass, p, w);
    Int a = Zero<V>(), b = Zero<V>(), c = Zero<V>(), d = Zero<V>(), a4 = Zero<V>(), b4 = Zero<V>(),
        c4 = Zero<V>(), d4 = Zero<V>();
    // Two turns ahead. Denser weights do without: more of their bytes are on the way for the same work.
    for (int64_t line = 0; line < pass.units * pass.unit_bytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w + 2 * pass.units * pass.unit_bytes + line), _MM_HINT_T0);
    }
    for (int64_t u = 0; u < pass.units; ++u, w += pass.unit_bytes, w2 += pass.unit_bytes) {
      CodeStep<V, 0>(w, w2, q + u * kStep, low, high, a, b, c, d, a4, b4, c4, d4);
      CodeStep<V, 4>(w, w2, q + u * kStep + 8, low, high, a, b, c, d, a4, b4, c4, d4);
    }
    Flush<V>(pass, pass.start, V::AddQuarter(a, a4), V::AddQuarter(b, b4), V::AddQuarter(c, c4),
             V::AddQuarter(d, d4), sums);
  }
}

// Two rows of activations.
template <class V, class D>
BITNET_NOINLINE void MultiplyPacked2(const Pass& pass, const int8_t* q0, const int8_t* q1, int32_t* sums0,
                                     int32_t* sums1) {
  using Int = typename V::Int;
  for (int64_t p = 0; p < pass.panels; p += kPanelsTogether<V>) {
    const uint8_t* w = pass.weights + p * pass.apart;
    const uint8_t* w2 = Third<V>(pass, p, w);
    Int a0 = Zero<V>(), b0 = Zero<V>(), c0 = Zero<V>(), d0 = Zero<V>(), a1 = Zero<V>(), b1 = Zero<V>(),
        c1 = Zero<V>(), d1 = Zero<V>();
    for (int64_t u = 0; u < pass.units; ++u, w += pass.unit_bytes, w2 += pass.unit_bytes) {
      const int8_t *p0 = q0 + u * kStep, *p1 = q1 + u * kStep;
      Step2<V, D, 0>(w, w2, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 1>(w, w2, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 2>(w, w2, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
      Step2<V, D, 3>(w, w2, p0, p1, a0, b0, c0, d0, a1, b1, c1, d1);
    }
    Flush<V>(pass, pass.start, a0, b0, c0, d0, sums0 + p * pass.sums_apart);
    Flush<V>(pass, pass.start, a1, b1, c1, d1, sums1 + p * pass.sums_apart);
  }
}

// Four vectors of digits for each four columns, unpacked.
template <class V>
struct Quad {
  typename V::Int a, b, c, d;
};

template <class V, class D, int F>
inline void Unpack(const uint8_t* w, const uint8_t* w2, Quad<V>* to) {
  to[F] = {D::template Get<F>(w), D::template Get<F>(w + 4 * V::kRows), D::template Get<F>(w2),
           D::template Get<F>(w2 + 4 * V::kRows)};
}

// Unpacked digits meet two rows of activations.
template <class V>
BITNET_NOINLINE void MultiplyUnpacked2(const Pass& pass, const Quad<V>* digits, int64_t quads,
                                       int64_t quads_per_flush, bool start, const int8_t* q0, const int8_t* q1,
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
    Flush<V>(pass, start && first == 0, a0, b0, c0, d0, sums0);
    Flush<V>(pass, start && first == 0, a1, b1, c1, d1, sums1);
  }
}

// One pass over one panel, or two together, for many rows of activations. `at` is its first column.
template <class V, class D>
void MultiplyMany(const Pass& pass, int64_t at, const Digits* digits, int64_t rows, Sums sums) {
  Quad<V> unpacked[kChunkUnits<V> * 4];
  alignas(64) int32_t unused[kMaxDigits + 1][kPanelRows];
  for (int64_t first = 0; first < pass.units; first += kChunkUnits<V>) {
    const int64_t chunk = Min(kChunkUnits<V>, pass.units - first);
    const uint8_t* w = pass.weights + first * pass.unit_bytes;
    const uint8_t* w2 = Third<V>(pass, 0, w);
    for (int64_t u = 0; u < chunk; ++u, w += pass.unit_bytes, w2 += pass.unit_bytes) {
      Unpack<V, D, 0>(w, w2, unpacked + 4 * u);
      Unpack<V, D, 1>(w, w2, unpacked + 4 * u);
      Unpack<V, D, 2>(w, w2, unpacked + 4 * u);
      Unpack<V, D, 3>(w, w2, unpacked + 4 * u);
    }
    const int64_t column = at + first * kStep;
    for (int64_t t = 0; t < rows; t += 2) {
      // A last row without a companion is its own; the second copy of its sums is never read.
      const bool pair = t + 1 < rows;
      MultiplyUnpacked2<V>(pass, unpacked, 4 * chunk, 4 * V::template UnitsPerFlush<D>(),
                           pass.start && first == 0, digits[t].q + column, digits[pair ? t + 1 : t].q + column,
                           sums[t], pair ? sums[t + 1] : unused[0]);
    }
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

// One pass for a few rows of activations, without a detour.
template <class V, class D>
void MultiplyFew(const Pass& pass, int64_t at, const Digits* digits, int64_t rows, Sums sums) {
  int64_t t = 0;
  for (; t + 2 <= rows; t += 2) {
    MultiplyPacked2<V, D>(pass, digits[t].q + at, digits[t + 1].q + at, sums[t], sums[t + 1]);
  }
  if (t < rows) {
    if constexpr (IsCode<V, D>::kValue) {
      MultiplyCodes<V, IsCode<V, D>::kBlock>(pass, digits[t].q + at, sums[t]);
    } else {
      MultiplyPacked<V, D>(pass, digits[t].q + at, sums[t]);
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
void SumPanels(const Linear& linear, const Digits* digits, int64_t rows, PanelSet panels, UnitRange units,
               Sums sums) {
  const uint8_t* weight = linear.weight + panels.first * linear.panel_bytes;
  Pass pass{};
  pass.unit_bytes = linear.unit_bytes;
  pass.apart = panels.stride * linear.panel_bytes;
  pass.sums_apart = rows * kPanelRows;
  if (rows >= kManyRows) {
    pass.units = units.last - units.first;
    for (int64_t p = 0; p < panels.count; p += kPanelsTogether<V>) {
      pass.weights = weight + p * pass.apart + units.first * pass.unit_bytes;
      pass.panels = Min(kPanelsTogether<V>, panels.count - p);
      EachDigit<V>(linear.attributes.bits, [&](auto digit, int shift) {
        pass.shift = shift;
        pass.start = shift == 0;
        MultiplyMany<V, decltype(digit)>(pass, units.first * kStep, digits, rows, sums + p * rows);
      });
    }
    return;
  }
  // Panels take turns after less than a kilobyte each, and no more units than one flush bears: five units add
  // at most 5 * 2 * 2 * 12 * 128 = 30720 to the sums of `MultiplyCodes`, two at most 2 * 4 * 2 * 15 * 128 to
  // others.
  pass.panels = panels.count;
  const int64_t turn = linear.attributes.bits == 2 ? 5 : 2;
  for (int64_t unit = units.first; unit < units.last; unit += turn) {
    pass.weights = weight + unit * pass.unit_bytes;
    pass.units = Min(turn, units.last - unit);
    EachDigit<V>(linear.attributes.bits, [&](auto digit, int shift) {
      pass.shift = shift;
      pass.start = shift == 0 && unit == units.first;
      MultiplyFew<V, decltype(digit)>(pass, unit * kStep, digits, rows, sums);
    });
  }
}

template <class V>
void X86Panels(const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
  if (linear.quantized()) {
    IntegerPanels(linear, tokens, count, panels, y, SumPanels<V>);
    return;
  }
  for (int64_t p = 0; p < panels.count; ++p) {
    FloatPanelAvx2(linear, tokens, count, panels[p], y + p * count * kPanelRows);
  }
}

}  // namespace
}  // namespace bitnet

#endif  // BITNET_KERNELS_X86_PANEL_H_
