// The arithmetic of bitnet::BitLinear and bitnet::BitEmbedding, free of any runtime's types.
//
// docs/operator.md is the contract: layout of the weights and exact order of all float operations.
#ifndef BITNET_KERNELS_BITLINEAR_H_
#define BITNET_KERNELS_BITLINEAR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)  // other compilers have an option for it
#endif

namespace bitnet {

constexpr int64_t kPanelRows = 32;
// Columns of one unit of weights: activations are padded with zeros to a multiple of it.
constexpr int64_t kStep = 16;
// One block of a unit: a 32-bit word of each row of the panel. A unit has bits / 2 of them.
constexpr int64_t kBlockBytes = 4 * kPanelRows;
// Where the largest activation of a token falls: 127 * 256 leaves room for the low digit's rounding.
constexpr float kLargest8 = 127.0f;
constexpr float kLargest16 = 32512.0f;
// Tokens that one work item handles, and tokens that share one workspace.
constexpr int64_t kTokensPerItem = 32;
constexpr int64_t kTokensPerBlock = 256;
// Panels that a kernel is given at a time, when tokens are few and when they are many. For few it is memory
// that counts: several panels read in turn are several streams, and come up to a half faster than one.
constexpr int64_t kPanelsForFew = 4;
constexpr int64_t kPanelsForMany = 2;
constexpr int64_t kFewTokens = 3;

struct Attributes {
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t bits = 2;
  int64_t zero_point = 2;
  int64_t group_size = 0;
  int64_t activation_bits = 8;
  float epsilon = 1e-5f;
};

// One packed matrix: attributes, the sizes that follow from them, and borrowed constants.
struct Linear {
  Attributes attributes;
  int64_t groups = 1;
  int64_t panels = 0;
  int64_t unit_bytes = 0;
  int64_t panel_bytes = 0;  // padding included, as in weight_bytes
  int64_t weight_bytes = 0;
  const uint8_t* weight = nullptr;
  const float* scale = nullptr;  // with groups [panels, groups, kPanelRows]
  bool scale_per_row = false;    // false: one scale for the whole matrix
  const float* norm_weight = nullptr;
  const float* bias = nullptr;

  bool quantized() const { return attributes.activation_bits != 0; }
  // Int8 digits that hold one activation: the value itself, or the high and the low byte of 16 bits.
  int64_t digits() const { return attributes.activation_bits == 16 ? 2 : 1; }
};

// Integer activations of one token: the values, or one of their two digits.
struct Digits {
  int8_t* q;      // in an order that the kernel chooses, zeros up to a multiple of kStep
  int32_t* sums;  // sum of q for each group
};

// One token's activations, ready for `Kernels::panel`.
struct Token {
  float* factor;     // s; NaN for a token with a non-finite value
  Digits digits[2];  // the values; or the high digits, then the low ones
  float* x;          // float activations (activation_bits 0), zeros up to a multiple of kStep
};

// Some panels, evenly spaced.
struct PanelSet {
  int64_t first, stride, count;

  int64_t operator[](int64_t p) const { return first + p * stride; }
};

// The functions of one instruction set.
struct Kernels {
  const char* isa;
  // Step 1 of the contract: RMSNorm of one row of in_features values; `out` may be `x`.
  void (*normalize)(const Linear&, const float* x, float* out);
  // Steps 2 and 3: fills token.factor and its digits from one row.
  void (*quantize)(const Linear&, const float* x, const Token& token);
  // Steps 4 and 5: y[(p * count + t) * kPanelRows + c] for the rows of some panels (beyond N: anything). There
  // are up to kFewTokens tokens and kPanelsForFew panels, or up to kTokensPerItem and kPanelsForMany.
  void (*panels)(const Linear&, const Token* tokens, int64_t count, PanelSet panels, float* y);
};

extern const Kernels kScalarKernels;
#if defined(BITNET_HAVE_AVX2)
extern const Kernels kAvx2Kernels;
#endif
#if defined(BITNET_HAVE_AVX512)
extern const Kernels kAvx512Kernels;
#endif
#if defined(BITNET_HAVE_AVXVNNI)
extern const Kernels kAvxVnniKernels;
#endif
#if defined(BITNET_HAVE_AVX512VNNI)
extern const Kernels kAvx512VnniKernels;
#endif
#if defined(BITNET_HAVE_NEON)
extern const Kernels kNeonKernels;
#endif
#if defined(BITNET_HAVE_DOTPROD)
extern const Kernels kDotprodKernels;
#endif
#if defined(BITNET_HAVE_I8MM)
extern const Kernels kI8mmKernels;
#endif

// The kernels for this process: chosen once by CPU features, environment and self-test.
struct Choice {
  const Kernels* kernels = nullptr;
  std::string error;    // not empty: BITNET_ONNX_ISA cannot be honoured
  std::string warning;  // not empty: the self-test failed and the scalar kernels are used
};
const Choice& ChosenKernels();

// All that this processor can run, best first; the last are the scalar ones.
std::vector<const Kernels*> UsableKernels();

// What disagrees between `kernels` and the scalar twin; empty when nothing does.
std::string SelfTest(const Kernels& kernels);

// What is wrong with the attributes, in one line; empty when nothing is.
std::string Validate(const Attributes& attributes);

// The sizes that follow from valid attributes.
Linear MakeLinear(const Attributes& attributes);

enum class Element { kFloat, kHalf };

// Runs fn(arg, i) for every i < n in any order on any threads; false if that cannot be done.
struct Executor {
  void* self;
  bool (*parallel_for)(void* self, size_t n, void (*fn)(void*, size_t), void* arg);
};

// Bytes that `Run` needs for this many tokens, aligned to 64.
size_t WorkspaceBytes(const Linear& linear, int64_t tokens);

// y[tokens, N] = BitLinear(x[tokens, K]), both of type `element`; false if the executor failed.
bool Run(const Kernels& kernels, const Linear& linear, Element element, const void* x, int64_t tokens, void* y,
         void* workspace, const Executor& executor);

// y[count, K] = the rows named by ids, each in 0 .. N-1.
void GatherRows(const Linear& linear, const int64_t* ids, int64_t count, float* y);

}  // namespace bitnet

#endif  // BITNET_KERNELS_BITLINEAR_H_
