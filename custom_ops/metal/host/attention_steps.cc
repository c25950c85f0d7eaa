// GroupQueryAttention: docs/attention.md.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "metal/arguments.h"
#include "metal/host/build.h"

namespace bitnet::metal {
namespace {

enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kSeqlensK,
  kTotal,
  kCosine,
  kSine,
  kQuerySeqlens,
  kKeyScale,
  kValueScale,
  kInputCount
};

// Sizes of threadgroups; to be measured on Apple hardware.
constexpr uint32_t kCopyGroups = 4;
constexpr uint32_t kPrepareGroups = 2;
constexpr uint32_t kAttentionGroups = 4;
constexpr uint32_t kMergeGroups = 4;
constexpr int64_t kEnoughThreadgroups = 64;  // from which on one call needs no chunks side by side

// What a call says of its rows and caches.
struct Sizes {
  int64_t batch, sequence, head_dim, past, present, longest;
};

class Attention final : public Step {
 public:
  int64_t heads, kv_heads, window;
  bool separate, rotary, int8, interleaved;
  float scale, softcap;
  int in[kInputCount];
  int output, present_key, present_value, rotated, partials;
  Kernel copy, prepare, merge[kMaxAttentionRows + 1], attention[2][kMaxAttentionRows + 1];

  void Prepare(Call& call) const override {
    const Sizes s = Read(call);
    call.SetShape(output, {s.batch, s.sequence, heads * s.head_dim});
    const Shape cache{s.batch, kv_heads, s.present, s.head_dim};
    call.SetShape(present_key, cache);
    call.SetShape(present_value, cache);
    const int64_t rows = Product({s.batch, s.sequence, heads});
    Count(Product(cache));
    Count(Product({rows, s.head_dim}) * 3);
    call.SetBytes(rotated, static_cast<size_t>(rows * s.head_dim) * sizeof(float));
    const int64_t chunks = Splits(s) ? Chunks(s) : 0;
    const int64_t sums = Product({rows, chunks, s.head_dim + 2});
    Count(sums);
    call.SetBytes(partials, static_cast<size_t>(sums) * sizeof(float));
  }

  void Encode(Call& call) const override {
    const Sizes s = Read(call);
    const bool in_place = call.SameMemory(in[kPastKey], present_key);
    const bool has_past = s.batch > 0 && s.past > 0;
    if (has_past &&
        (in_place != call.SameMemory(in[kPastValue], present_value) || (in_place && s.present != s.past))) {
      Fail(
          "past and present share memory in part; both caches must be shared whole, with total_sequence_length "
          "within their length, or not at all");
    }
    if (call.cache == kNone) {
      call.cache = present_key;
    }
    const AttentionArguments arguments = Arguments(s);
    if (!in_place) {
      Copy(call, arguments, s);
    }
    Place(call, arguments, s);
    Attend(call, arguments, s);
  }

 private:
  int64_t RowsOfHead(const Sizes& s) const { return s.sequence * (heads / kv_heads); }
  static int64_t Chunks(const Sizes& s) { return CeilDiv(s.longest, kChunkKeys); }
  int64_t Rows(const Sizes& s) const {
    return std::max<int64_t>(
        1, std::min({RowsOfHead(s), int64_t{kMaxAttentionRows}, int64_t{kMaxAttentionFloats} / s.head_dim}));
  }
  bool Splits(const Sizes& s) const {
    return Chunks(s) > 1 && CeilDiv(RowsOfHead(s), Rows(s)) * s.batch * kv_heads < kEnoughThreadgroups;
  }

  AttentionArguments Arguments(const Sizes& s) const {
    const int64_t packed = (heads + 2 * kv_heads) * s.head_dim;
    AttentionArguments a{};
    a.batch = Count(s.batch);
    a.sequence = Count(s.sequence);
    a.heads = Count(heads);
    a.kv_heads = Count(kv_heads);
    a.head_dim = Count(s.head_dim);
    a.cache_length = Count(s.present);
    a.past_length = Count(s.past);
    a.query_stride = Count(separate ? heads * s.head_dim : packed);
    a.key_stride = a.value_stride = Count(separate ? kv_heads * s.head_dim : packed);
    a.window = window < 0 ? 0 : Count(std::min<int64_t>(window, std::numeric_limits<int32_t>::max()));
    a.chunks = Count(Chunks(s));
    a.scale = scale == 0.0f ? 1.0f / std::sqrt(static_cast<float>(s.head_dim)) : scale;
    a.softcap = softcap;
    return a;
  }

