/* What the host and the shaders agree on: function constants, and each kernel's arguments, buffers and grid.
 *
 * Plain C that is included by the shaders as well. Names of kernels are the function names in shaders/.
 *
 * Grids: "{a, b, c}" are threadgroups. Threads of a threadgroup are {32 * S, 1, 1}, where S is the constant
 * SIMDGROUPS of the pipeline, 1 to 32 unless said otherwise. A grid with a zero must not be dispatched.
 * Buffers: "float|half" is half where the constant HALF is 1. Optional ones need no binding where their
 * constant is 0. Offsets of bindings are multiples of 4 bytes; weights lie on multiples of 16. Limits: the host
 * checks that elements of a tensor (weights: 32-bit words) count less than 2^32, and everything that the
 * contracts (docs/operator.md, docs/attention.md) demand. Shaders check nothing but the ids of `embedding`.
 */
#ifndef BITNET_METAL_ARGUMENTS_H_
#define BITNET_METAL_ARGUMENTS_H_

#if defined(__METAL_VERSION__) || defined(__OPENCL_CPP_VERSION__)
#include <metal_stdlib>
#else
#include <stdint.h>
#endif

/* Function constants, all uint. */
enum {
  kConstantSimdgroups = 0,    /* SIMD groups of a threadgroup */
  kConstantHalf = 1,          /* values are half and not float */
  kConstantBits = 2,          /* of one weight: 2, 4, 6 or 8 */
  kConstantScaleKind = 3,     /* kScaleOne, kScaleRows or kScaleGroups */
  kConstantNorm = 4,          /* quantize_activations: 1 with norm_weight; norms: 1 with weight */
  kConstantBias = 5,          /* 1 with bias */
  kConstantPanels = 6,        /* matvec, matvec_small: panels that a SIMD group takes at once: 1, 2 or 4 */
  kConstantUnroll = 7,        /* matvec, matvec_small: units whose words are loaded together: 1, 2 or 4 */
  kConstantTokens = 8,        /* matvec_small: tokens taken at once, 1 to 8; Panels * Tokens <= 16 */
  kConstantMasks = 9,         /* matvec, matvec_small with 2 bits: 1 by masks and sums, 0 by products */
  kConstantMatrices = 10,     /* matmul: 1 by simdgroup_matrix, 0 by integers: the same results */
  kConstantResidual = 11,     /* norms: 1 with a residual that is added first */
  kConstantInt8Cache = 12,    /* attention_prepare, attention, attention_copy: 1 with an int8 cache */
  kConstantRotary = 13,       /* attention_prepare: 0 none, 1 halves, 2 interleaved */
  kConstantQueryLengths = 14, /* attention*: 1 with query_seqlens */
  kConstantRows = 15,         /* attention, attention_merge: query rows of a threadgroup, see there */
  kConstantSplit = 16,        /* attention: 1 one chunk of keys for each threadgroup, 0 all */
  kConstantOperation = 17,    /* unary, binary, gated: which */
};

enum { kScaleOne = 0, kScaleRows = 1, kScaleGroups = 2 };

enum {
  kPanelRows = 32,      /* rows of a panel */
  kUnitColumns = 16,    /* columns of a unit */
  kPanelWords = 32,     /* 32-bit words of one block of a unit */
  kColumnMultiple = 64, /* columns and codes are padded to it */
  kTileTokens = 32,     /* tokens of one tile of matmul */
  kMatmulSimdgroups = 4,
  kChunkKeys = 128, /* keys of one chunk of attention */
  kMaxAttentionRows = 8,
  kMaxAttentionFloats = 2048, /* rows * head_dim of one threadgroup of attention */
  kMaxHeadDim = 512,
};

/* ---- bitlinear.metal ----------------------------------------------------------------------------------------
 */

/* One packed matrix and the tokens of this call. */
typedef struct {
  uint32_t in_features;  /* K */
  uint32_t out_features; /* N */
  uint32_t tokens;       /* M */
  uint32_t groups;       /* 1 without groups, else ceil(K / group_size) */
  uint32_t group_size;   /* K rounded up to 64 without groups */
  uint32_t zero_point;
  uint32_t padded; /* K rounded up to 64: bytes of a token's codes */
  float epsilon;   /* of the fused RMSNorm */
} LinearArguments;

/* quantize_activations: steps 1 to 3 of the contract. Grid {M, 1, 1}.
 * Constants: Simdgroups, Half, Norm. */
