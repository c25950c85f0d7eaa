"""Learned position embeddings: one row of a table for each token."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.decoder import LearnedPositions


def emit_positions(
    emit: Emitter, path: str, table: ir.Value, positions: LearnedPositions, ids: ir.Value, mask: ir.Value
) -> ir.Value:
    """The position embeddings of the tokens of this call.

    The tokens of a row stand where attention takes them to stand: the last `min(S, T)` of its `T` tokens, padding
    behind them.

    Args:
        emit: where the nodes go.
        path: module path.
        table: float `[rows, hidden]`.
        positions: size and offset of the table.
        ids: int64 `[batch, S]`.
        mask: int64 `[batch, total]`, ones for the `T` tokens of a row.

    Returns:
        float `[batch, S, hidden]`.
    """
    count = emit.node(f"{path}/ReduceSum", [mask, emit.ints(1)], {"keepdims": 1})
    length = emit.node(f"{path}/Shape", [ids], {"start": 1, "end": 2})
    first = emit.node(f"{path}/Max", [emit.node(f"{path}/Sub", [count, length]), emit.ints(0)])
    zero, one = (emit.int_scalar(value) for value in (0, 1))
    steps = emit.node(f"{path}/Range", [zero, emit.node(f"{path}/Squeeze", [length, emit.ints(0)]), one])
    rows = emit.node(f"{path}/rows/Add", [first, steps])
    if positions.offset:
        rows = emit.node(f"{path}/offset/Add", [rows, emit.ints(positions.offset)])
    # Padding may stand beyond the table.
    rows = emit.node(f"{path}/Min", [rows, emit.ints(positions.rows - 1)])
    return emit.node(f"{path}/Gather", [table, rows])
