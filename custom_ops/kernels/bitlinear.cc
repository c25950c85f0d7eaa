// Checks, sizes and the walk over tokens and panels that all kernels share.
#include "bitlinear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace bitnet {
namespace {

constexpr int64_t kAlignment = 64;
// Weight bytes of one work item times its tokens. Smaller pieces cost more to hand out than to compute, and
// neighbouring sets are worth keeping on one thread: each goes on where the one before has ended.
constexpr int64_t kItemBytes = 320 * 1024;
// Work items that there should be at least, where there are panels enough: threads finish together.
constexpr int64_t kItems = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }
int64_t Align(int64_t bytes) { return CeilDiv(bytes, kAlignment) * kAlignment; }

// Where the parts of one token lie in the workspace.
struct Layout {
  int64_t sums, values, row, stride;
  int64_t sums_bytes, values_bytes;  // of one digit
};

Layout LayoutOf(const Linear& linear) {
  const int64_t padded = CeilDiv(linear.attributes.in_features, kStep) * kStep;
  Layout layout{};
  layout.sums = static_cast<int64_t>(sizeof(float));
  layout.sums_bytes = linear.groups * static_cast<int64_t>(sizeof(int32_t));
  layout.values = Align(layout.sums + linear.digits() * layout.sums_bytes);
  layout.values_bytes = Align(padded);
  layout.row = layout.values + (linear.quantized() ? linear.digits() * layout.values_bytes : 0);
  layout.stride = layout.row + Align(padded * static_cast<int64_t>(sizeof(float)));
  return layout;
}

// One call, as the work items see it.
struct Call {
  const Kernels* kernels;
  const Linear* linear;
  Element element;
  const unsigned char* x;
  unsigned char* y;
  unsigned char* workspace;
  Layout layout;
  int64_t tokens;  // of this block
  int64_t stride;  // between the panels of a set: what one set has read from, the next goes on with
  int64_t sets_per_item;
  int64_t token_items;

  int64_t element_size() const { return element == Element::kHalf ? 2 : 4; }

  Token TokenAt(int64_t t) const {
    unsigned char* base = workspace + t * layout.stride;
    Token token{reinterpret_cast<float*>(base), {}, reinterpret_cast<float*>(base + layout.row)};
    for (int64_t d = 0; linear->quantized() && d < linear->digits(); ++d) {
      token.digits[d] = {reinterpret_cast<int8_t*>(base + layout.values + d * layout.values_bytes),
                         reinterpret_cast<int32_t*>(base + layout.sums + d * layout.sums_bytes)};
    }
    return token;
  }
};

void PrepareToken(const Call& call, int64_t t) {
  const Linear& linear = *call.linear;
  const int64_t count = linear.attributes.in_features;
  const unsigned char* source = call.x + t * count * call.element_size();
  const Token token = call.TokenAt(t);
  const float* row = reinterpret_cast<const float*>(source);
  if (call.element == Element::kHalf) {
    for (int64_t k = 0; k < count; ++k) {
      uint16_t half;
      std::memcpy(&half, source + 2 * k, sizeof half);
      token.x[k] = HalfToFloat(half);
    }
    row = token.x;
  }
  if (linear.norm_weight != nullptr) {
    call.kernels->normalize(linear, row, token.x);
    row = token.x;
  }
  if (linear.quantized()) {
    call.kernels->quantize(linear, row, token);
    return;
  }
  if (row != token.x) {
    std::memcpy(token.x, row, static_cast<size_t>(count) * sizeof(float));
  }
  std::fill(token.x + count, token.x + CeilDiv(count, kStep) * kStep, 0.0f);
}

void PrepareItem(void* arg, size_t item) {
  const Call& call = *static_cast<const Call*>(arg);
  const int64_t first = static_cast<int64_t>(item) * kTokensPerItem;
  const int64_t last = std::min(first + kTokensPerItem, call.tokens);
  for (int64_t t = first; t < last; ++t) {
    PrepareToken(call, t);
  }
}

// Step 6 for the rows of one panel, and the way to their places.
void StorePanel(const Call& call, float* y, int64_t first_token, int64_t count, int64_t panel) {
  const int64_t out_features = call.linear->attributes.out_features;
  const int64_t first_row = panel * kPanelRows;
  const int64_t rows = std::min(kPanelRows, out_features - first_row);
  for (int64_t t = 0; t < count; ++t) {
    float* from = y + t * kPanelRows;
    if (call.linear->bias != nullptr) {
      for (int64_t c = 0; c < rows; ++c) {
        from[c] += call.linear->bias[first_row + c];
      }
    }
    unsigned char* to = call.y + ((first_token + t) * out_features + first_row) * call.element_size();
    if (call.element == Element::kFloat) {
      std::memcpy(to, from, static_cast<size_t>(rows) * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < rows; ++c) {
      const uint16_t half = FloatToHalf(from[c]);
      std::memcpy(to + 2 * c, &half, sizeof half);
    }
  }
}

void PanelItem(void* arg, size_t item) {
  const Call& call = *static_cast<const Call*>(arg);
  const int64_t index = static_cast<int64_t>(item);
  const int64_t first_token = index % call.token_items * kTokensPerItem;
  const int64_t count = std::min(kTokensPerItem, call.tokens - first_token);
  const int64_t begin = index / call.token_items * call.sets_per_item;
  const int64_t end = std::min(begin + call.sets_per_item, call.stride);
  Token tokens[kTokensPerItem];
  for (int64_t t = 0; t < count; ++t) {
    tokens[t] = call.TokenAt(first_token + t);
  }
  float y[kTokensPerItem * kPanelsForMany * kPanelRows];
  static_assert(kFewTokens * kPanelsForFew <= kTokensPerItem * kPanelsForMany);
  for (int64_t first = begin; first < end; ++first) {
    const PanelSet panels{first, call.stride, CeilDiv(call.linear->panels - first, call.stride)};
    call.kernels->panels(*call.linear, tokens, count, panels, y);
    for (int64_t p = 0; p < panels.count; ++p) {
      StorePanel(call, y + p * count * kPanelRows, first_token, count, panels[p]);
    }
  }
}

// Work of one item runs on the calling thread; handing it out would only cost.
bool ForEach(const Executor& executor, int64_t items, void (*fn)(void*, size_t), Call& call) {
  if (items == 1) {
    fn(&call, 0);
    return true;
  }
  return executor.parallel_for(executor.self, static_cast<size_t>(items), fn, &call);
}

std::string Wrong(const char* field, int64_t value, const char* limit) {
  return std::string(field) + " is " + std::to_string(value) + "; it must be " + limit;
}

}  // namespace