  void Copy(Call& call, const AttentionArguments& arguments, const Sizes& s) const {
    call.Use(copy);
    call.Arguments(kCopyArguments, arguments);
    call.Bind(kCopyTotals, in[kSeqlensK]);
    if (in[kQuerySeqlens] != kNone) {
      call.Bind(kCopyQueryLengths, in[kQuerySeqlens]);
    }
    call.Bind(kCopyPastKey, in[kPastKey]);
    call.Bind(kCopyPastValue, in[kPastValue]);
    call.Bind(kCopyKeyCache, present_key);
    call.Bind(kCopyValueCache, present_value);
    call.Dispatch(CeilDiv(s.present * s.head_dim, 32 * kCopyGroups), s.batch * kv_heads, 1, kCopyGroups);
  }

  void Place(Call& call, AttentionArguments arguments, const Sizes& s) const {
    call.Use(prepare);
    if (rotary) {
      arguments.rotary_dim = Count(2 * call.ShapeOf(in[kCosine])[1]);
    }
    call.Arguments(kPrepareArguments, arguments);
    const auto skipped = [&](int64_t count) { return static_cast<size_t>(count * s.head_dim) * sizeof(float); };
    call.Bind(kPrepareQuery, in[kQuery]);
    call.Bind(kPrepareKey, separate ? in[kKey] : in[kQuery], separate ? 0 : skipped(heads));
    call.Bind(kPrepareValue, separate ? in[kValue] : in[kQuery], separate ? 0 : skipped(heads + kv_heads));
    call.Bind(kPrepareTotals, in[kSeqlensK]);
    if (in[kQuerySeqlens] != kNone) {
      call.Bind(kPrepareQueryLengths, in[kQuerySeqlens]);
    }
    if (rotary) {
      call.Bind(kPrepareCosine, in[kCosine]);
      call.Bind(kPrepareSine, in[kSine]);
    }
    if (int8) {
      call.Bind(kPrepareKeyScale, in[kKeyScale]);
      call.Bind(kPrepareValueScale, in[kValueScale]);
    }
    call.Bind(kPrepareKeyCache, present_key);
    call.Bind(kPrepareValueCache, present_value);
    call.Bind(kPrepareRotated, rotated);
    call.Bind(kPrepareOutput, output);
    call.Dispatch(CeilDiv((heads + 2 * kv_heads) * s.head_dim, 32 * kPrepareGroups), s.sequence, s.batch,
                  kPrepareGroups);
  }

  void Attend(Call& call, const AttentionArguments& arguments, const Sizes& s) const {
    const int64_t rows = Rows(s), blocks = CeilDiv(RowsOfHead(s), rows), all_heads = s.batch * kv_heads;
    const bool split = Splits(s);
    call.Use(attention[split ? 1 : 0][rows]);
    BindCommon(call, arguments);
    call.Bind(kAttentionRotated, rotated);
    call.Bind(kAttentionKeyCache, present_key);
    call.Bind(kAttentionValueCache, present_value);
    call.Bind(split ? kAttentionPartials : kAttentionOutput, split ? partials : output);
    call.Dispatch(blocks, all_heads, split ? Chunks(s) : 1, kAttentionGroups);
    if (split) {
      call.Use(merge[rows]);
      BindCommon(call, arguments);
      call.Bind(kAttentionPartials, partials);
      call.Bind(kAttentionOutput, output);
      call.Dispatch(blocks, all_heads, 1, kMergeGroups);
    }
  }

  void BindCommon(Call& call, const AttentionArguments& arguments) const {
    call.Arguments(kAttentionArguments, arguments);
    call.Bind(kAttentionTotals, in[kSeqlensK]);
    if (in[kQuerySeqlens] != kNone) {
      call.Bind(kAttentionQueryLengths, in[kQuerySeqlens]);
    }
    if (int8) {
      call.Bind(kAttentionValueScale, in[kValueScale]);
    }
  }

  Sizes Read(const Call& call) const {
    const Shape& key = call.ShapeOf(in[kPastKey]);
    if (key.size() != 4 || key[1] != kv_heads) {
      FailShape("past_key", key, "[batch, " + std::to_string(kv_heads) + ", length, head_dim]");
    }
    if (call.ShapeOf(in[kPastValue]) != key) {
      FailShape("past_value", call.ShapeOf(in[kPastValue]), "that of past_key, " + ToString(key));
    }
    Sizes s{key[0], 0, key[3], key[2], 0, 0};
    if (s.head_dim < 8 || s.head_dim > kMaxHeadDim || s.head_dim % 8 != 0) {
      Fail("head_dim, the last dimension of past_key, is " + std::to_string(s.head_dim) +
           "; it must be a multiple of 8 up to " + std::to_string(kMaxHeadDim));
    }
    ReadTokens(call, s);
    ReadLengths(call, s);
    ReadTables(call, s);
    return s;
  }

