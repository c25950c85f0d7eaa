// BitLinear and BitEmbedding.
#include <algorithm>
#include <memory>

#include "metal/arguments.h"
#include "metal/host/build.h"

namespace bitnet::metal {
namespace {

// Sizes of threadgroups; to be measured on Apple hardware.
constexpr uint32_t kQuantizeGroups = 4;
constexpr uint32_t kVectorGroups = 2;
constexpr uint32_t kEmbeddingGroups = 2;
constexpr uint32_t kUnroll = 2;
constexpr uint32_t kSmallTokens = 4;
constexpr int64_t kMostSmall = 8;  // tokens up to which matvec_small is taken

struct Matrix {
  int64_t columns, rows, bits, zero_point, group_size;
  int weight, scale;
  uint32_t scale_kind;

  int64_t padded() const { return CeilDiv(columns, kColumnMultiple) * kColumnMultiple; }
  int64_t panels() const { return CeilDiv(rows, kPanelRows); }
  int64_t groups() const { return group_size == 0 ? 1 : CeilDiv(columns, group_size); }

  LinearArguments Arguments(int64_t tokens, float epsilon) const {
    return {Count(columns),
            Count(rows),
            Count(tokens),
            Count(groups()),
            Count(group_size == 0 ? padded() : group_size),
            Count(zero_point),
            Count(padded()),
            epsilon};
  }
};

// The attributes and constants that both operators have, checked as docs/operator.md has them.
std::optional<Matrix> ReadMatrix(const Builder& builder, const Node& node) {
  Matrix m{node.Int("in_features", 0),
           node.Int("out_features", 0),
           node.Int("bits", 2),
           node.Int("zero_point", 2),
           node.Int("group_size", 0),
           kNone,
           kNone,
           0};
  constexpr int64_t kMost = int64_t{1} << 31;
  const bool known_bits = m.bits == 2 || m.bits == 4 || m.bits == 6 || m.bits == 8;
  if (m.columns < 1 || m.rows < 1 || m.columns >= kMost || m.rows >= kMost || !known_bits || m.zero_point < 0 ||
      m.zero_point >= (1 << m.bits) || m.group_size < 0 || m.group_size % 32 != 0 || m.group_size >= kMost ||
      m.columns * 128 * ((1 << m.bits) - 1) >= kMost ||
      m.panels() * m.padded() / 4 * m.bits / 8 * kPanelRows >= int64_t{1} << 32) {
    return std::nullopt;
  }
  const Shape weight{m.panels(), m.padded() / kUnitColumns, 64 * m.bits};
  std::vector<Shape> scales{{m.panels(), m.groups(), kPanelRows}};
  if (m.group_size == 0) {
    scales = {{1}, {m.rows}};
  }
  if (!builder.IsConstant(node, 1, Type::kUint8, {weight}) ||
      !builder.IsConstant(node, 2, Type::kFloat, scales)) {
    return std::nullopt;
  }
  m.weight = node.inputs[1];
  m.scale = node.inputs[2];
  if (m.group_size != 0) {
    m.scale_kind = kScaleGroups;
  } else {
    m.scale_kind = builder.Input(node, 2)->shape[0] == m.rows ? kScaleRows : kScaleOne;
  }
  return m;
}

// `[..., K]` -> the number of tokens.
int64_t Tokens(const Shape& shape) { return Product(shape, shape.size() - 1); }

class Quantize final : public Step {
 public:
  Matrix matrix;
  int x, norm;
  float epsilon;
  Codes out;
  Kernel kernel;

  void Prepare(Call& call) const override {
    const Shape& shape = call.ShapeOf(x);
    if (shape.empty() || shape.back() != matrix.columns) {
      Fail("X has shape " + ToString(shape) + "; its last dimension must be in_features, " +
           std::to_string(matrix.columns));
    }
    const auto tokens = static_cast<size_t>(Tokens(shape));
    call.SetBytes(out.codes, tokens * static_cast<size_t>(matrix.padded()));
    call.SetBytes(out.factor, tokens * sizeof(float));
    call.SetBytes(out.sums, tokens * static_cast<size_t>(matrix.groups()) * sizeof(int32_t));
  }

