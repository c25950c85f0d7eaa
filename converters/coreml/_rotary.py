"""Rotary position embedding of queries and keys, in float32."""

from __future__ import annotations

from bitnet_onnx.converters.coreml._graph import Graph
from bitnet_onnx.converters.coreml._positions import Positions
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.converters.onnx._rotary import tables
from bitnet_onnx.decoder import Rotary


class Rotaries:
    """Emits rotations; layers that rotate alike share their tables.

    Args:
        graph: where operations go.
        positions: of the tokens.
        context_length: rows of the tables.
    """

    def __init__(self, graph: Graph, positions: Positions, context_length: int) -> None:
        self._graph = graph
        self._positions = positions
        self._context_length = context_length
        self._known: dict[Rotary, tuple[Value, Value]] = {}

    def apply(self, x: Value, rotary: Rotary, head_dim: int) -> Value:
        """Rotate heads, float32 `[1, query, heads, head_dim]`.

        Pairs of neighbours come out apart, the first of each pair before all second ones: queries and keys alike, so
        that no score changes.
        """
        ops, half = self._graph.ops, rotary.dim // 2
        cosine, sine = self._angles(rotary)
        if rotary.interleaved:
            first, second = (self._part(x, start, rotary.dim, 2) for start in (0, 1))
        else:
            first, second = self._part(x, 0, half), self._part(x, half, rotary.dim)
        turned = [
            ops.sub(x=ops.mul(x=first, y=cosine), y=ops.mul(x=second, y=sine)),
            ops.add(x=ops.mul(x=second, y=cosine), y=ops.mul(x=first, y=sine)),
        ]
        if rotary.dim < head_dim:
            turned.append(self._part(x, rotary.dim, head_dim))
        return ops.concat(values=turned, axis=-1)

    def _part(self, x: Value, start: int, stop: int, stride: int = 1) -> Value:
        """Features of each head."""
        return self._graph.ops.slice_by_index(
            x=x,
            begin=[0, 0, 0, start],
            end=[0, 0, 0, stop],
            stride=[1, 1, 1, stride],
            begin_mask=[True, True, True, False],
            end_mask=[True, True, True, False],
        )

    def _angles(self, rotary: Rotary) -> tuple[Value, Value]:
        """Cosines and sines of the tokens, float32 `[1, query, 1, dim / 2]`."""
        if rotary not in self._known:
            name = f"rotary_{len(self._known)}"
            self._known[rotary] = self._rows(rotary, f"{name}_cos", 0), self._rows(rotary, f"{name}_sin", 1)
        return self._known[rotary]

    def _rows(self, rotary: Rotary, name: str, which: int) -> Value:
        """The tokens' rows of one of the two tables."""
        half, length = rotary.dim // 2, self._context_length
        table = self._graph.constant(name, lambda: tables(rotary, length)[which][:, :half])
        return self._graph.ops.expand_dims(x=self._positions.rows(table), axes=[0, 2])
