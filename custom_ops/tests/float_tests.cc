// Attention and gated activation against the scalar twin and against plain formulas, without any runtime.
#include "tests/float_tests.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/float_kernels.h"
#include "kernels/vec_math.h"

namespace bitnet {
namespace {

int failures = 0;

void Expect(bool condition, const std::string& what) {
  if (!condition) {
    std::printf("float kernels: %s\n", what.c_str());
    ++failures;
  }
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  float Value() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(state_ >> 33) * 0x1p-30f - 1.0f;
  }
  std::vector<float> Values(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    std::generate(values.begin(), values.end(), [this] { return Value(); });
    return values;
  }

 private:
  uint64_t state_ = 7;
};

// With every NaN made the same.
bool SameBits(std::vector<float> a, std::vector<float> b) {
  for (std::vector<float>* values : {&a, &b}) {
    std::replace_if(values->begin(), values->end(), [](float x) { return std::isnan(x); }, kNaN);
  }
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <typename F>
float Apply(F function, float x) {
  float lanes[vec_scalar::kLanes];
  vec_scalar::Store(lanes, function(vec_scalar::Set(x)));
  return lanes[0];
}

// Units in the last place of a float between `value` and the exact result.
double Units(float value, double exact) {
  const double unit = std::ldexp(1.0, std::max(-149, std::ilogb(exact) - 23));
  return std::fabs(static_cast<double>(value) - exact) / unit;
}

void TestFunctions() {
  using namespace vec_scalar;
  double worst_exp = 0, worst_tanh = 0, worst_cdf = 0;
  for (int i = -100000; i <= 100000; ++i) {
    const float x = static_cast<float>(i) * 0.00086f;  // to +-86
    worst_exp = std::max(worst_exp, Units(Apply(Exp, x), std::exp(static_cast<double>(x))));
    if (i <= 0) {
      Expect(Apply(ExpOfNegative, x) == Apply(Exp, x), "both exponentials at " + std::to_string(x));
    }
    const float t = x * 0.05f;
    worst_tanh =
        std::max(worst_tanh, t == 0.0f ? 0.0 : Units(Apply(Tanh, t), std::tanh(static_cast<double>(t))));
    const double cdf = 0.5 * std::erfc(-static_cast<double>(t) / std::sqrt(2.0));
    worst_cdf = std::max(worst_cdf, std::fabs(static_cast<double>(Apply(NormalCdf, t)) - cdf));
  }
  Expect(worst_exp <= 2.0, "exp is wrong by " + std::to_string(worst_exp) + " units");
  Expect(worst_tanh <= 3.0, "tanh is wrong by " + std::to_string(worst_tanh) + " units");
  Expect(worst_cdf <= 2e-7, "the normal distribution is wrong by " + std::to_string(worst_cdf));
  Expect(Apply(Exp, 0.0f) == 1.0f && Apply(Exp, -0.0f) == 1.0f, "exp(0)");
  Expect(Apply(Exp, -kInfinity) == 0.0f && Apply(Exp, -88.0f) == 0.0f, "exp underflows to 0");
  Expect(Apply(ExpOfNegative, -kInfinity) == 0.0f && Apply(ExpOfNegative, -87.5f) == 0.0f, "underflow to 0");
  Expect(Apply(Exp, kInfinity) == kInfinity && Apply(Exp, 88.8f) == kInfinity, "exp overflows");
  Expect(Apply(Exp, 88.7f) < kInfinity, "exp just below its overflow");
  Expect(std::isnan(Apply(Exp, kNaN)) && std::isnan(Apply(ExpOfNegative, kNaN)), "exp of NaN");
  Expect(std::isnan(Apply(Tanh, kNaN)) && std::isnan(Apply(NormalCdf, kNaN)), "NaN");
  Expect(Apply(Tanh, kInfinity) == 1.0f && Apply(Tanh, -kInfinity) == -1.0f, "tanh of infinity");
  Expect(Apply(NormalCdf, kInfinity) == 1.0f && Apply(NormalCdf, -kInfinity) == 0.0f,
         "distribution at infinity");
}

void TestGate(const FloatKernels& kernels) {
  Random random;
  for (const Activation activation :
       {Activation::kSilu, Activation::kRelu2, Activation::kGelu, Activation::kGeluTanh}) {
    for (const int64_t count : {1, 7, 8, 9, 31, 100}) {
      std::vector<float> gate = random.Values(count);
      const std::vector<float> up = random.Values(count);
      const float special[] = {0.0f, -0.0f, kInfinity, -kInfinity, kNaN, 1e30f, -1e30f, 90.0f, -90.0f, 1e-40f};
      for (size_t i = 0; i < gate.size(); ++i) {
        gate[i] = i < std::size(special) ? special[i] : gate[i] * 20.0f;
      }
      std::vector<float> y(gate.size()), expected(gate.size());
      kernels.gate(activation, gate.data(), up.data(), count, y.data());
      kScalarFloatKernels.gate(activation, gate.data(), up.data(), count, expected.data());
      Expect(SameBits(y, expected),
             std::string(kernels.isa) + " gate of " + std::to_string(count) + " values differs from its twin");
    }
  }
}

struct Sums {
  Sums(int64_t rows, int64_t head_dim)
      : values(static_cast<size_t>(rows * head_dim)),
        peak(static_cast<size_t>(rows)),
        sum(static_cast<size_t>(rows)) {}
  Partial partial() { return {values.data(), peak.data(), sum.data()}; }
  bool operator==(const Sums& other) const {
    return SameBits(values, other.values) && SameBits(peak, other.peak) && SameBits(sum, other.sum);
  }
  std::vector<float> values, peak, sum;
};

// As they enter the cache with a step of 1/128.
template <typename T>
std::vector<T> CacheRows(const std::vector<float>& x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    std::vector<T> codes(x.size());
    const std::vector<float> inverse(x.size(), 128.0f);
    kScalarFloatKernels.quantize(x.data(), inverse.data(), static_cast<int64_t>(x.size()), codes.data());
    return codes;
  }
}

// One chunk and its merging with an earlier one.
template <typename T>
void TestChunk(const FloatKernels& kernels, int64_t rows, int64_t head_dim, int64_t keys, float softcap,
               bool spoiled) {
  Random random;
  std::vector<float> query = random.Values(rows * head_dim);
  const std::vector<T> key = CacheRows<T>(random.Values(keys * head_dim));
  const std::vector<T> value = CacheRows<T>(random.Values(keys * head_dim));
  if (spoiled) {
    query[0] = kNaN;
    query[query.size() - 1] = kInfinity;
  }
  std::vector<int64_t> first, last;
  for (int64_t r = 0; r < rows; ++r) {
    first.push_back(std::max<int64_t>(0, r - 2));
    last.push_back(std::max<int64_t>(0, keys - rows + 1 + r));  // the first rows may see nothing
  }
  const AttentionBlock<T> block{query.data(), key.data(), value.data(), first.data(),
                                last.data(),  rows,       head_dim,     softcap};
  std::vector<Sums> results;
  for (const FloatKernels* tested : {&kernels, &kScalarFloatKernels}) {
    Sums sums(rows, head_dim), later(rows, head_dim);
    const int64_t middle = keys / 2 / kHeadMultiple * kHeadMultiple;
    if (middle > 0) {
      ChunkFunction<T> (*tested)(block, 0, middle, sums.partial());
    }
    ChunkFunction<T> (*tested)(block, middle, keys, later.partial());
    tested->merge(sums.partial(), later.partial(), rows, head_dim);
    results.push_back(sums);
  }
  Expect(results[0] == results[1], std::string(kernels.isa) + (sizeof(T) == 1 ? " int8" : "") +
                                       " attention differs from its twin: rows " + std::to_string(rows) +
                                       " head_dim " + std::to_string(head_dim) + " keys " +
                                       std::to_string(keys) + " softcap " + std::to_string(softcap));
}

template <typename T>
void TestChunks(const FloatKernels& kernels) {
  for (const int64_t head_dim : {8, 16, 64, 80, 96, 128, 512}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8}) {
      for (const int64_t keys : {1, 4, 13, 128}) {
        TestChunk<T>(kernels, rows, head_dim, keys, keys == 13 ? 2.0f : 0.0f, false);
      }
    }
  }
  TestChunk<T>(kernels, kMaxBlockRows, 64, 128, 0.0f, false);
  TestChunk<T>(kernels, 6, 16, 30, 0.0f, true);
  TestChunk<T>(kernels, 6, 16, 30, 1.5f, true);
}

