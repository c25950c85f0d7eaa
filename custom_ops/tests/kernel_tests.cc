// The kernels against the scalar twin, without any runtime; meant to be run under the sanitizers as well.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/bitlinear.h"
#include "kernels/half.h"
#include "kernels/layout.h"
#include "tests/float_tests.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define BITNET_HAVE_MMAP
#endif

namespace bitnet {
namespace {

int failures = 0;

#define EXPECT(condition, what)                                                                  \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, std::string(what).c_str()); \
      ++failures;                                                                                \
    }                                                                                            \
  } while (false)

class Random {
 public:
  uint32_t Bits() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 33);
  }
  float Value() { return static_cast<float>(Bits()) * 0x1p-30f - 1.0f; }

 private:
  uint64_t state_ = 1;
};

// An array that ends where its memory ends: one byte further is a page that cannot be read.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count) {
#if defined(BITNET_HAVE_MMAP)
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (count * sizeof(T) + page - 1) / page * page;
    size_ = bytes + page;
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + bytes, page, PROT_NONE) != 0) {
      std::perror("guard page");
      std::exit(2);
    }
    memory_ = static_cast<char*>(memory);
    data_ = reinterpret_cast<T*>(memory_ + bytes - count * sizeof(T));
#else
    memory_ = new char[count * sizeof(T) + 1];
    data_ = reinterpret_cast<T*>(memory_);
#endif
  }
  ~Guarded() {
#if defined(BITNET_HAVE_MMAP)
    munmap(memory_, size_);
#else
    delete[] memory_;
#endif
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + count_; }

 private:
  size_t count_;
  size_t size_ = 0;
  char* memory_ = nullptr;
  T* data_ = nullptr;
};

bool Inline(void*, size_t n, void (*fn)(void*, size_t), void* arg) {
  for (size_t i = n; i-- > 0;) {  // backwards: no item may depend on another
    fn(arg, i);
  }
  return true;
}

struct Problem {
  Attributes attributes;
  int64_t tokens = 1;
  bool one_scale = false;
  bool norm = false;
  bool bias = false;
  Element element = Element::kFloat;

  std::string Name() const {
    const Attributes& a = attributes;
    return "N " + std::to_string(a.out_features) + " K " + std::to_string(a.in_features) + " M " +
           std::to_string(tokens) + " bits " + std::to_string(a.bits) + " zero_point " +
           std::to_string(a.zero_point) + " group_size " + std::to_string(a.group_size) + " activation_bits " +
           std::to_string(a.activation_bits) + (norm ? " norm" : "") + (bias ? " bias" : "") +
           (element == Element::kHalf ? " half" : "");
  }
};

// How many scales there are with one for each row, or for each row and group.
int64_t ScaleCount(const Linear& linear) {
  const Attributes& a = linear.attributes;
  return a.group_size == 0 ? a.out_features : linear.panels * linear.groups * kPanelRows;
}

// The operands of one problem, each before its own guard page, with random contents.
struct Operands {
  explicit Operands(const Problem& p)
      : linear(MakeLinear(p.attributes)),
        weight(static_cast<size_t>(linear.weight_bytes)),
        scale(static_cast<size_t>(p.one_scale ? 1 : ScaleCount(linear))),
        norm(static_cast<size_t>(p.norm ? p.attributes.in_features : 0)),
        bias(static_cast<size_t>(p.bias ? p.attributes.out_features : 0)),
        x(static_cast<size_t>(p.tokens * p.attributes.in_features)),
        half(x.size()) {
    Random random;
    for (uint8_t& byte : weight) {
      byte = static_cast<uint8_t>(random.Bits());
    }
    for (Guarded<float>* array : {&scale, &norm, &bias, &x}) {
      for (float& value : *array) {
        value = random.Value();
      }
    }
    const auto columns = static_cast<size_t>(p.attributes.in_features);
    if (p.tokens > 2) {
      std::fill(&x[columns], &x[columns] + columns, 0.0f);
      x[2 * columns + columns / 2] = std::numeric_limits<float>::quiet_NaN();
    }
    if (p.tokens > 3) {  // a scale of 1, and ties to be rounded
      for (size_t k = 0; k < columns; ++k) {
        x[3 * columns + k] = k == 0 ? 127.0f : static_cast<float>(k % 250) - 124.5f;
      }
    }
    for (size_t i = 0; i < x.size(); ++i) {
      half[i] = FloatToHalf(x[i]);
    }
    linear.weight = weight.data();
    linear.scale = scale.data();
    linear.scale_per_row = !p.one_scale;
    linear.norm_weight = p.norm ? norm.data() : nullptr;
    linear.bias = p.bias ? bias.data() : nullptr;
  }