  void Encode(Call& call) const override {
    const int64_t tokens = Tokens(call.ShapeOf(x));
    call.Use(kernel);
    call.Arguments(kQuantizeArguments, matrix.Arguments(tokens, epsilon));
    call.Bind(kQuantizeX, x);
    if (norm != kNone) {
      call.Bind(kQuantizeNormWeight, norm);
    }
    call.Bind(kQuantizeCodes, out.codes);
    call.Bind(kQuantizeFactor, out.factor);
    call.Bind(kQuantizeSums, out.sums);
    call.Dispatch(tokens, 1, 1, kQuantizeGroups);
  }
};

class Multiply final : public Step {
 public:
  Matrix matrix;
  int x, bias, y;
  Codes in;
  uint32_t panels = 1;
  Kernel one, small, many;

  void Prepare(Call& call) const override {
    Shape shape = call.ShapeOf(x);
    if (shape.empty() || shape.back() != matrix.columns) {
      Fail("X has shape " + ToString(shape) + "; its last dimension must be in_features, " +
           std::to_string(matrix.columns));
    }
    shape.back() = matrix.rows;
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    const int64_t tokens = Tokens(call.ShapeOf(x));
    Count(tokens * std::max(matrix.padded(), matrix.rows));
    call.Use(tokens == 1 ? one : tokens <= kMostSmall ? small : many);
    call.Arguments(kLinearArguments, matrix.Arguments(tokens, 0.0f));
    call.Bind(kLinearWeight, matrix.weight);
    call.Bind(kLinearScale, matrix.scale);
    if (bias != kNone) {
      call.Bind(kLinearBias, bias);
    }
    call.Bind(kLinearCodes, in.codes);
    call.Bind(kLinearFactor, in.factor);
    call.Bind(kLinearSums, in.sums);
    call.Bind(kLinearY, y);
    if (tokens <= kMostSmall) {
      const int64_t columns = tokens == 1 ? 1 : CeilDiv(tokens, kSmallTokens);
      call.Dispatch(CeilDiv(matrix.panels(), panels), tokens == 0 ? 0 : columns, 1, kVectorGroups);
    } else {
      call.Dispatch(matrix.panels(), CeilDiv(tokens, kTileTokens), 1, kMatmulSimdgroups);
    }
  }
};

class Embedding final : public Step {
 public:
  Matrix matrix;
  int ids, y;
  Kernel kernel;

  void Prepare(Call& call) const override {
    Shape shape = call.ShapeOf(ids);
    const int64_t count = Product(shape);
    const auto* id = static_cast<const int64_t*>(call.Host(ids));
    const auto* wrong = std::find_if(id, id + count, [this](int64_t i) { return i < 0 || i >= matrix.rows; });
    if (wrong != id + count) {
      Fail("ids holds " + std::to_string(*wrong) + "; it must be from 0 to " + std::to_string(matrix.rows - 1));
    }
    shape.push_back(matrix.columns);
    call.SetShape(y, std::move(shape));
  }

