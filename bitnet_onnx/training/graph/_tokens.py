"""What depends on the tokens alone: shapes, positions and what a query sees."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph.options import INPUT_IDS

BATCH: Final = "batch_size"
SEQUENCE: Final = "sequence_length"

#: Added to the score of a key that is not seen. Finite: a relation multiplies its logarithm by zero.
_UNSEEN: Final = -1e9


class Tokens:
    """The input of a graph, and values that all layers share.

    Args:
        builder: where the nodes go.
    """

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        #: int64 `[B, T]`.
        self.ids: Final = builder.input(INPUT_IDS, ir.DataType.INT64, [BATCH, SEQUENCE])
        #: int64 `[2]`: B and T.
        self.shape: Final = builder.node("/tokens/Shape", [self.ids])
        #: int64 `[1]`: B.
        self.batch: Final = builder.node("/tokens/batch/Slice", [self.shape, builder.ints(0), builder.ints(1)])
        #: int64 `[1]`: T.
        self.length: Final = builder.node("/tokens/length/Slice", [self.shape, builder.ints(1), builder.ints(2)])
        self._shapes: dict[tuple[int | str, ...], ir.Value] = {}
        self._masks: dict[int, ir.Value] = {}
        self._distance: ir.Value | None = None

    def reshape(self, path: str, x: ir.Value, *shape: int | str) -> ir.Value:
        """Reshape to dimensions of which some are `BATCH` or `SEQUENCE`."""
        if shape not in self._shapes:
            parts = [{BATCH: self.batch, SEQUENCE: self.length}.get(str(part)) for part in shape]
            known = [
                self._builder.ints(int(given)) if part is None else part
                for part, given in zip(parts, shape, strict=True)
            ]
            name = "_".join(map(str, shape))
            self._shapes[shape] = self._builder.node(f"/tokens/shape_{name}/Concat", known, {"axis": 0})
        return self._builder.node(f"{path}/Reshape", [x, self._shapes[shape]])

    def first_rows(self, path: str, table: ir.Value, offset: int = 0) -> ir.Value:
        """One row of a table for each position, from row `offset` on."""
        build = self._builder
        end = self.length
        if offset:
            end = build.node(f"{path}/end/Add", [self.length, build.ints(offset)])
        return build.node(f"{path}/Slice", [table, build.ints(offset), end, build.ints(0)])

    def mask(self, window: int) -> ir.Value:
        """What is added to scores: float `[T, T]`, 0 where a query (row) sees a key (column).

        Args:
            window: keys that a query sees, itself included; 0 is all before it.
        """
        if window not in self._masks:
            build, path = self._builder, f"/tokens/mask_{window}"
            distance = self._distances()
            unseen = build.node(f"{path}/Less", [distance, build.int_scalar(0)])
            if window:
                far = build.node(f"{path}/GreaterOrEqual", [distance, build.int_scalar(window)])
                unseen = build.node(f"{path}/Or", [unseen, far])
            inputs = [unseen, build.scalar(_UNSEEN), build.scalar(0)]
            self._masks[window] = build.node(f"{path}/Where", inputs)
        return self._masks[window]

    def _distances(self) -> ir.Value:
        """int64 `[T, T]`: position of the query less that of the key."""
        if self._distance is None:
            build = self._builder
            count = build.node("/tokens/Squeeze", [self.length, build.ints(0)])
            positions = build.node("/tokens/Range", [build.int_scalar(0), count, build.int_scalar(1)])
            queries = build.node("/tokens/queries/Unsqueeze", [positions, build.ints(1)])
            keys = build.node("/tokens/keys/Unsqueeze", [positions, build.ints(0)])
            self._distance = build.node("/tokens/distance/Sub", [queries, keys])
        return self._distance