  Linear linear;
  Guarded<uint8_t> weight;
  Guarded<float> scale, norm, bias, x;
  Guarded<uint16_t> half;
};

// The result as bytes, with every NaN made the same.
std::vector<uint32_t> Apply(const Kernels& kernels, const Problem& p, const Operands& o) {
  const auto count = static_cast<size_t>(p.tokens * p.attributes.out_features);
  Guarded<unsigned char> y(count * (p.element == Element::kHalf ? 2 : 4));
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> workspace(WorkspaceBytes(o.linear, p.tokens) / sizeof(Line));
  const void* x = p.element == Element::kHalf ? static_cast<const void*>(o.half.data()) : o.x.data();
  EXPECT(Run(kernels, o.linear, p.element, x, p.tokens, y.data(), workspace.data(), {nullptr, Inline}),
         p.Name());
  std::vector<uint32_t> bits(count);
  for (size_t i = 0; i < count; ++i) {
    float value;
    if (p.element == Element::kHalf) {
      uint16_t half;
      std::memcpy(&half, y.data() + 2 * i, sizeof half);
      value = HalfToFloat(half);
    } else {
      std::memcpy(&value, y.data() + 4 * i, sizeof value);
    }
    if (std::isnan(value)) {
      value = std::numeric_limits<float>::quiet_NaN();
    }
    std::memcpy(&bits[i], &value, sizeof value);
  }
  return bits;
}

void Compare(const Kernels& kernels, const Problem& problem) {
  EXPECT(Validate(problem.attributes).empty(), Validate(problem.attributes));
  const Operands operands(problem);
  EXPECT(Apply(kernels, problem, operands) == Apply(kScalarKernels, problem, operands), problem.Name());
}

void TestShapes(const Kernels& kernels) {
  for (const int64_t bits : {2, 4, 6, 8}) {
    for (const int64_t columns : {1, 5, 63, 64, 130, 517}) {
      for (const int64_t rows : {1, 66, 129}) {
        for (const int64_t tokens : {0, 1, 3, 8, 33}) {
          for (const int64_t group_size : {0, 32, 64, 192}) {
            Problem p;
            p.attributes = {columns, rows, bits, int64_t{1} << (bits - 1), group_size, 8, 1e-5f};
            p.tokens = tokens;
            p.norm = rows == 66;
            p.bias = columns % 2 == 1;
            p.one_scale = group_size == 0 && columns == 64;
            p.element = tokens == 3 ? Element::kHalf : Element::kFloat;
            Compare(kernels, p);
            p.attributes.activation_bits = 16;
            Compare(kernels, p);
            if (tokens <= 3) {
              p.attributes.activation_bits = 0;
              Compare(kernels, p);
            }
          }
        }
      }
    }
  }
}

void TestZeroPoints(const Kernels& kernels) {
  for (const int64_t zero_point : {0, 1, 7, 15}) {
    Problem p;
    p.attributes = {100, 70, 4, zero_point, 32, 8, 1e-5f};
    p.tokens = 13;
    Compare(kernels, p);
  }
}