  void ReadTokens(const Call& call, Sizes& s) const {
    const auto check = [&](size_t index, const char* name, int64_t count) {
      const Shape& shape = call.ShapeOf(in[index]);
      if (shape.size() == 3 && index == kQuery) {
        s.sequence = shape[1];
      }
      const Shape expected{s.batch, s.sequence, count * s.head_dim};
      if (shape != expected) {
        FailShape(name, shape, ToString(expected));
      }
    };
    check(kQuery, "query", separate ? heads : heads + 2 * kv_heads);
    if (separate) {
      check(kKey, "key", kv_heads);
      check(kValue, "value", kv_heads);
    }
  }

  void ReadLengths(const Call& call, Sizes& s) const {
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
    if (Product(call.ShapeOf(in[kTotal])) != 1) {
      FailShape("total_sequence_length", call.ShapeOf(in[kTotal]), "[] or [1]");
    }
    const int64_t total = *static_cast<const int32_t*>(call.Host(in[kTotal]));
    const int64_t limit = std::min(kLargest, s.past + s.sequence);
    if (total < 0 || total > limit) {
      Fail("total_sequence_length is " + std::to_string(total) + "; it must be from 0 to " +
           std::to_string(limit) + ", the lengths of past_key and query together");
    }
    s.present = std::max(s.past, total);
    const int32_t* last = Ints(call, kSeqlensK, "seqlens_k", s.batch);
    const int32_t* given =
        in[kQuerySeqlens] == kNone ? nullptr : Ints(call, kQuerySeqlens, "query_seqlens", s.batch);
    for (int64_t b = 0; b < s.batch; ++b) {
      if (last[b] < 0 || last[b] >= total) {
        FailLength("seqlens_k", b, last[b], 0, total - 1);
      }
      const int64_t tokens = int64_t{last[b]} + 1, most = std::min(s.sequence, tokens);
      const int64_t count = given == nullptr ? most : given[b];
      if (count < 0 || count > most) {
        FailLength("query_seqlens", b, count, 0, most);
      }
      if (tokens - count > s.past) {
        Fail("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(last[b]) + " with " +
             std::to_string(count) + " new tokens; the cache has only " + std::to_string(s.past) +
             " rows for the " + std::to_string(tokens - count) + " before them");
      }
      s.longest = std::max(s.longest, tokens);
    }
  }

  const int32_t* Ints(const Call& call, size_t index, const char* name, int64_t count) const {
    if (call.ShapeOf(in[index]) != Shape{count}) {
      FailShape(name, call.ShapeOf(in[index]), ToString({count}));
    }
    return static_cast<const int32_t*>(call.Host(in[index]));
  }

  void ReadTables(const Call& call, const Sizes& s) const {
    if (rotary) {
      const Shape& cosine = call.ShapeOf(in[kCosine]);
      if (cosine.size() != 2 || cosine[0] < s.longest || cosine[1] > s.head_dim / 2) {
        FailShape("cos_cache", cosine,
                  "[at least " + std::to_string(s.longest) + " positions, at most " +
                      std::to_string(s.head_dim / 2) + "]");
      }
      if (call.ShapeOf(in[kSine]) != cosine) {
        FailShape("sin_cache", call.ShapeOf(in[kSine]), "that of cos_cache, " + ToString(cosine));
      }
    }
    if (int8) {
      CheckScale(call, kKeyScale, "key_scale", s);
      CheckScale(call, kValueScale, "value_scale", s);
    }
  }

  void CheckScale(const Call& call, size_t index, const char* name, const Sizes& s) const {
    // Below the normal numbers the reciprocal may be infinite.
    constexpr float kSmallest = std::numeric_limits<float>::min(), kLargest = std::numeric_limits<float>::max();
    const Shape expected{kv_heads, s.head_dim};
    if (call.ShapeOf(in[index]) != expected) {
      FailShape(name, call.ShapeOf(in[index]), ToString(expected));
    }
    const auto* scales = static_cast<const float*>(call.Host(in[index]));
    for (int64_t i = 0; i < kv_heads * s.head_dim; ++i) {
      if (!(scales[i] >= kSmallest && scales[i] <= kLargest)) {
        Fail(std::string(name) + ToString({i / s.head_dim, i % s.head_dim}) + " is " +
             std::to_string(scales[i]) + "; it must be a positive, finite and normal number");
      }
    }
  }

  [[noreturn]] void FailShape(const char* name, const Shape& shape, const std::string& expected) const {
    Fail(std::string(name) + " has shape " + ToString(shape) + "; it must be " + expected);
  }

