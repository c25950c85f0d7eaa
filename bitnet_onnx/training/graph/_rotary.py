"""Rotary position embedding in operators that have gradients."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitnet_onnx.converters.onnx._rotary import tables
from bitnet_onnx.decoder import Rotary
from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph._tokens import Tokens


class Rotations:
    """Emits `x cos + swap(x) sin` (Su et al., "RoFormer", 2021), where `swap` exchanges the features of each pair.

    Args:
        builder: where the nodes go.
        tokens: whose positions are taken.
        head_dim: features of a head; those that are not rotated have cosine 1 and sine 0.
        max_length: rows of the tables.
    """

    def __init__(self, builder: Builder, tokens: Tokens, head_dim: int, max_length: int) -> None:
        self._builder = builder
        self._tokens = tokens
        self._head_dim = head_dim
        self._max_length = max_length
        self._tables: dict[tuple[Rotary, float], tuple[ir.Value, ir.Value]] = {}

    def apply(self, path: str, x: ir.Value, rotary: Rotary, scale: float) -> ir.Value:
        """Rotate and scale all heads, float `[B, heads, T, head_dim]`."""
        build = self._builder
        cosine, sine = self._table(rotary, scale)
        straight = build.node(f"{path}/cosine/Mul", [x, cosine])
        turned = build.node(f"{path}/sine/Mul", [self._swap(path, x, rotary), sine])
        return build.node(f"{path}/Add", [straight, turned])

    def _swap(self, path: str, x: ir.Value, rotary: Rotary) -> ir.Value:
        build, half, rest = self._builder, rotary.dim // 2, self._head_dim - rotary.dim
        if not rotary.interleaved:
            sizes = [half, half, rest] if rest else [half, half]
            first, second, *others = build.nodes(f"{path}/Split", [x, build.ints(*sizes)], len(sizes), {"axis": -1})
            return build.node(f"{path}/Concat", [second, first, *others], {"axis": -1})
        others = []
        if rest:
            x, *others = build.nodes(f"{path}/rest/Split", [x, build.ints(rotary.dim, rest)], 2, {"axis": -1})
        pairs = build.reshape(f"{path}/pairs", x, 0, 0, 0, half, 2)
        first, second = build.nodes(f"{path}/Split", [pairs, build.ints(1, 1)], 2, {"axis": -1})
        swapped = build.node(f"{path}/Concat", [second, first], {"axis": -1})
        swapped = build.reshape(f"{path}/flat", swapped, 0, 0, 0, rotary.dim)
        return build.node(f"{path}/rest/Concat", [swapped, *others], {"axis": -1}) if rest else swapped

    def _table(self, rotary: Rotary, scale: float) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of the positions, float `[T, head_dim]`; the sine of a pair's first feature is negative."""
        if (rotary, scale) not in self._tables:
            half, rows = rotary.dim // 2, self._max_length
            cosine, sine = (table[:, :half] for table in tables(rotary, rows))
            rest = np.ones((rows, self._head_dim - rotary.dim), np.float32)
            if rotary.interleaved:
                rotated = np.repeat(cosine, 2, axis=1), np.stack([-sine, sine], axis=2).reshape(rows, -1)
            else:
                rotated = np.tile(cosine, 2), np.concatenate([-sine, sine], axis=1)
            whole = [np.concatenate([rotated[0], rest], axis=1), np.concatenate([rotated[1], 0 * rest], axis=1)]
            number = len(self._tables)
            names = f"rotary.{number}.cosine", f"rotary.{number}.sine"
            first, second = (
                self._tokens.first_rows(
                    f"/rotary/{number}/{name}", self._builder.constant(name, table * np.float32(scale))
                )
                for name, table in zip(names, whole, strict=True)
            )
            self._tables[rotary, scale] = first, second
        return self._tables[rotary, scale]