bool Backwards(void*, size_t n, void (*fn)(void*, size_t), void* arg) {
  for (size_t i = n; i-- > 0;) {  // no item may depend on another
    fn(arg, i);
  }
  return true;
}

bool Refuse(void*, size_t, void (*)(void*, size_t), void*) { return false; }

void TestQuantize(const FloatKernels& kernels) {
  const float x[] = {0.5f, 1.5f,    2.5f,    -0.5f,  -1.5f,     -2.5f,      126.5f, 127.4f, 127.5f,
                     1e9f, -128.5f, -128.4f, -1e30f, kInfinity, -kInfinity, kNaN,   -kNaN,  -0.0f};
  const int expected[] = {0, 2, 2, 0, -2, -2, 126, 127, 127, 127, -128, -128, -128, 127, -128, 127, 127, 0};
  std::vector<float> values(std::begin(x), std::end(x)), inverse(values.size(), 1.0f);
  values.resize(24);
  inverse.resize(24, kInfinity);  // 0 times infinity is no number either
  std::vector<int8_t> codes(values.size());
  kernels.quantize(values.data(), inverse.data(), 24, codes.data());
  for (size_t i = 0; i < values.size(); ++i) {
    const int code = i < std::size(x) ? expected[i] : 127;
    Expect(codes[i] == code, std::string(kernels.isa) + " code of " + std::to_string(values[i]) + " is " +
                                 std::to_string(codes[i]));
  }
}

