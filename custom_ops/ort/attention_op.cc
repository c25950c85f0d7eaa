// bitnet::GroupQueryAttention as an operator of ONNX Runtime.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <type_traits>

#include "kernels/attention.h"
#include "ort/node.h"

namespace bitnet::ort {
namespace {

enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kSeqlensK,
  kTotalSequenceLength,
  kCosCache,
  kSinCache,
  kQuerySeqlens,
  kKeyScale,
  kValueScale,
  kInputCount
};
enum Output : size_t { kOutput, kPresentKey, kPresentValue, kOutputCount };

constexpr const char* kNames[] = {
    "query",     "key",       "value",         "past_key",  "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "query_seqlens", "key_scale", "value_scale"};

struct Kernel {
  const Api& api;
  AttentionAttributes attributes;
  bool separate;  // key and value are inputs of their own
  bool query_seqlens;
  std::string label;
};

AttentionAttributes ReadAttributes(const Node& node) {
  constexpr int64_t kMaxHeads = 1 << 16;
  AttentionAttributes a;
  a.num_heads = node.RequiredInt("num_heads");
  a.kv_num_heads = node.RequiredInt("kv_num_heads");
  if (a.num_heads < 1 || a.num_heads > kMaxHeads) {
    node.Fail("num_heads is " + std::to_string(a.num_heads) + "; it must be from 1 to " +
              std::to_string(kMaxHeads));
  }
  if (a.kv_num_heads < 1 || a.num_heads % a.kv_num_heads != 0) {
    node.Fail("kv_num_heads is " + std::to_string(a.kv_num_heads) + "; it must divide num_heads, " +
              std::to_string(a.num_heads));
  }
  const auto flag = [&node](const char* field) {
    const int64_t value = node.Int(field, 0);
    if (value != 0 && value != 1) {
      node.Fail(std::string(field) + " is " + std::to_string(value) + "; it must be 0 or 1");
    }
    return value == 1;
  };
  a.do_rotary = flag("do_rotary");
  a.rotary_interleaved = flag("rotary_interleaved");
  a.scale = node.Float("scale", 0.0f);
  if (!std::isfinite(a.scale) || a.scale < 0.0f) {
    node.Fail("scale is " + std::to_string(a.scale) + "; it must be finite and not negative");
  }
  a.local_window_size = node.Int("local_window_size", -1);
  if (a.local_window_size != -1 && a.local_window_size < 1) {
    node.Fail("local_window_size is " + std::to_string(a.local_window_size) + "; it must be -1 or at least 1");
  }
  a.softcap = node.Float("softcap", 0.0f);
  if (!std::isfinite(a.softcap) || a.softcap < 0.0f) {
    node.Fail("softcap is " + std::to_string(a.softcap) + "; it must be finite and not negative");
  }
  return a;
}

// T is the type of the cache's elements: ONNX Runtime chooses the kernel by it.
template <typename T>
std::unique_ptr<Kernel> Create(const Api& api, const KernelInfo& info) {
  const Node node(api, info, "GroupQueryAttention");
  const AttentionAttributes attributes = ReadAttributes(node);
  if (node.HasInput(kKey) != node.HasInput(kValue)) {
    node.Fail("key and value must both be there, or neither");
  }
  for (const size_t table : {kCosCache, kSinCache}) {
    if (attributes.do_rotary && !node.HasInput(table)) {
      node.Fail(std::string(kNames[table]) + " is missing; do_rotary needs it");
    }
  }
  constexpr bool kInt8 = std::is_same_v<T, int8_t>;
  for (const size_t scale : {kKeyScale, kValueScale}) {
    if (node.HasInput(scale) != kInt8) {
      node.Fail(std::string(kNames[scale]) + (kInt8
                                                  ? " is missing; past_key and past_value are int8 and need it"
                                                  : " is there; past_key and past_value are float and must be "
                                                    "int8"));
    }
  }
  return std::unique_ptr<Kernel>(
      new Kernel{api, attributes, node.HasInput(kKey), node.HasInput(kQuerySeqlens), node.label()});
}

// The inputs of one call, checked against each other.
template <typename T>
class Reader {
 public:
  Reader(const Kernel& kernel, const KernelContext& context) : kernel_(kernel), context_(context) {
    call_.attributes = kernel.attributes;
    ReadCache();
    ReadTokens();
    ReadLengths();
    ReadTables();
    if constexpr (std::is_same_v<T, int8_t>) {
      call_.key_scale = ReadScale(kKeyScale);
      call_.value_scale = ReadScale(kValueScale);
    }
    AttentionAttributes& a = call_.attributes;
    if (a.scale == 0.0f) {
      a.scale = 1.0f / std::sqrt(static_cast<float>(call_.head_dim));
    }
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  Attention<T>& call() { return call_; }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw std::runtime_error(kernel_.label + ": " + what);
  }

  template <typename Element>
  TensorView Read(size_t index) const {
    const Value* value = nullptr;
    Check(kernel_.api, kernel_.api.KernelContext_GetInput(&context_, index, &value));
    if (value == nullptr) {
      Fail(std::string(kNames[index]) + " is missing");
    }
    TensorView view = View(kernel_.api, value);
    if (reinterpret_cast<uintptr_t>(view.data) % alignof(Element) != 0) {
      Fail(std::string(kNames[index]) + " lies at an address that is not a multiple of 4");
    }
    return view;
  }

  [[noreturn]] void FailShape(size_t index, const TensorView& view, const std::string& expected) const {
    Fail(std::string(kNames[index]) + " has shape " + ToString(view.shape) + "; it must be " + expected);
  }

  void ReadCache() {
    const TensorView key = Read<T>(kPastKey), value = Read<T>(kPastValue);
    const int64_t heads = call_.attributes.kv_num_heads;
    if (key.shape.size() != 4 || key.shape[1] != heads) {
      FailShape(kPastKey, key, "[batch, " + std::to_string(heads) + ", length, head_dim]");
    }
    if (value.shape != key.shape) {
      FailShape(kPastValue, value, "that of past_key, " + ToString(key.shape));
    }
    call_.batch = key.shape[0];
    call_.past_length = key.shape[2];
    call_.head_dim = key.shape[3];
    if (call_.head_dim < 1 || call_.head_dim > kMaxHeadDim || call_.head_dim % kHeadMultiple != 0) {
      Fail("head_dim, the last dimension of past_key, is " + std::to_string(call_.head_dim) +
           "; it must be a multiple of " + std::to_string(kHeadMultiple) + " up to " +
           std::to_string(kMaxHeadDim));
    }
    call_.past_key = static_cast<const T*>(key.data);
    call_.past_value = static_cast<const T*>(value.data);
  }

  TokenRows ReadRows(size_t index, int64_t heads) {
    const TensorView view = Read<float>(index);
    const int64_t width = heads * call_.head_dim;  // at most 3 * 2^16 * 512
    if (view.shape.size() != 3 || view.shape[0] != call_.batch || view.shape[2] != width ||
        (index != kQuery && view.shape[1] != call_.sequence)) {
      const std::string sequence = index == kQuery ? "sequence" : std::to_string(call_.sequence);
      FailShape(index, view,
                "[" + std::to_string(call_.batch) + ", " + sequence + ", " + std::to_string(width) + "], " +
                    std::to_string(heads) + " heads of past_key's batch and head_dim");
    }
    call_.sequence = view.shape[1];
    return {static_cast<const float*>(view.data), width};
  }

  void ReadTokens() {
    const AttentionAttributes& a = call_.attributes;
    if (kernel_.separate) {
      call_.query = ReadRows(kQuery, a.num_heads);
      call_.key = ReadRows(kKey, a.kv_num_heads);
      call_.value = ReadRows(kValue, a.kv_num_heads);
      return;
    }
    const TokenRows packed = ReadRows(kQuery, a.num_heads + 2 * a.kv_num_heads);
    call_.query = packed;
    // An empty tensor may have no address, to which nothing may be added.
    const bool empty = call_.batch == 0 || call_.sequence == 0;
    call_.key = {empty ? packed.data : packed.data + a.num_heads * call_.head_dim, packed.stride};
    call_.value = {empty ? packed.data : call_.key.data + a.kv_num_heads * call_.head_dim, packed.stride};
  }

  // Copied, because the lengths become addresses after they have been checked and the caller owns their memory.
  std::vector<int32_t> ReadInts(size_t index) const {
    const TensorView view = Read<int32_t>(index);
    if (view.shape != std::vector<int64_t>{call_.batch}) {
      FailShape(index, view, ToString({call_.batch}));
    }
    const auto* data = static_cast<const int32_t*>(view.data);
    return std::vector<int32_t>(data, data + call_.batch);
  }

  [[noreturn]] void FailLength(size_t index, int64_t row, int64_t value, int64_t low, int64_t high) const {
    Fail(std::string(kNames[index]) + "[" + std::to_string(row) + "] is " + std::to_string(value) +
         "; it must be from " + std::to_string(low) + " to " + std::to_string(high));
  }

  void ReadLengths() {
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
    const TensorView view = Read<int32_t>(kTotalSequenceLength);
    if (Product(view.shape, view.shape.size()) != 1) {
      FailShape(kTotalSequenceLength, view, "[] or [1]");
    }
    const int64_t longest = *static_cast<const int32_t*>(view.data);
    // More could only be padding, and a number in an input must not ask for any amount of memory.
    const int64_t limit = std::min(kLargest, call_.past_length + call_.sequence);
    if (longest < 0 || longest > limit) {
      Fail("total_sequence_length is " + std::to_string(longest) + "; it must be from 0 to " +
           std::to_string(limit) + ", the lengths of past_key and query together");
    }
    call_.present_length = std::max(call_.past_length, longest);
    total_ = ReadInts(kSeqlensK);
    count_ = kernel_.query_seqlens ? ReadInts(kQuerySeqlens) : std::vector<int32_t>(total_.size());
    for (size_t b = 0; b < total_.size(); ++b) {
      const auto row = static_cast<int64_t>(b);
      if (total_[b] < 0 || total_[b] >= longest) {
        FailLength(kSeqlensK, row, total_[b], 0, longest - 1);
      }
      ++total_[b];
      const auto most = static_cast<int32_t>(std::min<int64_t>(call_.sequence, total_[b]));
      if (!kernel_.query_seqlens) {
        count_[b] = most;
      } else if (count_[b] < 0 || count_[b] > most) {
        FailLength(kQuerySeqlens, row, count_[b], 0, most);
      }
      if (total_[b] - count_[b] > call_.past_length) {
        Fail("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(total_[b] - 1) + " with " +
             std::to_string(count_[b]) + " new tokens; the cache has only " +
             std::to_string(call_.past_length) + " rows for the " + std::to_string(total_[b] - count_[b]) +
             " before them");
      }
    }
    call_.total = total_.data();
    call_.count = count_.data();
  }

  void ReadTables() {
    if (!call_.attributes.do_rotary) {
      return;
    }
    const TensorView cosine = Read<float>(kCosCache), sine = Read<float>(kSinCache);
    const int64_t positions =
        total_.empty() ? 0 : static_cast<int64_t>(*std::max_element(total_.begin(), total_.end()));
    if (cosine.shape.size() != 2 || cosine.shape[0] < positions || cosine.shape[1] > call_.head_dim / 2) {
      FailShape(kCosCache, cosine,
                "[at least " + std::to_string(positions) + " positions, at most " +
                    std::to_string(call_.head_dim / 2) + "]");
    }
    if (sine.shape != cosine.shape) {
      FailShape(kSinCache, sine, "that of cos_cache, " + ToString(cosine.shape));
    }
    call_.rotary_dim = 2 * cosine.shape[1];
    call_.cosine = static_cast<const float*>(cosine.data);
    call_.sine = static_cast<const float*>(sine.data);
  }

  const float* ReadScale(size_t index) const {
    // Below the normal numbers the reciprocal may be infinite.
    constexpr float kSmallest = std::numeric_limits<float>::min(), kLargest = std::numeric_limits<float>::max();
    const TensorView view = Read<float>(index);
    const std::vector<int64_t> shape{call_.attributes.kv_num_heads, call_.head_dim};
    if (view.shape != shape) {
      FailShape(index, view, ToString(shape));
    }
    const auto* scale = static_cast<const float*>(view.data);
    const int64_t count = shape[0] * shape[1];
    const auto wrong = [](float x) { return !(x >= kSmallest && x <= kLargest); };
    const float* found = std::find_if(scale, scale + count, wrong);
    if (found != scale + count) {
      const int64_t place = found - scale;
      char number[32];
      std::snprintf(number, sizeof number, "%g", static_cast<double>(*found));
      Fail(std::string(kNames[index]) + ToString({place / shape[1], place % shape[1]}) + " is " + number +
           "; it must be a positive, finite and normal number");
    }
    return scale;
  }

  const Kernel& kernel_;
  const KernelContext& context_;
  Attention<T> call_{};
  std::vector<int32_t> total_, count_;
};

template <typename T>
T* MakeOutput(const Api& api, KernelContext& context, size_t index, const std::vector<int64_t>& shape) {
  Product(shape, shape.size());
  Value* value = nullptr;
  Check(api, api.KernelContext_GetOutput(&context, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(value, &data));
  return static_cast<T*>(data);
}

template <typename T>
void Compute(const Kernel& kernel, KernelContext& context) {
  const Api& api = kernel.api;
  Reader<T> reader(kernel, context);
  Attention<T>& call = reader.call();
  const AttentionAttributes& a = call.attributes;
  const std::vector<int64_t> cache{call.batch, a.kv_num_heads, call.present_length, call.head_dim};
  call.output =
      MakeOutput<float>(api, context, kOutput, {call.batch, call.sequence, a.num_heads * call.head_dim});
  call.present_key = MakeOutput<T>(api, context, kPresentKey, cache);
  call.present_value = MakeOutput<T>(api, context, kPresentValue, cache);
  const bool in_place = call.present_key == call.past_key;
  const bool has_past = call.batch > 0 && call.past_length > 0;
  if (has_past && (in_place != (call.present_value == call.past_value) ||
                   (in_place && call.present_length != call.past_length))) {
    throw std::runtime_error(kernel.label +
                             ": past and present share memory in part; both caches must be shared whole, "
                             "with total_sequence_length within their length, or not at all");
  }
  const Scratch scratch(api, context, AttentionWorkspaceBytes(call));
  PoolExecutor pool(api, context);
  if (!RunAttention(call, scratch.data(), pool.executor())) {
    Check(api, pool.status());
  }
}

template <typename T>
CustomOp MakeOp() {
  static constexpr ElementType kCache = std::is_same_v<T, float> ? kFloat : kInt8;
  CustomOp op = OpWithKernel<Kernel, Create<T>, Compute<T>>();
  op.GetName = [](const CustomOp*) { return "GroupQueryAttention"; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputCount; };
  op.GetInputType = [](const CustomOp*, size_t i) {
    if (i == kPastKey || i == kPastValue) {
      return kCache;
    }
    return i == kSeqlensK || i == kTotalSequenceLength || i == kQuerySeqlens ? kInt32 : kFloat;
  };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) {
    const bool required = i == kQuery || (i >= kPastKey && i <= kTotalSequenceLength);
    return required ? kRequired : kOptional;
  };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return kOutputCount; };
  op.GetOutputType = [](const CustomOp*, size_t i) { return i == kOutput ? kFloat : kCache; };
  return op;
}

}  // namespace

const CustomOp kGroupQueryAttentionOp = MakeOp<float>();
const CustomOp kInt8GroupQueryAttentionOp = MakeOp<int8_t>();

}  // namespace bitnet::ort