// Padding that a broken file fills with something else adds nothing, not even the sign of a zero.
void TestPadding(const Kernels& kernels) {
  for (const int64_t activation_bits : {0, 8, 16}) {
    Problem p;
    p.attributes = {13, 64, 2, 2, 0, activation_bits, 1e-5f};
    Operands o(p);
    std::memset(o.weight.data(), 0, o.weight.size());
    std::fill(o.x.begin(), o.x.end(), 0.0f);
    EXPECT(Apply(kernels, p, o) == Apply(kScalarKernels, p, o), p.Name());
  }
}

// More tokens than share a workspace.
void TestManyTokens(const Kernels& kernels) {
  Problem p;
  p.attributes = {33, 65, 2, 2, 0, 8, 1e-5f};
  p.tokens = 2 * kTokensPerBlock + 1;
  Compare(kernels, p);
}

// The largest sums there are: nothing may overflow on the way, in 16 or in 32 bits.
void TestExtremes(const Kernels& kernels) {
  for (const int64_t bits : {2, 4, 6, 8}) {
    for (const int64_t activation_bits : {8, 16}) {
      for (const int64_t tokens : {1, 2, 7, 8}) {
        for (const float sign : {1.0f, -1.0f}) {
          Problem p;
          const int64_t largest = (int64_t{1} << bits) - 1;
          p.attributes = {16384, 64, bits, 0, 0, activation_bits, 1e-5f};
          p.tokens = tokens;
          Operands o(p);
          std::memset(o.weight.data(), 0xFF, o.weight.size());
          std::fill(o.scale.begin(), o.scale.end(), 1.0f);
          const float x = activation_bits == 16 ? 32512.0f : 127.0f;
          std::fill(o.x.begin(), o.x.end(), sign * x);
          const float expected = sign * static_cast<float>(16384 * static_cast<int64_t>(x) * largest);
          uint32_t word;
          std::memcpy(&word, &expected, sizeof word);
          EXPECT(Apply(kernels, p, o) == std::vector<uint32_t>(static_cast<size_t>(tokens) * 64, word),
                 p.Name());
        }
      }
    }
  }
}