enum {
  kQuantizeArguments = 0,  /* LinearArguments */
  kQuantizeX = 1,          /* in: float|half [M, K] */
  kQuantizeNormWeight = 2, /* in, with Norm: float [K] */
  kQuantizeCodes = 3,      /* out: int8 [M, padded], zeros beyond K */
  kQuantizeFactor = 4,     /* out: float [M]: s, NaN for a token with a non-finite value */
  kQuantizeSums = 5,       /* out: int32 [M, groups]: sums of the codes */
};

/* matvec (M = 1), matvec_small (any M, meant for 2 to 8), matmul (any M): steps 4 to 6. One panel is 32 rows of
 * weights. Constants of all: Simdgroups, Half (of y), Bits, ScaleKind, Bias.
 * matvec:       {ceil(panels / Panels), 1, 1}; also Panels, Unroll, Masks (0 unless Bits is 2).
 * matvec_small: {ceil(panels / Panels), ceil(M / Tokens), 1}; also Panels, Unroll, Masks, Tokens.
 * matmul:       {panels, ceil(M / kTileTokens), 1}; also Matrices; Simdgroups is kMatmulSimdgroups.
 * Simdgroups of the first two is at most 8: they share the columns of the same rows. */
enum {
  kLinearArguments = 0, /* LinearArguments */
  kLinearWeight = 1,    /* in: uint8 [panels, padded / 16, 64 * bits] */
  kLinearScale = 2,     /* in: float [1], [N] or [panels, groups, 32] by ScaleKind */
  kLinearBias = 3,      /* in, with Bias: float [N] */
  kLinearCodes = 4,     /* in: of quantize_activations */
  kLinearFactor = 5,
  kLinearSums = 6,
  kLinearY = 7, /* out: float|half [M, N] */
};

/* embedding: rows of a packed matrix. Grid {tokens, 1, 1}. Uses tokens (the number of ids), in_features,
 * out_features, groups, group_size, zero_point and padded. An id outside 0 .. N-1 gives a row of NaN: the host
 * checks ids. Constants: Simdgroups, Half (of y), Bits, ScaleKind. */
enum {
  kEmbeddingArguments = 0, /* LinearArguments */
  kEmbeddingIds = 1,       /* in: int64 [tokens] */
  kEmbeddingWeight = 2,    /* in: as kLinearWeight */
  kEmbeddingScale = 3,     /* in: as kLinearScale */
  kEmbeddingY = 4,         /* out: float|half [tokens, K] */
};

/* ---- norm.metal ---------------------------------------------------------------------------------------------
 */

typedef struct {
  uint32_t width; /* K, the last axis */
  float epsilon;
} NormArguments;

/* rms_norm: y = (x * inv) * weight, inv = 1 / sqrt(lanes16(x * x) / K + epsilon), as in step 1 of BitLinear.
 * layer_norm: d = x - lanes16(x) / K; y = (d * inv) * weight + bias, inv = 1 / sqrt(lanes16(d * d) / K +
 * epsilon). With Residual, x + residual takes the place of x and is written to `sum`. Grid {rows, 1, 1}.
 * Constants: Simdgroups, Half, Norm (0: no weight), Residual; layer_norm also Bias. */
enum {
  kNormArguments = 0, /* NormArguments */
  kNormX = 1,         /* in: float|half [rows, K] */
  kNormWeight = 2,    /* in, with Norm: float [K] */
  kNormBias = 3,      /* in, layer_norm with Bias: float [K] */
  kNormResidual = 4,  /* in, with Residual: float|half [rows, K] */
  kNormSum = 5,       /* out, with Residual: float|half [rows, K]; may be the memory of x or residual */
  kNormY = 6,         /* out: float|half [rows, K]; may be the memory of x without Residual */
};

/* ---- rope.metal and attention.metal -------------------------------------------------------------------------
 */

