"""Packed panels back into tensors, in plain ONNX operators.

Everything here depends on constants only, so ONNX Runtime folds it once, when the model is loaded.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bitnet_onnx.packing import padded
from bitnet_onnx.quantized import Grid

_CODES_PER_BYTE = 4


def ints(op: OpBuilder, *values: int) -> ir.Value:
    """A constant int64 vector."""
    return op.Constant(value_ints=list(values))


def byte(op: OpBuilder, value: int) -> ir.Value:
    """A constant uint8 scalar."""
    return op.Constant(value=ir.tensor(np.array(value, np.uint8)))


def _row_major(op: OpBuilder, weight: ir.Value, plane: int, grid: Grid, rows: int) -> ir.Value:
    """One plane as uint8 `[N, K/4]`: rows of bytes of four codes."""
    if grid.planes > 1:
        weight = op.Gather(weight, op.Constant(value_int=plane), axis=0)
    whole = op.Reshape(op.Transpose(weight, perm=[0, 2, 1]), ints(op, padded(rows), -1))
    return op.Slice(whole, ints(op, 0), ints(op, rows), ints(op, 0))


def raw_columns(op: OpBuilder, weight: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The raw integers, uint8 `[N, K]` (padding of K cut off)."""
    raw: ir.Value | None = None
    for plane in range(grid.planes):
        packed = _row_major(op, weight, plane, grid, rows)
        codes = [_code(op, packed, index) for index in range(_CODES_PER_BYTE)]
        whole = op.Concat(*[op.Unsqueeze(code, ints(op, 2)) for code in codes], axis=2)
        if plane:
            whole = op.BitShift(whole, byte(op, 2 * plane), direction="LEFT")
        raw = whole if raw is None else op.BitwiseOr(raw, whole)
    flat = op.Reshape(raw, ints(op, rows, -1))
    return op.Slice(flat, ints(op, 0), ints(op, columns), ints(op, 1))


def _code(op: OpBuilder, packed: ir.Value, index: int) -> ir.Value:
    shifted = op.BitShift(packed, byte(op, 2 * index), direction="RIGHT") if index else packed
    return op.BitwiseAnd(shifted, byte(op, 3)) if index < _CODES_PER_BYTE - 1 else shifted


def matmul_nbits_blob(op: OpBuilder, weight: ir.Value, grid: Grid, rows: int, columns: int, block: int) -> ir.Value:
    """The weights as `MatMulNBits` reads them: uint8 `[N, ceil(K/block), bytes of a block]`.

    One plane becomes 2-bit values, two planes 4-bit, three and four 8-bit (three are moved up so that their zero
    point keeps its distance from the operator's default of 128, where that is possible).
    """
    bits = matmul_nbits_bits(grid)
    if bits == 2:
        # A byte-transpose of the panels is already the layout.
        flat = _row_major(op, weight, 0, grid, rows)
    elif bits == 4:
        low, high = (_row_major(op, weight, plane, grid, rows) for plane in range(2))
        pairs = [_two_values(op, low, high, first) for first in (0, 2)]
        whole = op.Concat(*[op.Unsqueeze(pair, ints(op, 2)) for pair in pairs], axis=2)
        flat = op.Reshape(whole, ints(op, rows, -1))
    else:
        flat = raw_columns(op, weight, grid, rows, padded(columns))
        if shift := matmul_nbits_shift(grid):
            flat = op.Cast(
                op.Add(op.Cast(flat, to=ir.DataType.INT32), op.Constant(value=ir.tensor(np.array(shift, np.int32)))),
                to=ir.DataType.UINT8,
            )
    blob = block * bits // 8
    blocks = op.Reshape(flat, ints(op, rows, -1, blob))
    return op.Slice(blocks, ints(op, 0), ints(op, -(-columns // block)), ints(op, 1))


def matmul_nbits_bits(grid: Grid) -> int:
    """Bits of the `MatMulNBits` weight that holds this grid."""
    return {1: 2, 2: 4, 3: 8, 4: 8}[grid.planes]


def matmul_nbits_shift(grid: Grid) -> int:
    """What is added to the raw values of three planes in 8 bits so that zero lands on 128, or 0 if it cannot."""
    shift = 128 - grid.zero_point
    return shift if grid.planes == 3 and 0 <= shift <= 256 - grid.levels else 0


def _two_values(op: OpBuilder, low: ir.Value, high: ir.Value, first: int) -> ir.Value:
    """The byte of the 4-bit values of codes `first` and `first + 1` of two planes."""
    values = []
    for index in (first, first + 1):
        value = op.BitwiseOr(_code(op, low, index), op.BitShift(_code(op, high, index), byte(op, 2), direction="LEFT"))
        values.append(value)
    return op.BitwiseOr(values[0], op.BitShift(values[1], byte(op, 4), direction="LEFT"))


def dequantized(op: OpBuilder, weight: ir.Value, scale: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The weights as float32 `[N, K]`."""
    raw = op.Cast(raw_columns(op, weight, grid, rows, columns), to=ir.DataType.FLOAT)
    signed = op.Sub(raw, op.Constant(value_float=float(grid.zero_point)))
    return op.Mul(signed, steps(op, scale, grid, rows, columns))


def steps(op: OpBuilder, scale: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The scale of every weight: `[N, K]`, or what broadcasts to it."""
    if not grid.group_size:
        return op.Reshape(scale, ints(op, -1, 1))
    return op.Slice(repeat_columns(op, scale, grid.group_size, rows), ints(op, 0), ints(op, columns), ints(op, 1))


def repeat_columns(op: OpBuilder, scale: ir.Value, times: int, rows: int) -> ir.Value:
    """Every column of `[N, G]` repeated `times` times, side by side."""
    if times == 1:
        return scale
    tiled = op.Tile(op.Unsqueeze(scale, ints(op, 2)), ints(op, 1, 1, times))
    return op.Reshape(tiled, ints(op, rows, -1))