// Values on both sides of every half: ties go to the even neighbour.
void TestHalf() {
  for (uint32_t h = 0; h < 0x7C00; ++h) {
    const float value = HalfToFloat(static_cast<uint16_t>(h));
    EXPECT(FloatToHalf(value) == h, std::to_string(h));
    EXPECT(FloatToHalf(-value) == (h | 0x8000u), std::to_string(h));
    const float next = h == 0x7BFF ? 65536.0f : HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = value + (next - value) / 2;
    EXPECT(FloatToHalf(middle) == (h % 2 == 0 ? h : h + 1), std::to_string(h));
    EXPECT(FloatToHalf(std::nextafter(middle, 0.0f)) == h, std::to_string(h));
    EXPECT(FloatToHalf(std::nextafter(middle, 1e9f)) == h + 1, std::to_string(h));
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT(FloatToHalf(infinity) == 0x7C00 && FloatToHalf(-1e9f) == 0xFC00, "infinity");
  EXPECT(HalfToFloat(0xFC00) == -infinity && std::isnan(HalfToFloat(0x7E01)), "widened infinity and NaN");
  EXPECT((FloatToHalf(std::nanf("")) & 0x7FFF) > 0x7C00, "NaN");
}

// Rows of the embedding are rows of the matrix: the sum with a one at column k is the weight there.
void TestEmbedding() {
  for (const int64_t bits : {2, 4, 6, 8}) {
    Problem p;
    p.attributes = {77, 131, bits, int64_t{1} << (bits - 1), 32, 0, 1e-5f};
    p.tokens = 77;
    Operands o(p);
    for (size_t i = 0; i < o.x.size(); ++i) {
      o.x[i] = i % 78 == 0 ? 1.0f : 0.0f;
    }
    const std::vector<uint32_t> columns = Apply(kScalarKernels, p, o);
    const int64_t ids[] = {130, 0, 64};
    Guarded<float> y(3 * 77);
    GatherRows(o.linear, ids, 3, y.data());
    for (size_t i = 0; i < 3; ++i) {
      for (size_t k = 0; k < 77; ++k) {
        float expected;
        std::memcpy(&expected, &columns[k * 131 + static_cast<size_t>(ids[i])], sizeof expected);
        EXPECT(y[i * 77 + k] == expected, p.Name() + " column " + std::to_string(k));
      }
    }
  }
}

// The table of docs/operator.md, byte by byte.
void TestLayout() {
  Problem p;
  p.attributes = {40, 70, 6, 32, 0, 8, 1e-5f};
  const Operands o(p);
  for (const int64_t row : {0, 63, 69}) {
    for (const int64_t k : {0, 7, 18, 39}) {
      const uint8_t* unit = o.weight.data() + (row / 32 * 4 + k / 16) * 384;  // 64 columns of padding: 4 units
      const uint8_t nibbles = unit[128 * (k % 4 / 2) + 4 * (row % 32) + k % 16 / 4];
      const uint8_t codes = unit[256 + 4 * (row % 32) + k % 16 / 4];
      const int expected = ((nibbles >> (4 * (k % 2))) & 15) + 16 * ((codes >> (2 * (k % 4))) & 3);
      int32_t raw[kStep];
      RawUnit(o.linear, row, k / 16, raw);
      EXPECT(raw[k % 16] == expected, std::to_string(row) + ", " + std::to_string(k));
    }
  }
}

void TestSelfTestSeesAFault() {
  EXPECT(SelfTest(kScalarKernels).empty(), "the twin agrees with itself");
  Kernels broken = kScalarKernels;
  broken.panels = [](const Linear& linear, const Token* tokens, int64_t count, PanelSet panels, float* y) {
    kScalarKernels.panels(linear, tokens, count, panels, y);
    y[panels.count * count * kPanelRows - 31] += 1.0f;
  };
  EXPECT(!SelfTest(broken).empty(), "a wrong value is seen");
}

void TestValidation() {
  const Attributes good{16, 16, 2, 2, 0, 8, 1e-5f};
  EXPECT(Validate(good).empty(), "good attributes");
  Attributes largest = good;
  largest.in_features = 5592405;  // 2^31 = 128 * 3 * 5592405.33
  EXPECT(Validate(largest).empty(), Validate(largest));
  largest.in_features += 1;
  EXPECT(!Validate(largest).empty(), "one column too many");
  largest = {5592405, (int64_t{1} << 31) - 1, 2, 2, 0, 8, 1e-5f};
  EXPECT(MakeLinear(largest).weight_bytes == int64_t{67108864} * 349528 * 128, "sizes near the limit");
}

// Tests the kernels that BITNET_ONNX_ISA names; without it all that this processor can run.
void TestKernels(const Choice& choice) {
  const char* forced = std::getenv("BITNET_ONNX_ISA");
  const bool one = forced != nullptr && *forced != '\0';
  for (const Kernels* kernels : one ? std::vector<const Kernels*>{choice.kernels} : UsableKernels()) {
    const int before = failures;
    EXPECT(SelfTest(*kernels).empty(), SelfTest(*kernels));
    TestExtremes(*kernels);
    TestZeroPoints(*kernels);
    TestManyTokens(*kernels);
    TestPadding(*kernels);
    if (kernels != &kScalarKernels) {  // which are what the others are compared with
      TestShapes(*kernels);
    }
    std::printf("%s kernels: %d failures\n", kernels->isa, failures - before);
  }
}

// With --choice only says which kernels would be used.
int Main(bool only_choice) {
  const Choice& choice = ChosenKernels();
  if (!choice.error.empty() || !choice.warning.empty()) {
    std::printf("%s%s\n", choice.error.c_str(), choice.warning.c_str());
    return 1;
  }
  std::printf("chosen: %s\n", choice.kernels->isa);
  if (only_choice) {
    return 0;
  }
  TestHalf();
  TestLayout();
  TestEmbedding();
  TestSelfTestSeesAFault();
  TestValidation();
  TestKernels(choice);
  failures += TestFloatKernels();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) { return bitnet::Main(argc > 1 && std::strcmp(argv[1], "--choice") == 0); }