std::string Validate(const Attributes& a) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  if (a.in_features < 1 || a.in_features >= kLimit) {
    return Wrong("in_features", a.in_features, "from 1 to 2147483647");
  }
  if (a.out_features < 1 || a.out_features >= kLimit) {
    return Wrong("out_features", a.out_features, "from 1 to 2147483647");
  }
  if (a.bits < 2 || a.bits > 8 || a.bits % 2 != 0) {
    return Wrong("bits", a.bits, "2, 4, 6 or 8");
  }
  const int64_t largest = (int64_t{1} << a.bits) - 1;
  if (a.zero_point < 0 || a.zero_point > largest) {
    return Wrong("zero_point", a.zero_point,
                 ("from 0 to " + std::to_string(largest) + " for bits " + std::to_string(a.bits)).c_str());
  }
  if (a.group_size < 0 || a.group_size % 32 != 0) {
    return Wrong("group_size", a.group_size, "0 or a positive multiple of 32");
  }
  if (a.activation_bits != 0 && a.activation_bits != 8 && a.activation_bits != 16) {
    return Wrong("activation_bits", a.activation_bits, "0, 8 or 16");
  }
  if (a.in_features >= (kLimit + 128 * largest - 1) / (128 * largest)) {
    return Wrong("in_features", a.in_features,
                 ("below 2^31 / (128 * " + std::to_string(largest) + ") for bits " + std::to_string(a.bits) +
                  ", or the 32-bit sums could overflow")
                     .c_str());
  }
  if (!std::isfinite(a.epsilon) || a.epsilon < 0.0f) {
    return "epsilon is " + std::to_string(a.epsilon) + "; it must be finite and not negative";
  }
  return {};
}

Linear MakeLinear(const Attributes& a) {
  Linear linear;
  linear.attributes = a;
  linear.groups = a.group_size == 0 ? 1 : CeilDiv(a.in_features, a.group_size);
  linear.panels = CeilDiv(a.out_features, kPanelRows);
  linear.unit_bytes = a.bits / 2 * kBlockBytes;
  // At most 2^26 panels of 2^19 units of 2^7 bytes, or of fewer units with more bits: 2^52.
  linear.panel_bytes = 4 * CeilDiv(a.in_features, 64) * linear.unit_bytes;
  linear.weight_bytes = linear.panels * linear.panel_bytes;
  return linear;
}

size_t WorkspaceBytes(const Linear& linear, int64_t tokens) {
  return static_cast<size_t>(std::min(tokens, kTokensPerBlock) * LayoutOf(linear).stride);
}

bool Run(const Kernels& kernels, const Linear& linear, Element element, const void* x, int64_t tokens, void* y,
         void* workspace, const Executor& executor) {
  const Attributes& a = linear.attributes;
  Call call{&kernels,
            &linear,
            element,
            static_cast<const unsigned char*>(x),
            static_cast<unsigned char*>(y),
            static_cast<unsigned char*>(workspace),
            LayoutOf(linear),
            0,
            0,
            0,
            0};
  for (int64_t first = 0; first < tokens; first += kTokensPerBlock) {
    call.tokens = std::min(kTokensPerBlock, tokens - first);
    call.token_items = CeilDiv(call.tokens, kTokensPerItem);
    const int64_t tokens_per_item = std::min(call.tokens, kTokensPerItem);
    const int64_t at_once = call.tokens <= kFewTokens ? kPanelsForFew : kPanelsForMany;
    const int64_t set_cost = linear.panel_bytes * at_once * tokens_per_item * linear.digits();
    call.stride = CeilDiv(linear.panels, at_once);
    call.sets_per_item = std::max<int64_t>(1, std::min(kItemBytes / set_cost, call.stride / kItems));
    const int64_t panel_items = CeilDiv(call.stride, call.sets_per_item);
    if (!ForEach(executor, call.token_items, PrepareItem, call) ||
        !ForEach(executor, panel_items * call.token_items, PanelItem, call)) {
      return false;
    }
    call.x += call.tokens * a.in_features * call.element_size();
    call.y += call.tokens * a.out_features * call.element_size();
  }
  return true;
}

}  // namespace bitnet