/* One call of bitnet::GroupQueryAttention on a cache [B, KV, L, D] that is written in place. */
typedef struct {
  uint32_t batch;        /* B */
  uint32_t sequence;     /* S: tokens of each row in this call, padding included */
  uint32_t heads;        /* H */
  uint32_t kv_heads;     /* KV */
  uint32_t head_dim;     /* D: a multiple of 8 up to 512 */
  uint32_t rotary_dim;   /* R: features that are rotated */
  uint32_t cache_length; /* L of the present cache */
  uint32_t past_length;  /* L of the past cache: attention_copy only */
  uint32_t query_stride; /* elements from one token to the next, where heads lie side by side */
  uint32_t key_stride;
  uint32_t value_stride;
  uint32_t window; /* keys that a query sees, itself included; 0: all before it */
  uint32_t chunks; /* attention with Split, attention_merge: ceil(longest row / kChunkKeys) */
  float scale;     /* of the scores; by default 1.0f / sqrtf(head_dim) */
  float softcap;   /* 0: off */
} AttentionArguments;

/* attention_prepare: rotates queries into a workspace, and puts new keys (rotated) and values into the cache;
 * the outputs of padding become zero. Grid {ceil((H + 2 KV) * D / (32 * Simdgroups)), S, B}. Constants:
 * Simdgroups, Int8Cache, Rotary, QueryLengths. */
enum {
  kPrepareArguments = 0, /* AttentionArguments */
  kPrepareQuery = 1,     /* in: float [B, S, ...]; packed queries, keys and values: one buffer, three offsets */
  kPrepareKey = 2,       /* in: float [B, S, ...] */
  kPrepareValue = 3,     /* in: float [B, S, ...] */
  kPrepareTotals = 4,    /* in: int32 [B]: seqlens_k */
  kPrepareQueryLengths = 5, /* in, with QueryLengths: int32 [B]: query_seqlens */
  kPrepareCosine = 6,       /* in, with Rotary: float [positions, R / 2] */
  kPrepareSine = 7,         /* in, with Rotary: float [positions, R / 2] */
  kPrepareKeyScale = 8,     /* in, with Int8Cache: float [KV, D] */
  kPrepareValueScale = 9,   /* in, with Int8Cache: float [KV, D] */
  kPrepareKeyCache = 10,    /* out: float or int8 [B, KV, L, D] */
  kPrepareValueCache = 11,  /* out: float or int8 [B, KV, L, D] */
  kPrepareRotated = 12,     /* out: float [B, KV, S * H / KV, D]: the queries, scaled */
  kPrepareOutput = 13,      /* out: float [B, S, H * D]: only padding is written */
};

/* attention: after attention_prepare. Rows of one head of keys are its S * H / KV queries, token by token.
 * Rows is at most kMaxAttentionRows, and Rows * D at most kMaxAttentionFloats. Simdgroups is at most 16.
 * Grid {ceil(S * H / KV / Rows), B * KV, Split ? chunks : 1}.
 * With Split, each threadgroup leaves the sums of one chunk in `partials`, and attention_merge with the same
 * Rows must follow, with the grid {ceil(S * H / KV / Rows), B * KV, 1}. Worth it for few rows and many keys.
 * Constants of attention: Simdgroups, Int8Cache, QueryLengths, Rows, Split.
 * Constants of attention_merge: Simdgroups, Int8Cache, QueryLengths, Rows. */
enum {
  kAttentionArguments = 0,    /* AttentionArguments */
  kAttentionTotals = 1,       /* in: int32 [B]: seqlens_k */
  kAttentionQueryLengths = 2, /* in, with QueryLengths: int32 [B] */
  kAttentionRotated = 3,      /* in: float [B, KV, S * H / KV, D]; attention only */
  kAttentionKeyCache = 4,     /* in: float or int8 [B, KV, L, D]; attention only */
  kAttentionValueCache = 5,   /* in: float or int8 [B, KV, L, D]; attention only */
  kAttentionValueScale = 6,   /* in, with Int8Cache: float [KV, D] */
  kAttentionPartials = 7, /* out with Split, in for attention_merge: float [B, KV, S * H / KV, chunks, D + 2] */
  kAttentionOutput = 8,   /* out: float [B, S, H * D]; not with Split */
};

/* attention_copy: where the present cache is not the past one: copies old rows and clears the rows from T on.
 * Runs before attention_prepare. Grid {ceil(L * D / (32 * Simdgroups)), B * KV, 1}. Constants: Simdgroups,
 * Int8Cache, QueryLengths. */
enum {
  kCopyArguments = 0,    /* AttentionArguments */
  kCopyTotals = 1,       /* in: int32 [B]: seqlens_k */
  kCopyQueryLengths = 2, /* in, with QueryLengths: int32 [B] */
  kCopyPastKey = 3,      /* in: [B, KV, past_length, D] */
  kCopyPastValue = 4,
  kCopyKeyCache = 5, /* out: [B, KV, cache_length, D] */
  kCopyValueCache = 6,
};

