"""Heads as ONNX Runtime's GroupQueryAttention takes them, whatever their size and their rotated part.

It wants heads of a multiple of 8 features, of 16 where they are rotated, and rotates a multiple of 16 of them. Other
heads get zeros behind their features, which add nothing to scores and are cut from the result. A rotated part of
another size is widened by pairs of angle 0: its halves move apart, and features that are not rotated, or zeros, fill
the space between. Pairs of neighbours stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx._rotary import table_width
from bitnet_onnx.decoder import DecoderSpec, Rotary

_SIZE: Final = 8
_ROTATED_SIZE: Final = 16


def head_size(spec: DecoderSpec) -> int:
    """Features of a head in the graph and in its cache."""
    rotaries = [layer.rotary for layer in spec.attention if layer.rotary is not None]
    needed = max([spec.head_dim, *(2 * table_width(rotary) for rotary in rotaries)])
    return _up(needed, _ROTATED_SIZE if rotaries else _SIZE)


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Where the features of a head stand in the graph.

    Attributes:
        size: of a head in the graph.
        features: place of each feature of queries and keys; values keep their order.
    """

    size: int
    features: tuple[int, ...]

    @classmethod
    def of(cls, head_dim: int, size: int, rotary: Rotary | None) -> HeadLayout:
        """The layout of the heads of one layer."""
        places = list(range(head_dim))
        if rotary is not None and not rotary.interleaved:
            half, width = rotary.dim // 2, table_width(rotary)
            rotated = [*range(half), *range(width, width + half)]
            free = sorted(set(range(size)) - set(rotated))
            places = [*rotated, *free[: head_dim - rotary.dim]]
        return cls(size, tuple(places))

    def arrange(
        self, emit: Emitter, path: str, qkv: Sequence[ir.Value], heads: int, kv_heads: int
    ) -> Sequence[ir.Value]:
        """Queries, keys and values, side by side in one value or each in its own, as the layout has them.

        Args:
            emit: where nodes go.
            path: module path.
            qkv: float `[..., heads * D]` and twice `[..., kv_heads * D]`, or one value that holds all three.
            heads: of queries.
            kv_heads: of keys and of values.
        """
        plain = tuple(range(len(self.features)))
        if self == HeadLayout(len(plain), plain):
            return qkv
        parts = [(self.features, heads), (self.features, kv_heads), (plain, kv_heads)]
        if len(qkv) == 1:
            return [self._arranged(emit, f"{path}/heads", qkv[0], parts)]
        return [
            self._arranged(emit, f"{path}/{name}_heads", value, [part])
            for name, value, part in zip(("query", "key", "value"), qkv, parts, strict=True)
        ]

    def cut(self, emit: Emitter, path: str, attended: ir.Value, heads: int) -> ir.Value:
        """What attention gives, `[..., heads * size]`, without the zeros behind each head."""
        if self.size == len(self.features):
            return attended
        columns = np.arange(heads)[:, None] * self.size + np.arange(len(self.features))
        return _gather(emit, f"{path}/cut", attended, columns)

    def _arranged(
        self, emit: Emitter, path: str, x: ir.Value, parts: Sequence[tuple[tuple[int, ...], int]]
    ) -> ir.Value:
        head_dim = len(self.features)
        zero = sum(count for _, count in parts) * head_dim
        columns: list[npt.NDArray[np.int64]] = []
        start = 0
        for places, count in parts:
            part = np.full((count, self.size), zero, np.int64)
            part[:, places] = start + np.arange(count * head_dim).reshape(count, head_dim)
            columns.append(part)
            start += count * head_dim
        if self.size != head_dim:
            x = emit.node(f"{path}/Pad", [x, emit.ints(0, 1), None, emit.ints(-1)])
        return _gather(emit, path, x, np.concatenate(columns))


def _gather(emit: Emitter, path: str, x: ir.Value, columns: npt.NDArray[np.int64]) -> ir.Value:
    digest = hashlib.sha256(columns.tobytes()).hexdigest()[:8]
    indices = emit.constant(f"model.heads.{digest}", columns.ravel())
    return emit.node(f"{path}/Gather", [x, indices], {"axis": -1})


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
