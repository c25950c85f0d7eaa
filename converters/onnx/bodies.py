"""Function bodies of the `bitnet` operators: what a runtime without the operator library executes.

One body is built for every distinct `Variant`; the variant's `overload` names it, and the node carries the same name.
`docs/operator.md` is the contract: the `exact` body gives the kernels' bits, the `fast` one an approximation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from bitnet_onnx.activations import LANES, PEAKS
from bitnet_onnx.bitlinear import BitLinearAttributes
from bitnet_onnx.converters.onnx import _unpack as unpack
from bitnet_onnx.converters.onnx._unpack import ints
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.packing import FIELDS, PANEL_ROWS, padded_columns, repeated

if TYPE_CHECKING:
    from onnxscript import OpBuilder

OPSET: Final = 21
EMBEDDING_ATTRIBUTES: Final = ("in_features", "out_features", "bits", "zero_point", "group_size")
LINEAR_ATTRIBUTES: Final = (*EMBEDDING_ATTRIBUTES, "activation_bits", "epsilon")
MICROSOFT: Final = "com.microsoft"
#: Bodies that a process keeps: to trace one takes longer than to write a tiny model.
_KEPT: Final = 256


class Fallback(enum.StrEnum):
    """What a runtime without the operator library executes."""

    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Variant:
    """What a body depends on.

    Attributes:
        attributes: of the node.
        has_norm: the node has input 3.
        has_bias: the node has input 4.
        fallback: which body.
    """

    attributes: BitLinearAttributes
    has_norm: bool
    has_bias: bool
    fallback: Fallback

    @property
    def overload(self) -> str:
        """The name of the body, unique among variants."""
        at, grid = self.attributes, self.attributes.grid
        parts = [
            f"k{at.in_features}",
            f"n{at.out_features}",
            f"b{grid.bits}",
            f"z{grid.zero_point}",
            f"g{grid.group_size}",
            f"a{at.activation_bits}",
        ]
        if self.has_norm:
            parts.append(f"norm{at.epsilon:g}")
        if self.has_bias:
            parts.append("bias")
        return "_".join([*parts, str(self.fallback)])


@lru_cache(_KEPT)
def bitlinear_body(variant: Variant) -> ir.Function:
    """The body of `bitnet::BitLinear` for one variant; models share it, so nobody may change it."""
    at = variant.attributes
    # An input that the node leaves out is left out of the body too; a trailing one is not declared at all.
    names = ["X", "W", "scale", "norm_weight" if variant.has_norm else None, "bias" if variant.has_bias else None]

    def trace(
        op: OpBuilder, x: ir.Value, w: ir.Value, scale: ir.Value, norm: ir.Value | None, bias: ir.Value | None
    ) -> ir.Value:
        tokens = op.Reshape(op.Cast(x, to=ir.DataType.FLOAT), ints(op, -1, at.in_features))
        if norm is not None:
            tokens = _rms_norm(op, tokens, norm, at)
        if not at.activation_bits:
            weights = unpack.dequantized(op, w, scale, at.grid, at.out_features, at.in_features)
            y = op.MatMul(tokens, weights)
        elif variant.fallback is Fallback.EXACT:
            y = _exact(op, tokens, w, scale, at)
        else:
            y = _fast(op, tokens, w, scale, at)
        if bias is not None:
            y = op.Add(y, bias)
        lead = op.Slice(op.Shape(x), ints(op, 0), ints(op, -1), ints(op, 0))
        shape = op.Concat(lead, ints(op, at.out_features), axis=0)
        # allowzero: with no tokens the shape holds a zero that is meant.
        return op.CastLike(op.Reshape(y, shape, allowzero=1), x)

    return traced_function("BitLinear", trace, names, variant.overload, LINEAR_ATTRIBUTES)


@lru_cache(_KEPT)
def bit_embedding_body(attributes: BitLinearAttributes, per_tensor: bool) -> ir.Function:
    """The body of `bitnet::BitEmbedding`.

    It gathers whole panels and then one lane of each, so that the matrix is read where it is: a body that unpacked
    or transposed it would make the runtime fold a second copy of the largest tensor of the model.

    Args:
        attributes: of the node; norm, bias and activations play no part.
        per_tensor: `scale` is `[1]` and not `[N]`.
    """
    grid, columns = attributes.grid, attributes.in_features

    def trace(op: OpBuilder, ids: ir.Value, w: ir.Value, scale: ir.Value) -> ir.Value:
        flat = op.Reshape(ids, ints(op, -1))
        panel = op.Div(flat, op.Constant(value_int=PANEL_ROWS))
        lane = op.Reshape(op.Mod(flat, op.Constant(value_int=PANEL_ROWS)), ints(op, -1, 1, 1))
        panels = op.Gather(w, panel, axis=0)
        raw: ir.Value | None = None
        for field in FIELDS[grid.bits]:
            values = op.Reshape(
                unpack.row_bytes(op, panels, lane, field, columns), ints(op, -1, padded_columns(columns))
            )
            if field.shift:
                values = op.BitShift(values, unpack.byte(op, field.shift), direction="LEFT")
            raw = values if raw is None else op.BitwiseOr(raw, values)
        values = op.Slice(raw, ints(op, 0), ints(op, columns), ints(op, 1))
        signed = op.Sub(op.Cast(values, to=ir.DataType.FLOAT), op.Constant(value_float=float(grid.zero_point)))
        if grid.group_size:
            groups = grid.groups(columns)
            step = op.GatherElements(op.Gather(scale, panel, axis=0), op.Expand(lane, ints(op, 1, groups, 1)), axis=2)
            step = op.Reshape(op.Tile(step, ints(op, 1, 1, grid.group_size)), ints(op, -1, groups * grid.group_size))
            step = op.Slice(step, ints(op, 0), ints(op, columns), ints(op, 1))
        else:
            step = scale if per_tensor else op.Unsqueeze(op.Gather(scale, flat, axis=0), ints(op, 1))
        shape = op.Concat(op.Shape(ids), ints(op, columns), axis=0)
        # allowzero: with no ids the shape holds a zero that is meant.
        return op.Reshape(op.Mul(signed, step), shape, allowzero=1)

    overload = embedding_overload(attributes, per_tensor)
    return traced_function("BitEmbedding", trace, ("ids", "W", "scale"), overload, EMBEDDING_ATTRIBUTES)


def embedding_overload(attributes: BitLinearAttributes, per_tensor: bool) -> str:
    """The name of the body for these attributes."""
    grid = attributes.grid
    name = f"k{attributes.in_features}_n{attributes.out_features}_b{grid.bits}_z{grid.zero_point}_g{grid.group_size}"
    return f"{name}_tensor" if per_tensor else name


def traced_function(
    name: str,
    trace: Callable[..., ir.Value],
    inputs: Sequence[str | None],
    overload: str,
    attributes: Sequence[str],
) -> ir.Function:
    """A function of our domain from a trace of its nodes.

    Args:
        name: the operator.
        trace: builds the nodes on an `OpBuilder` and a value for each input.
        inputs: their names; None for one that the node leaves out.
        overload: the name of this body.
        attributes: names of the operator's attributes.
    """
    # Loaded where a body is made: it takes a fifth of a second, and most commands make none.
    from onnxscript import build_function

    values = [ir.Value(name=given) if given else None for given in inputs]
    declared = [ir.Attr(attribute, ir.AttributeType.INT, None) for attribute in attributes]
    built = build_function(
        trace,
        values,
        domain=OPERATOR_DOMAIN,
        name=name,
        attributes=declared,
        opset_imports={"": OPSET, MICROSOFT: 1},
    )
    for node in built:
        node.metadata_props.clear()
    return ir.Function(OPERATOR_DOMAIN, name, overload, graph=built.graph, attributes=declared)


def _rms_norm(op: OpBuilder, tokens: ir.Value, norm: ir.Value, at: BitLinearAttributes) -> ir.Value:
    mean = op.Div(_lanes16(op, op.Mul(tokens, tokens), at.in_features), _float(op, at.in_features))
    inverse = op.Reciprocal(op.Sqrt(op.Add(mean, _float(op, at.epsilon))))
    return op.Mul(op.Mul(tokens, inverse), norm)


def _lanes16(op: OpBuilder, values: ir.Value, columns: int) -> ir.Value:
    """Sum of the last axis `[M, K] -> [M, 1]` in the contract's order; CumSum adds one after the other."""
    if columns % LANES:
        pads = ints(op, 0, 0, 0, -columns % LANES)
        values = op.Pad(values, pads)
    steps = -(-columns // LANES)
    running = op.CumSum(op.Reshape(values, ints(op, -1, steps, LANES)), op.Constant(value_int=1))
    lanes = op.Gather(running, op.Constant(value_int=steps - 1), axis=1)
    for half in (8, 4, 2, 1):
        low = op.Slice(lanes, ints(op, 0), ints(op, half), ints(op, 1))
        high = op.Slice(lanes, ints(op, half), ints(op, 2 * half), ints(op, 1))
        lanes = op.Add(low, high)
    return lanes


def _float(op: OpBuilder, value: float) -> ir.Value:
    return op.Constant(value_float=float(value))


def _exact(op: OpBuilder, tokens: ir.Value, w: ir.Value, scale: ir.Value, at: BitLinearAttributes) -> ir.Value:
    grid, rows = at.grid, at.out_features
    peak = op.Max(op.ReduceMax(op.Abs(tokens), ints(op, -1), keepdims=1), _float(op, 1e-5))
    # x * 0 is NaN for NaN and infinity: it marks the tokens whose results must be NaN.
    poison = op.ReduceSum(op.Mul(tokens, _float(op, 0)), ints(op, -1), keepdims=1)
    token_scale = op.Add(op.Div(_float(op, PEAKS[at.activation_bits]), peak), poison)
    q = op.Round(op.Mul(tokens, token_scale))
    if at.activation_bits == 8:
        sums = _dot(op, op.Clip(q, _float(op, -128), _float(op, 127)), w, at)
    else:
        high = op.Floor(op.Div(op.Add(q, _float(op, 128)), _float(op, 256)))
        low = op.Sub(q, op.Mul(high, _float(op, 256)))
        # One product for both digits reads the weights once.
        digits = op.Cast(_dot(op, op.Concat(high, low, axis=0), w, at), to=ir.DataType.INT64)
        groups = [grid.groups(at.in_features)] if grid.group_size else []
        digits = op.Reshape(digits, ints(op, *groups, 2, -1, rows))
        high, low = (op.Gather(digits, op.Constant(value_int=digit), axis=-3) for digit in (0, 1))
        sums = op.Add(op.Mul(high, op.Constant(value_int=256)), low)
    sums = op.Cast(sums, to=ir.DataType.FLOAT)
    if not grid.group_size:
        return op.Mul(sums, op.Div(scale, token_scale))
    steps = unpack.group_scales(op, scale, grid, rows, at.in_features)
    terms = op.Mul(sums, op.Unsqueeze(op.Transpose(steps, perm=[1, 0]), ints(op, 1)))
    last = op.Constant(value_int=grid.groups(at.in_features) - 1)
    total = op.Gather(op.CumSum(terms, op.Constant(value_int=0)), last, axis=0)
    return op.Mul(total, op.Reciprocal(token_scale))


def _dot(op: OpBuilder, q: ir.Value, w: ir.Value, at: BitLinearAttributes) -> ir.Value:
    """Sums of products of float integers in `-128 .. 127` with the weights: int32 `[M, N]`, or `[groups, M, N]`."""
    grid, rows, columns = at.grid, at.out_features, at.in_features
    # Unsigned by unsigned: on CPUs without VNNI the signed products of ONNX Runtime saturate at 16 bits.
    q = op.Cast(op.Add(q, _float(op, 128)), to=ir.DataType.UINT8)
    weights = unpack.raw_columns(op, w, grid, rows, columns)
    zero_x, zero_w = unpack.byte(op, 128), unpack.byte(op, grid.zero_point)
    if grid.group_size:
        groups, size = grid.groups(columns), grid.group_size
        missing = groups * size - columns
        if missing:
            q = op.Pad(q, ints(op, 0, 0, 0, missing), zero_x)
            weights = op.Pad(weights, ints(op, 0, 0, missing, 0), zero_w)
        q = op.Transpose(op.Reshape(q, ints(op, -1, groups, size)), perm=[1, 0, 2])
        weights = op.Reshape(weights, ints(op, groups, size, rows))
    return op.MatMulInteger(q, weights, zero_x, zero_w)


def _fast(op: OpBuilder, tokens: ir.Value, w: ir.Value, scale: ir.Value, at: BitLinearAttributes) -> ir.Value:
    grid, rows, columns = at.grid, at.out_features, at.in_features
    block = 64 if grid.group_size % 64 == 0 else 32
    blocks = -(-columns // block)
    blob = unpack.matmul_nbits_blob(op, w, grid, rows, columns, block)
    if grid.group_size:
        scales = unpack.group_scales(op, scale, grid, rows, columns)
        scales = unpack.repeat_columns(op, scales, grid.group_size // block, rows)
        scales = op.Slice(scales, ints(op, 0), ints(op, blocks), ints(op, 1))
    else:
        scales = op.Expand(op.Reshape(scale, ints(op, -1, 1)), ints(op, rows, blocks))
    bits = unpack.matmul_nbits_bits(grid)
    inputs = [tokens, blob, op.Reshape(scales, ints(op, -1))]
    zero = grid.zero_point + unpack.matmul_nbits_shift(grid)
    if zero != 1 << (bits - 1):
        inputs.append(_zero_points(op, zero, bits, rows, blocks))
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4}
    return op.MatMulNBits(*inputs, **attributes, _domain=MICROSOFT, _version=1)


def _zero_points(op: OpBuilder, zero: int, bits: int, rows: int, blocks: int) -> ir.Value:
    """One zero point for every block, packed like the weights."""
    return op.Expand(unpack.byte(op, repeated(zero, bits)), ints(op, rows, -(-blocks * bits // 8)))
