"""Rotation of queries and keys in the body of attention, for sizes that ONNX Runtime's attention does not rotate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes

MICROSOFT: Final = "com.microsoft"
#: ONNX Runtime's attention rotates heads and parts of heads of multiples of it, and says so only when it runs.
ROTARY_MULTIPLE: Final = 16


@dataclass(frozen=True, slots=True)
class RotationApart:
    """Sizes of a rotation that ONNX Runtime's attention refuses, so that an operator of its own does it.

    Attributes:
        head_dim: features of a head.
        rotary_dim: those that are rotated.
        positions: rows of the tables.
    """

    head_dim: int
    rotary_dim: int
    positions: int


def rotation_apart(head_dim: int, rotary_dim: int, positions: int) -> RotationApart | None:
    """The sizes, or None where attention rotates by itself."""
    if head_dim % ROTARY_MULTIPLE == 0 and rotary_dim % ROTARY_MULTIPLE == 0:
        return None
    return RotationApart(head_dim, rotary_dim, positions)


def rotated_apart(
    inputs: Mapping[str, ir.Value], attributes: AttentionAttributes, sizes: RotationApart
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Rotate the new queries and keys by their positions.

    Args:
        inputs: of the function, by name; `query` holds keys and values too where there is no `key`.
        attributes: of the node.
        sizes: of the rotation.

    Returns:
        The nodes, and queries, keys and values as attention without rotation takes them.
    """
    at, build = attributes, _Nodes()
    query = inputs["query"]
    parts = [query, inputs.get("key"), inputs.get("value")]
    if "key" not in inputs:
        widths = build.ints(*(count * sizes.head_dim for count in (at.num_heads, at.kv_num_heads, at.kv_num_heads)))
        parts = [*build.add("Split", [query, widths], {"axis": -1}, outputs=3)]
    positions = _positions(build, inputs, sizes.positions)
    for place, heads in ((0, at.num_heads), (1, at.kv_num_heads)):
        (parts[place],) = build.add(
            "RotaryEmbedding",
            [parts[place], positions, inputs["cos_cache"], inputs["sin_cache"]],
            {
                "interleaved": int(at.rotary_interleaved),
                "num_heads": heads,
                "rotary_embedding_dim": sizes.rotary_dim if sizes.rotary_dim < sizes.head_dim else 0,
            },
            domain=MICROSOFT,
        )
    return build.nodes, [part for part in parts if part is not None]


def _positions(build: _Nodes, inputs: Mapping[str, ir.Value], rows: int) -> ir.Value:
    """Positions of the new tokens, int64 `[B, S]`: the last of each row's, padding behind them."""
    int64 = {"to": int(ir.DataType.INT64)}
    (last,) = build.add("Cast", [inputs["seqlens_k"]], int64)
    (total,) = build.add("Add", [last, build.ints(1)])
    (length,) = build.add("Shape", [inputs["query"]], {"start": 1, "end": 2})
    if "query_seqlens" in inputs:
        (count,) = build.add("Cast", [inputs["query_seqlens"]], int64)
    else:
        (count,) = build.add("Min", [total, length])
    (first,) = build.add("Sub", [total, count])
    (column,) = build.add("Unsqueeze", [first, build.ints(1)])
    (stop,) = build.add("Squeeze", [length, build.ints(0)])
    (steps,) = build.add("Range", [build.scalar(0), stop, build.scalar(1)])
    (places,) = build.add("Add", [column, steps])
    # Padding may stand beyond the tables.
    (positions,) = build.add("Min", [places, build.ints(rows - 1)])
    return positions


class _Nodes:
    """Nodes in their order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | Sequence[int]] | None = None,
        *,
        outputs: int = 1,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs)
        self.nodes.append(node)
        return node.outputs

    def ints(self, *values: int) -> ir.Value:
        return self.add("Constant", [], {"value_ints": values})[0]

    def scalar(self, value: int) -> ir.Value:
        return self.add("Constant", [], {"value_int": value})[0]