/* ---- elementwise.metal --------------------------------------------------------------------------------------
 */

/* Operations of `unary`; those of `gated` are the ones from kActivationSilu to kActivationQuickGelu. */
enum {
  kActivationSilu = 0,
  kActivationRelu2 = 1,
  kActivationGelu = 2,
  kActivationGeluTanh = 3,
  kActivationRelu = 4,
  kActivationQuickGelu = 5,
  kUnarySigmoid = 6,
  kUnaryTanh = 7,
  kUnaryScale = 8,   /* x * value */
  kUnarySoftcap = 9, /* value * tanh(x * (1 / value)) */
};

typedef struct {
  uint32_t count; /* elements of y */
  float value;
} UnaryArguments;

/* unary: grid {ceil(count / (32 * Simdgroups)), 1, 1}. Constants: Simdgroups, Half, Operation. */
enum {
  kUnaryArguments = 0, /* UnaryArguments */
  kUnaryX = 1,         /* in: float|half [count] */
  kUnaryY = 2,         /* out: float|half [count]; may be the memory of x */
};

enum { kBinaryAdd = 0, kBinaryMul = 1, kBinarySub = 2 };

typedef struct {
  uint32_t count;   /* elements of y and a */
  uint32_t b_count; /* elements of b, which is repeated: 1, the last axis of a, or count */
} BinaryArguments;

/* binary: y = a op b. Grid {ceil(count / (32 * Simdgroups)), 1, 1}. Constants: Simdgroups, Half, Operation. */
enum {
  kBinaryArguments = 0, /* BinaryArguments */
  kBinaryA = 1,         /* in: float|half [count] */
  kBinaryB = 2,         /* in: float|half [b_count] */
  kBinaryY = 3,         /* out: float|half [count]; may be the memory of a, or of b without broadcast */
};

enum { kMaxAxes = 8 };

typedef struct {
  uint32_t count;             /* elements of y */
  uint32_t axes;              /* of y, at most kMaxAxes */
  uint32_t sizes[kMaxAxes];   /* of y, first axis first */
  uint32_t a_steps[kMaxAxes]; /* elements of a from one place of an axis to the next; 0 where a is repeated */
  uint32_t b_steps[kMaxAxes];
} BroadcastArguments;

/* broadcast_binary: y = a op b, both repeated along any axes. Grid {ceil(count / (32 * Simdgroups)), 1, 1}.
 * Constants: Simdgroups, Half, Operation of `binary`. */
enum {
  kBroadcastArguments = 0, /* BroadcastArguments */
  kBroadcastA = 1,         /* in: float|half */
  kBroadcastB = 2,         /* in: float|half */
  kBroadcastY = 3,         /* out: float|half [count] */
};

typedef struct {
  uint32_t rows;
  uint32_t width;  /* I */
  uint32_t stride; /* elements from one row of gate to the next, and of up */
} GatedArguments;

/* gated: y = act(gate) * up. Gate and up side by side: one buffer, stride 2 I, up at offset I.
 * Grid {ceil(rows * width / (32 * Simdgroups)), 1, 1}. Constants: Simdgroups, Half, Operation. */
enum {
  kGatedArguments = 0, /* GatedArguments */
  kGatedGate = 1,      /* in: float|half [rows, stride] */
  kGatedUp = 2,        /* in: float|half [rows, stride] */
  kGatedY = 3,         /* out: float|half [rows, I] */
};

typedef struct {
  uint32_t rows;
  uint32_t width;    /* of x */
  uint32_t selected; /* of y */
} GatherArguments;

/* gather_columns: y[r, i] = x[r, columns[i]], or 0 where columns[i] is -1. The host checks the columns.
 * Grid {ceil(rows * selected / (32 * Simdgroups)), 1, 1}. Constants: Simdgroups, Half. */
enum {
  kGatherArguments = 0, /* GatherArguments */
  kGatherX = 1,         /* in: float|half [rows, width] */
  kGatherColumns = 2,   /* in: int32 [selected], -1 .. width - 1 */
  kGatherY = 3,         /* out: float|half [rows, selected] */
};

#endif /* BITNET_METAL_ARGUMENTS_H_ */
