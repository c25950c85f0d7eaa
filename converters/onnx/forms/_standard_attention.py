"""Attention behind a cache in standard operators, with the meaning of `GroupQueryAttention`.

Tokens of a row stand behind those that its cache holds, padding behind them. The present cache has the length of the
past one, or as many positions as there are tokens where that is more: a program may give one buffer for both, as with
ONNX Runtime's operator. What stands behind a row's tokens plays no part, but it has to be finite.

The standard's `Attention` is not used: ONNX Runtime 1.32 has no kernel for its version of opset 25, and what it puts in
its place repeats the cache for each query head; these nodes are as fast as its kernel of opset 24. Nor is
`TensorScatter`, which warns at each call that it copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._emitter import Attributes, Emitter
from bitnet_onnx.converters.onnx.forms.form import CallInputs

_PATH: Final = "/model/attention_mask"


@dataclass(frozen=True, slots=True)
class CallLengths:
    """What attention has to know of a call.

    Attributes:
        positions: int64 `[batch, S]`, of its tokens.
        pads: int64 `[8]`, how the caches grow.
        queries: int64 `[batch, 1, S, 1]`, as `positions`.
        keys: int64 `[length of the present caches]`, positions in there.
        seen: bool `[batch, 1, S, length]`, whether a query sees a key without a window.
    """

    positions: ir.Value
    pads: ir.Value
    queries: ir.Value
    keys: ir.Value
    seen: ir.Value


def emit_call_lengths(emit: Emitter, call: CallInputs) -> CallLengths:
    """Read them off the inputs."""
    count = emit.node(f"{_PATH}/ReduceSum", [call.mask, emit.ints(1)], {"keepdims": 1})
    tokens = emit.node(f"{_PATH}/tokens/Shape", [call.ids], {"start": 1, "end": 2})
    first = emit.node(f"{_PATH}/Max", [emit.node(f"{_PATH}/Sub", [count, tokens]), emit.ints(0)])
    positions = emit.node(f"{_PATH}/positions/Add", [first, _range(emit, f"{_PATH}/tokens", tokens)])
    queries = emit.node(f"{_PATH}/queries/Unsqueeze", [positions, emit.ints(1, 3)])
    total = emit.node(f"{_PATH}/total/Shape", [call.mask], {"start": 1, "end": 2})
    held = emit.node(f"{_PATH}/past/Shape", [call.past_key], {"start": 2, "end": 3})
    length = emit.node(f"{_PATH}/length/Max", [total, held])
    growth = emit.node(f"{_PATH}/growth/Sub", [length, held])
    pads = emit.node(f"{_PATH}/pads/Concat", [emit.ints(0, 0, 0, 0, 0, 0), growth, emit.ints(0)], {"axis": 0})
    keys = _range(emit, f"{_PATH}/keys", length)
    seen = emit.node(f"{_PATH}/LessOrEqual", [keys, queries])
    return CallLengths(positions, pads, queries, keys, seen)


def _range(emit: Emitter, path: str, stop: ir.Value) -> ir.Value:
    zero, one = emit.int_scalar(0), emit.int_scalar(1)
    return emit.node(f"{path}/Range", [zero, emit.node(f"{path}/Squeeze", [stop, emit.ints(0)]), one])


class StandardAttention:
    """Writes `RotaryEmbedding`, `ScatterElements`, and products with a softmax between them.

    Args:
        emit: where nodes go.
        lengths: of the call.
    """

    def __init__(self, emit: Emitter, lengths: CallLengths) -> None:
        self._emit = emit
        self._lengths = lengths
        self._indices: dict[tuple[int, int], ir.Value] = {}
        self._masks: dict[int, ir.Value] = {}

    def attend(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
    ) -> Sequence[ir.Value]:
        """The output, the present keys and the present values; arguments as of `OperatorForm.attention`."""
        emit, at, head_dim = self._emit, attributes, _last(past[0])
        heads = at.num_heads, at.kv_num_heads, at.kv_num_heads
        if len(qkv) == 1:
            sizes = emit.ints(*(count * head_dim for count in heads))
            qkv = emit.nodes(f"{path}/heads/Split", [qkv[0], sizes], 3, {"axis": -1})
        parts = [
            self._by_heads(f"{path}/{name}", value, count, head_dim)
            for name, value, count in zip(("query", "key", "value"), qkv, heads, strict=True)
        ]
        if at.do_rotary:
            parts[:2] = [
                self._rotated(f"{path}/{name}", part, tables, at, head_dim)
                for name, part in zip(("query", "key"), parts, strict=False)
            ]
        query, *new = parts
        present = [
            self._cached(f"{path}/{name}", old, part, (at.kv_num_heads, head_dim))
            for name, old, part in zip(("key", "value"), past, new, strict=True)
        ]
        scale = at.scale if at.scale is not None else head_dim**-0.5
        query = emit.node(f"{path}/query/scale/Mul", [query, emit.scalar(f"attention_scale_{scale!r}", scale)])
        y = self._weighted(path, query, present[0], present[1], at)
        y = emit.node(f"{path}/tokens/Transpose", [y], {"perm": [0, 2, 1, 3]})
        return [emit.node(f"{path}/Reshape", [y, emit.ints(0, 0, heads[0] * head_dim)]), *present]

    def _weighted(
        self, path: str, query: ir.Value, key: ir.Value, value: ir.Value, at: AttentionAttributes
    ) -> ir.Value:
        """Values weighted by the softmax of scores, `[batch, heads, S, D]`.

        Query heads of one key head stand one behind the other in a product, so that the cache is not repeated for them.
        """
        emit = self._emit
        together, apart = emit.ints(0, at.kv_num_heads, -1, 0), emit.ints(0, at.num_heads, -1, 0)
        grouped = emit.node(f"{path}/query/groups/Reshape", [query, together])
        turned = emit.node(f"{path}/key/columns/Transpose", [key], {"perm": [0, 1, 3, 2]})
        scores = emit.node(f"{path}/scores/MatMul", [grouped, turned])
        scores = emit.node(f"{path}/scores/Reshape", [scores, apart])
        if at.softcap:
            cap = emit.scalar(f"attention_softcap_{at.softcap!r}", at.softcap)
            scores = emit.node(f"{path}/scores/Tanh", [emit.node(f"{path}/scores/Div", [scores, cap])])
            scores = emit.node(f"{path}/scores/Mul", [scores, cap])
        scores = emit.node(f"{path}/mask/Add", [scores, self._mask(at.local_window_size)])
        weights = emit.node(f"{path}/Softmax", [scores], {"axis": -1})
        weights = emit.node(f"{path}/weights/Reshape", [weights, together])
        return emit.node(f"{path}/heads/Reshape", [emit.node(f"{path}/values/MatMul", [weights, value]), apart])

    def _by_heads(self, path: str, x: ir.Value, count: int, head_dim: int) -> ir.Value:
        emit = self._emit
        split = emit.node(f"{path}/Reshape", [x, emit.ints(0, 0, count, head_dim)])
        return emit.node(f"{path}/Transpose", [split], {"perm": [0, 2, 1, 3]})

    def _rotated(
        self, path: str, x: ir.Value, tables: Sequence[ir.Value], at: AttentionAttributes, head_dim: int
    ) -> ir.Value:
        width = 2 * _last(tables[0])
        attributes: Attributes = {
            "interleaved": int(at.rotary_interleaved),
            "rotary_embedding_dim": 0 if width == head_dim else width,
        }
        return self._emit.node(f"{path}/RotaryEmbedding", [x, *tables, self._lengths.positions], attributes)

    def _cached(self, path: str, past: ir.Value, new: ir.Value, sizes: tuple[int, int]) -> ir.Value:
        """The past with the tokens of this call behind those of each row; `sizes` are heads and their features."""
        emit, (heads, head_dim) = self._emit, sizes
        if sizes not in self._indices:
            shape = emit.ints(1, heads, 1, head_dim)
            name = f"{_PATH}/indices_{heads}_{head_dim}/Expand"
            self._indices[sizes] = emit.node(name, [self._lengths.queries, shape])
        grown = emit.node(f"{path}/cache/Pad", [past, self._lengths.pads])
        return emit.node(f"{path}/cache/ScatterElements", [grown, self._indices[sizes], new], {"axis": 2})

    def _mask(self, window: int) -> ir.Value:
        """What is added to scores: nothing where a query sees a key, the last `window` up to its own, else -inf."""
        emit, lengths = self._emit, self._lengths
        if window not in self._masks:
            path, seen = f"{_PATH}/all", lengths.seen
            if window != -1:
                path = f"{_PATH}/window_{window}"
                before = emit.node(f"{path}/Sub", [lengths.queries, emit.ints(window)])
                near = emit.node(f"{path}/Greater", [lengths.keys, before])
                seen = emit.node(f"{path}/And", [seen, near])
            zero, hidden = emit.scalar("zero", 0.0), emit.scalar("hidden", -math.inf)
            self._masks[window] = emit.node(f"{path}/Where", [seen, zero, hidden])
        return self._masks[window]


def _last(value: ir.Value) -> int:
    """The last dimension, which is known."""
    size = None if value.shape is None else value.shape[-1]
    if not isinstance(size, int):
        raise TypeError(f"{value.name} has the shape {value.shape}: its last dimension must be a number")
    return size
