"""Packed panels back into tensors, in plain ONNX operators.

Everything here depends on constants only, so ONNX Runtime folds it once, when the model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from bitnet_onnx.packing import FIELDS, PANEL_ROWS, UNIT_COLUMNS, WORD, Field, padded_columns, padded_rows
from bitnet_onnx.quantized import Grid

if TYPE_CHECKING:
    from onnxscript import OpBuilder


def ints(op: OpBuilder, *values: int) -> ir.Value:
    """A constant int64 vector."""
    return op.Constant(value_ints=list(values))


def byte(op: OpBuilder, value: int) -> ir.Value:
    """A constant uint8 scalar."""
    return op.Constant(value=ir.tensor(np.array(value, np.uint8)))


def raw_columns(op: OpBuilder, weight: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The raw integers with columns first, uint8 `[K, N]`: every step then works on long runs of rows."""
    raw: ir.Value | None = None
    for field in FIELDS[grid.bits]:
        values = _values(op, _field_bytes(op, weight, grid, field), field.width, padded_rows(rows))
        if field.shift:
            values = op.Mul(values, byte(op, 1 << field.shift))
        raw = values if raw is None else op.Add(raw, values)
    return op.Slice(raw, ints(op, 0, 0), ints(op, columns, rows), ints(op, 0, 1))


def _blocks(op: OpBuilder, weight: ir.Value, grid: Grid) -> ir.Value:
    """`[panel, unit, block, row, byte]`."""
    return op.Reshape(weight, ints(op, 0, 0, grid.bits // 2, PANEL_ROWS, WORD))


def _field_bytes(op: OpBuilder, weight: ir.Value, grid: Grid, field: Field) -> ir.Value:
    """The bytes of one field: `[unit, byte, block, panel, row]`, byte by byte of a row and rows side by side."""
    blocks = _blocks(op, weight, grid)
    if field.width < grid.bits:
        blocks = op.Slice(blocks, ints(op, field.blocks.start), ints(op, field.blocks.stop), ints(op, 2))
    # In one step: several that move one axis each are faster, but all their results stay in memory until the end.
    return op.Transpose(blocks, perm=[1, 4, 2, 0, 3])


def _values(op: OpBuilder, packed: ir.Value, width: int, rows: int) -> ir.Value:
    """The values in bytes `[..., N]`, uint8 `[K, N]`. ONNX Runtime masks bits ten times slower than it multiplies."""
    packed = op.Reshape(packed, ints(op, -1, 1, rows))
    values = []
    for _ in range(8 // width - 1):
        rest = op.BitShift(packed, byte(op, width), direction="RIGHT")
        values.append(op.Sub(packed, op.Mul(rest, byte(op, 1 << width))))
        packed = rest
    return op.Reshape(op.Concat(*values, packed, axis=1), ints(op, -1, rows))


def matmul_nbits_blob(op: OpBuilder, weight: ir.Value, grid: Grid, rows: int, columns: int, block: int) -> ir.Value:
    """The weights as `MatMulNBits` reads them: uint8 `[N, ceil(K/block), bytes of a block]`.

    Weights of 2, 4 and 8 bits are a transpose of the panels. Six bits become eight, moved up so that their zero point
    is the operator's default of 128 where that is possible.
    """
    bits = matmul_nbits_bits(grid)
    if bits == grid.bits:
        flat = op.Transpose(_blocks(op, weight, grid), perm=[0, 3, 1, 4, 2])
    else:
        flat = op.Transpose(raw_columns(op, weight, grid, padded_rows(rows), padded_columns(columns)), perm=[1, 0])
        if shift := matmul_nbits_shift(grid):
            flat = op.Add(flat, byte(op, shift))
    blocks = op.Reshape(flat, ints(op, padded_rows(rows), -1, block * bits // 8))
    return op.Slice(blocks, ints(op, 0, 0), ints(op, rows, -(-columns // block)), ints(op, 0, 1))


def matmul_nbits_bits(grid: Grid) -> int:
    """Bits of the `MatMulNBits` weight that holds this grid."""
    return 8 if grid.bits == 6 else grid.bits


def matmul_nbits_shift(grid: Grid) -> int:
    """What is added to raw values of six bits in eight so that zero lands on 128, or 0 if it cannot."""
    shift = 128 - grid.zero_point
    return shift if matmul_nbits_bits(grid) > grid.bits and 0 <= shift <= 256 - grid.levels else 0


def dequantized(op: OpBuilder, weight: ir.Value, scale: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The weights as float32 with columns first, `[K, N]`."""
    raw = op.Cast(raw_columns(op, weight, grid, rows, columns), to=ir.DataType.FLOAT)
    signed = op.Sub(raw, op.Constant(value_float=float(grid.zero_point)))
    if not grid.group_size:
        return op.Mul(signed, scale)
    steps = repeat_columns(op, group_scales(op, scale, grid, rows, columns), grid.group_size, rows)
    steps = op.Slice(steps, ints(op, 0), ints(op, columns), ints(op, 1))
    return op.Mul(signed, op.Transpose(steps, perm=[1, 0]))


def group_scales(op: OpBuilder, scale: ir.Value, grid: Grid, rows: int, columns: int) -> ir.Value:
    """The scales of groups with rows first, float32 `[N, groups]`."""
    of_rows = op.Reshape(op.Transpose(scale, perm=[0, 2, 1]), ints(op, padded_rows(rows), grid.groups(columns)))
    return op.Slice(of_rows, ints(op, 0), ints(op, rows), ints(op, 0))


def repeat_columns(op: OpBuilder, scale: ir.Value, times: int, rows: int) -> ir.Value:
    """Every column of `[N, G]` repeated `times` times, side by side."""
    if times == 1:
        return scale
    tiled = op.Tile(op.Unsqueeze(scale, ints(op, 2)), ints(op, 1, 1, times))
    return op.Reshape(tiled, ints(op, rows, -1))


def row_bytes(op: OpBuilder, panels: ir.Value, lane: ir.Value, field: Field, columns: int) -> ir.Value:
    """One row out of each panel: the values of one field.

    Args:
        op: where nodes go.
        panels: uint8 `[M, units, bytes of a unit]`.
        lane: int64 `[M, 1, 1]`, the row in each panel.
        field: which bits.
        columns: K.

    Returns:
        uint8 `[M, units, bytes, values of a byte]`, a row's values one after the other.
    """
    blocks = range(field.blocks.start, field.blocks.stop)
    places = [block * PANEL_ROWS * WORD + place for place in range(WORD) for block in blocks]
    where = op.Add(op.Mul(lane, op.Constant(value_int=WORD)), ints(op, *places))
    where = op.Expand(where, ints(op, 1, padded_columns(columns) // UNIT_COLUMNS, 1))
    packed = op.GatherElements(panels, where, axis=2)
    if field.width == 8:
        return op.Unsqueeze(packed, ints(op, 3))
    shifts = op.Constant(value=ir.tensor(np.arange(0, 8, field.width, dtype=np.uint8)))
    values = op.BitShift(op.Unsqueeze(packed, ints(op, 3)), shifts, direction="RIGHT")
    return op.BitwiseAnd(values, byte(op, (1 << field.width) - 1))