  [[noreturn]] void FailLength(const char* name, int64_t row, int64_t value, int64_t low, int64_t high) const {
    Fail(std::string(name) + "[" + std::to_string(row) + "] is " + std::to_string(value) +
         "; it must be from " + std::to_string(low) + " to " + std::to_string(high));
  }
};

bool ReadAttributes(const Node& node, Attention& a) {
  constexpr int64_t kMaxHeads = 1 << 16;
  a.heads = node.Int("num_heads", 0);
  a.kv_heads = node.Int("kv_num_heads", 0);
  const int64_t rotary = node.Int("do_rotary", 0), interleaved = node.Int("rotary_interleaved", 0);
  a.rotary = rotary == 1;
  a.interleaved = interleaved == 1;
  a.scale = node.Float("scale", 0.0f);
  a.softcap = node.Float("softcap", 0.0f);
  a.window = node.Int("local_window_size", -1);
  return a.heads >= 1 && a.heads <= kMaxHeads && a.kv_heads >= 1 && a.heads % a.kv_heads == 0 &&
         (rotary == 0 || rotary == 1) && (interleaved == 0 || interleaved == 1) && std::isfinite(a.scale) &&
         a.scale >= 0.0f && std::isfinite(a.softcap) && a.softcap >= 0.0f && (a.window == -1 || a.window >= 1);
}

bool HasType(const Builder& builder, const Node& node, size_t index, Type type) {
  const Value* value = builder.Input(node, index);
  return value != nullptr && value->type == type;
}

// Which inputs are there, and of which types.
bool ReadInputs(const Builder& builder, const Node& node, Attention& a) {
  for (size_t i = 0; i < kInputCount; ++i) {
    a.in[i] = node.Has(i) ? node.inputs[i] : kNone;
  }
  a.separate = node.Has(kKey);
  a.int8 = HasType(builder, node, kPastKey, Type::kInt8);
  const Type cache = a.int8 ? Type::kInt8 : Type::kFloat;
  const auto floats = [&](std::initializer_list<size_t> indices) {
    return std::all_of(indices.begin(), indices.end(), [&](size_t i) { return builder.IsFloat(node, i); });
  };
  return floats({kQuery}) && node.Has(kValue) == a.separate && (!a.separate || floats({kKey, kValue})) &&
         HasType(builder, node, kPastKey, cache) && HasType(builder, node, kPastValue, cache) &&
         HasType(builder, node, kSeqlensK, Type::kInt32) && HasType(builder, node, kTotal, Type::kInt32) &&
         (!node.Has(kQuerySeqlens) || HasType(builder, node, kQuerySeqlens, Type::kInt32)) &&
         (!a.rotary || floats({kCosine, kSine})) && node.Has(kKeyScale) == a.int8 &&
         node.Has(kValueScale) == a.int8 && (!a.int8 || floats({kKeyScale, kValueScale}));
}

}  // namespace

bool MakeAttention(Builder& builder, const Node& node) {
  auto step = std::make_unique<Attention>();
  if (node.outputs.size() != 3 || std::count(node.outputs.begin(), node.outputs.end(), kNone) != 0 ||
      !ReadAttributes(node, *step) || !ReadInputs(builder, node, *step)) {
    return false;
  }
  step->output = node.outputs[0];
  step->present_key = node.outputs[1];
  step->present_value = node.outputs[2];
  step->rotated = builder.Workspace();
  step->partials = builder.Workspace();
  const uint32_t int8 = step->int8 ? 1 : 0, lengths = node.Has(kQuerySeqlens) ? 1 : 0;
  const std::vector<gpu::Constant> common{{kConstantInt8Cache, int8}, {kConstantQueryLengths, lengths}};
  const auto kernel = [&common](const char* function, std::vector<gpu::Constant> own) {
    own.insert(own.end(), common.begin(), common.end());
    return Kernel(function, std::move(own));
  };
  const uint32_t rotary = !step->rotary ? 0 : step->interleaved ? 2 : 1;
  step->copy = kernel("attention_copy", {{kConstantSimdgroups, kCopyGroups}});
  step->prepare =
      kernel("attention_prepare", {{kConstantSimdgroups, kPrepareGroups}, {kConstantRotary, rotary}});
  for (uint32_t rows = 1; rows <= kMaxAttentionRows; ++rows) {
    step->merge[rows] = kernel("attention_merge", {{kConstantSimdgroups, kMergeGroups}, {kConstantRows, rows}});
    for (uint32_t split : {0u, 1u}) {
      step->attention[split][rows] =
          kernel("attention",
                 {{kConstantSimdgroups, kAttentionGroups}, {kConstantRows, rows}, {kConstantSplit, split}});
    }
  }
  for (size_t i = 0; i < kInputCount; ++i) {
    const bool table = i == kCosine || i == kSine;
    if (step->in[i] != kNone && i != kTotal && (!table || step->rotary)) {
      step->reads.push_back(step->in[i]);
    }
  }
  step->writes = {step->output, step->present_key, step->present_value, step->rotated, step->partials};
  builder.Add(std::move(step), node);
  return true;
}

}  // namespace bitnet::metal