// A sequence given to the operator in calls of different lengths, in one cache.
template <typename T>
class Sequence {
 public:
  Sequence(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t length)
      : heads_(heads), kv_heads_(kv_heads), head_dim_(head_dim), length_(length) {
    Random random;
    tokens_ = random.Values(length * Width());
    const T stale = std::is_same_v<T, float> ? static_cast<T>(kNaN) : T{99};
    key_ = value_ = std::vector<T>(static_cast<size_t>(kv_heads * length * head_dim), stale);
    scale_ = random.Values(kv_heads * head_dim);
    for (float& scale : scale_) {
      scale = 0.01f + 0.005f * scale;
    }
    cosine_ = random.Values(length * head_dim / 2);
    sine_ = random.Values(length * head_dim / 2);
  }

  // Outputs of tokens past .. past + count - 1.
  std::vector<float> Run(int64_t past, int64_t count, int64_t window, bool interleaved) {
    const auto total = static_cast<int32_t>(past + count), fresh = static_cast<int32_t>(count);
    std::vector<float> output(static_cast<size_t>(count * heads_ * head_dim_));
    const float* data = tokens_.data() + past * Width();
    Attention<T> call{};
    call.attributes = {heads_, kv_heads_, true, interleaved, 0.25f, window, 0.0f};
    call.batch = 1;
    call.sequence = count;
    call.head_dim = call.rotary_dim = head_dim_;
    call.past_length = call.present_length = length_;
    call.query = {data, Width()};
    call.key = {data + heads_ * head_dim_, Width()};
    call.value = {data + (heads_ + kv_heads_) * head_dim_, Width()};
    call.past_key = call.present_key = key_.data();
    call.past_value = call.present_value = value_.data();
    call.key_scale = call.value_scale = scale_.data();
    call.total = &total;
    call.count = &fresh;
    call.cosine = cosine_.data();
    call.sine = sine_.data();
    call.output = output.data();
    std::vector<unsigned char> workspace(AttentionWorkspaceBytes(call) + 64);
    void* aligned = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
    Expect(RunAttention(call, aligned, {nullptr, Backwards}), "the executor succeeds");
    if (count > 100) {
      Expect(!RunAttention(call, aligned, {nullptr, Refuse}), "the executor's failure is passed on");
    }
    return output;
  }