  void Encode(Call& call) const override {
    const int64_t count = Product(call.ShapeOf(ids));
    Count(count * matrix.columns);
    call.Use(kernel);
    call.Arguments(kEmbeddingArguments, matrix.Arguments(count, 0.0f));
    call.Bind(kEmbeddingIds, ids);
    call.Bind(kEmbeddingWeight, matrix.weight);
    call.Bind(kEmbeddingScale, matrix.scale);
    call.Bind(kEmbeddingY, y);
    call.Dispatch(count, 1, 1, kEmbeddingGroups);
  }
};

Codes QuantizeOnce(Builder& builder, const Node& node, const Matrix& matrix, int norm, float epsilon) {
  // Without a norm its epsilon says nothing.
  const Builder::CodesKey key{node.inputs[0], norm, norm == kNone ? 0.0f : epsilon, matrix.group_size};
  const auto found = builder.codes.find(key);
  if (found != builder.codes.end()) {
    return found->second;
  }
  auto step = std::make_unique<Quantize>();
  step->matrix = matrix;
  step->x = node.inputs[0];
  step->norm = norm;
  step->epsilon = epsilon;
  step->out = {builder.Workspace(), builder.Workspace(), builder.Workspace()};
  step->kernel = Kernel(
      "quantize_activations",
      {{kConstantSimdgroups, kQuantizeGroups}, {kConstantHalf, 0}, {kConstantNorm, norm != kNone ? 1u : 0u}});
  step->reads = {step->x};
  if (norm != kNone) {
    step->reads.push_back(norm);
  }
  step->writes = {step->out.codes, step->out.factor, step->out.sums};
  builder.codes[key] = step->out;
  return builder.Add(std::move(step), node).out;
}

}  // namespace

bool MakeBitLinear(Builder& builder, const Node& node) {
  const std::optional<Matrix> matrix = ReadMatrix(builder, node);
  if (!matrix || node.Int("activation_bits", 8) != 8 || !builder.IsFloat(node, 0)) {
    return false;
  }
  for (const size_t index : {3u, 4u}) {
    if (node.Has(index) &&
        !builder.IsConstant(node, index, Type::kFloat, {{index == 3 ? matrix->columns : matrix->rows}})) {
      return false;
    }
  }
  const Codes codes =
      QuantizeOnce(builder, node, *matrix, node.Has(3) ? node.inputs[3] : kNone, node.Float("epsilon", 1e-5f));
  auto step = std::make_unique<Multiply>();
  step->matrix = *matrix;
  step->x = node.inputs[0];
  step->bias = node.Has(4) ? node.inputs[4] : kNone;
  step->y = node.outputs[0];
  step->in = codes;
  const std::vector<gpu::Constant> common{{kConstantHalf, 0},
                                          {kConstantBits, static_cast<uint32_t>(matrix->bits)},
                                          {kConstantScaleKind, matrix->scale_kind},
                                          {kConstantBias, step->bias != kNone ? 1u : 0u}};
  const auto kernel = [&common](const char* function, std::vector<gpu::Constant> own) {
    own.insert(own.end(), common.begin(), common.end());
    return Kernel(function, std::move(own));
  };
  step->one = kernel("matvec", {{kConstantSimdgroups, kVectorGroups},
                                {kConstantPanels, step->panels},
                                {kConstantUnroll, kUnroll},
                                {kConstantMasks, matrix->bits == 2 ? 1u : 0u}});
  step->small = kernel("matvec_small", {{kConstantSimdgroups, kVectorGroups},
                                        {kConstantPanels, step->panels},
                                        {kConstantUnroll, kUnroll},
                                        {kConstantTokens, kSmallTokens},
                                        {kConstantMasks, matrix->bits == 2 ? 1u : 0u}});
  step->many = kernel("matmul", {{kConstantSimdgroups, kMatmulSimdgroups}, {kConstantMatrices, 1}});
  step->reads = {codes.codes, codes.factor, codes.sums, matrix->weight, matrix->scale};
  if (step->bias != kNone) {
    step->reads.push_back(step->bias);
  }
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

bool MakeBitEmbedding(Builder& builder, const Node& node) {
  const std::optional<Matrix> matrix = ReadMatrix(builder, node);
  const Value* ids = builder.Input(node, 0);
  if (!matrix || ids == nullptr || ids->type != Type::kInt64) {
    return false;
  }
  auto step = std::make_unique<Embedding>();
  step->matrix = *matrix;
  step->ids = node.inputs[0];
  step->y = node.outputs[0];
  step->kernel = Kernel("embedding", {{kConstantSimdgroups, kEmbeddingGroups},
                                      {kConstantHalf, 0},
                                      {kConstantBits, static_cast<uint32_t>(matrix->bits)},
                                      {kConstantScaleKind, matrix->scale_kind}});
  step->reads = {step->ids, matrix->weight, matrix->scale};
  step->writes = {step->y};
  builder.Add(std::move(step), node);
  return true;
}

}  // namespace bitnet::metal
