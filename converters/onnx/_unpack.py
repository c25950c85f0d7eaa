"""Packed panels back into tensors, in plain ONNX operators.

Everything here depends on constants only, so ONNX Runtime folds it once, when the model is loaded.
"""

from __future__ import annotations

import itertools

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
    raw = _codes(op, _row_major(op, weight, 0, grid, rows))
    for plane in range(1, grid.planes):
        codes = _codes(op, _row_major(op, weight, plane, grid, rows))
        raw = [op.Add(low, op.Mul(high, byte(op, 4**plane))) for low, high in zip(raw, codes, strict=True)]
    flat = _interleave(op, raw, rows)
    return op.Slice(flat, ints(op, 0), ints(op, columns), ints(op, 1))


def _codes(op: OpBuilder, packed: ir.Value) -> list[ir.Value]:
    """The four codes of each byte. ONNX Runtime masks bits ten times slower than it multiplies and subtracts."""
    quotients = [packed, *(_shift(op, packed, 2 * index) for index in range(1, _CODES_PER_BYTE))]
    codes = [op.Sub(a, op.Mul(b, byte(op, 4))) for a, b in itertools.pairwise(quotients)]
    return [*codes, quotients[-1]]


def _shift(op: OpBuilder, value: ir.Value, bits: int) -> ir.Value:
    return op.BitShift(value, byte(op, bits), direction="RIGHT")


def _interleave(op: OpBuilder, columns: list[ir.Value], rows: int) -> ir.Value:
    """`[N, M]` each -> `[N, M * len(columns)]`, one column of each after the other."""
    whole = op.Concat(*[op.Unsqueeze(column, ints(op, 2)) for column in columns], axis=2)
    return op.Reshape(whole, ints(op, rows, -1))


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
        low, high = (_spread_pairs(op, _row_major(op, weight, plane, grid, rows)) for plane in range(2))
        four = byte(op, 4)
        flat = _interleave(op, [op.Add(a, op.Mul(b, four)) for a, b in zip(low, high, strict=True)], rows)
    else:
        flat = raw_columns(op, weight, grid, rows, padded(columns))
        if shift := matmul_nbits_shift(grid):
            flat = op.Add(flat, byte(op, shift))
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


def _spread_pairs(op: OpBuilder, packed: ir.Value) -> list[ir.Value]:
    """Codes 0 and 1 of each byte at bits 0 and 4 of one byte, codes 2 and 3 in another."""
    upper = _shift(op, packed, 4)
    lower = op.Sub(packed, op.Mul(upper, byte(op, 16)))
    # a + 4 b -> a + 16 b
    return [op.Add(pair, op.Mul(_shift(op, pair, 2), byte(op, 12))) for pair in (lower, upper)]


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