 private:
  int64_t Width() const { return (heads_ + 2 * kv_heads_) * head_dim_; }

  int64_t heads_, kv_heads_, head_dim_, length_;
  std::vector<T> key_, value_;
  std::vector<float> tokens_, scale_, cosine_, sine_;
};

// How a sequence is cut into calls does not change a bit.
template <typename T>
void TestCuts() {
  constexpr int64_t kLength = 300;
  for (const int64_t window : {-1, 1, 37}) {
    for (const int64_t kv_heads : {1, 2, 4}) {
      const bool interleaved = kv_heads == 2;
      Sequence<T> whole(4, kv_heads, 24, kLength), cut(4, kv_heads, 24, kLength);
      const std::vector<float> expected = whole.Run(0, kLength, window, interleaved);
      std::vector<float> got;
      int64_t past = 0;
      for (const int64_t count : {1, 1, 60, 1, 129, 1, 107}) {
        const std::vector<float> part = cut.Run(past, count, window, interleaved);
        got.insert(got.end(), part.begin(), part.end());
        past += count;
      }
      Expect(SameBits(got, expected),
             "cuts change bits: kv_heads " + std::to_string(kv_heads) + " window " + std::to_string(window));
    }
  }
}

void TestSelfTestSeesFloatFaults() {
  const FloatKernels& twin = kScalarFloatKernels;
  Expect(SelfTest(twin).empty(), "the twin agrees with itself");
  FloatKernels broken = twin;
  broken.attend = [](const AttentionBlock<float>& block, int64_t begin, int64_t end, const Partial& sums) {
    kScalarFloatKernels.attend(block, begin, end, sums);
    float& value = sums.values[block.rows * block.head_dim - 1];
    value = std::nextafter(value, kInfinity);
  };
  Expect(SelfTest(broken).rfind("attention", 0) == 0, "a wrong value of one chunk is seen");
  broken = twin;
  broken.attend_int8 = [](const AttentionBlock<int8_t>& block, int64_t begin, int64_t end,
                          const Partial& sums) {
    kScalarFloatKernels.attend_int8(block, begin, end, sums);
    float& value = sums.values[block.rows * block.head_dim - 1];
    value = std::nextafter(value, kInfinity);
  };
  Expect(SelfTest(broken).rfind("int8 attention", 0) == 0, "a wrong value of an int8 cache is seen");
  broken = twin;
  broken.quantize = [](const float* x, const float* inverse, int64_t count, int8_t* codes) {
    kScalarFloatKernels.quantize(x, inverse, count, codes);
    std::replace_if(codes, codes + count, [](int8_t code) { return code == -128; }, int8_t{-127});
  };
  Expect(SelfTest(broken) == "int8 keys and values", "a wrong code is seen: " + SelfTest(broken));
  broken = twin;
  broken.merge = [](const Partial&, const Partial&, int64_t, int64_t) {};
  Expect(SelfTest(broken).rfind("attention", 0) == 0, "a chunk left out is seen");
  broken = twin;
  broken.gate = [](Activation activation, const float* gate, const float* up, int64_t count, float* y) {
    kScalarFloatKernels.gate(activation, gate, up, count, y);
    if (activation == Activation::kGeluTanh) {
      std::replace_if(y, y + count, [](float value) { return std::isnan(value); }, 0.0f);
    }
  };
  Expect(SelfTest(broken) == "gated activation gelu_tanh", "a lost NaN is seen: " + SelfTest(broken));
}

}  // namespace

int TestFloatKernels() {
  failures = 0;
  const FloatKernels& kernels = ChosenFloatKernels();
  Expect(SelfTest(kernels).empty(), SelfTest(kernels));
  TestSelfTestSeesFloatFaults();
  TestFunctions();
  TestGate(kernels);
  TestQuantize(kernels);
  TestChunks<float>(kernels);
  TestChunks<int8_t>(kernels);
  TestCuts<float>();
  TestCuts<int8_t>();
  std::printf("%s float kernels: %d failures\n", kernels.isa, failures);
  return failures;
}

}  // namespace bitnet
